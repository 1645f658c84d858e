"""The attention loop against torch's operators in float64, and in a pass against the passes without it."""

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo import kernels
from dynamo.decoding import attention
from dynamo.decoding.attention import AttentionStep
from dynamo.decoding.cache import KVCache
from dynamo.decoding.decoder import Decoder

pytestmark = pytest.mark.skipif(kernels.loops() is None, reason="numba is missing or was not asked for")


def step_of(heads, width, rotary, start, new, queries, seed, scale=1.0):
    """A half-filled cache of two slots, a step of `new` positions, and a packed projection's rows for it."""
    rng = torch.Generator().manual_seed(seed)
    memory = torch.randn(2, 2, heads, start + new + 3, width, generator=rng) * scale
    rotary_tables = tuple(torch.randn(start + new, 1, 1, rotary, generator=rng) for _ in range(2))
    rows = torch.randn(new, 3 * heads * width, generator=rng) * scale

    def causal(new, stop):
        return torch.full((new, stop), float("-inf")).triu(stop - new + 1)

    state = KVCache(memory, start)
    return AttentionStep(state, [new], [queries], rotary_tables, causal), rows, state


def by_operators(step, rows, scaling, all_positions):
    """The same by torch, in float64: output, and what the cache then holds."""
    memory = step._cache.double()
    q, kv = step._unpacked([rows.double()])
    start, stop = step.start, step._filled
    memory[:, 1, :, start:stop] = kv[0].permute(1, 2, 0, 3)
    keys, values = memory[:, 1, :, :stop]
    unseen = torch.full((stop - start, stop), float("-inf")).triu(start + 1).double()
    weights = (q[0].transpose(0, 1) @ keys.transpose(1, 2) * scaling + unseen).softmax(-1)
    out = (weights @ values).transpose(0, 1).flatten(1)
    return out if all_positions else out[-step.queries :], memory


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 4),
    width=st.sampled_from([2, 20, 16, 64, 80]),  # of 16 numbers each in a register, or not
    rotated=st.sampled_from([0.25, 0.5, 1.0]),
    start=st.integers(0, 70),
    new=st.integers(1, 8),
    queries=st.integers(1, 8),
    whole=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 999),
)
def test_the_loop_agrees_with_torchs_operators(
    heads, width, rotated, start, new, queries, whole, scale, seed
):
    step, rows, state = step_of(
        heads, width, max(2, int(rotated * width) // 2 * 2), start, new, min(queries, new), seed, scale
    )
    expected, memory = by_operators(step, rows, width**-0.5, whole)
    assert step.loop is kernels.loops().attend
    (found,) = step.attend_packed([rows], 1, width**-0.5, whole)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(state.cache.double(), memory, rtol=1e-5, atol=1e-5 * scale**2)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("width", [8, 32])
def test_what_is_not_finite_stays_so(wrong, part, width):
    step, rows, _ = step_of(2, width, 4, 5, 3, 3, seed=0)
    rows[0, {"query": 5, "key": 2 * width + 5, "value": 4 * width + 5}[part]] = wrong
    (found,) = step.attend_packed([rows], 0, 0.3, all_positions=True)
    assert not found[0, :width].isfinite().all()
    assert found[0, width:].isfinite().all()  # the other head's


def test_one_far_larger_score_takes_all():
    step, rows, state = step_of(1, 8, 2, 5, 1, 1, seed=0)
    state.cache[0, 0, 0, :5] = 0
    state.cache[0, 0, 0, 3] = 1000.0
    rows[0, :8] = 1.0
    (found,) = step.attend_packed([rows], 0, 1.0, all_positions=True)
    torch.testing.assert_close(found[0], state.cache[1, 0, 0, 3])


def test_passes_with_and_without_the_loop_have_the_same_logits(monkeypatch):
    decoder = Decoder(tiny_dynamo(), packed=True)
    logits = []
    for limit in (attention.LOOP_NUMBERS, 0):
        monkeypatch.setattr("dynamo.decoding.attention.LOOP_NUMBERS", limit)
        state = decoder.new_cache(64)
        chunks = [list(range(20)), [7], [1, 2, 3], [9, 8], [4, 5, 6, 7]]
        logits.append([decoder.forward(state, chunk, queries=len(chunk)) for chunk in chunks])
    for with_loop, without in zip(*logits, strict=True):
        torch.testing.assert_close(with_loop, without, rtol=1e-4, atol=1e-5)
    assert not all(torch.equal(*pair) for pair in zip(*logits, strict=True))  # it was another way


def test_the_loop_gives_several_lanes_the_same_logits(monkeypatch):
    """Passes of several lanes with and without the loop have the same logits."""
    decoder = Decoder(tiny_dynamo(), packed=True)
    logits = []
    for limit in (attention.LOOP_NUMBERS, 0):
        monkeypatch.setattr("dynamo.decoding.attention.LOOP_NUMBERS", limit)
        state = decoder.new_batch(3, 64)
        for lane, length in zip(state.rows, (20, 1, 9), strict=True):
            decoder.forward(lane, list(range(length)))
        logits.append(
            [
                decoder.forward_batch(state, [[7], [1, 2, 3], [9, 8]]),
                decoder.forward_batch(state, [[4, 5, 6], [2], [3, 1]], queries=[2, 1, 2]),
            ]
        )
    for with_loop, without in zip(*logits, strict=True):
        torch.testing.assert_close(with_loop, without, rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits[0][1], logits[1][1])  # it was another way


def test_longer_memories_and_prompts_are_left_to_torch(monkeypatch):
    step, *_ = step_of(2, 8, 4, 5, 3, 1, seed=0)
    assert step.loop is not None
    prompt, *_ = step_of(2, 8, 4, 0, attention.FEW_QUERIES + 1, 1, seed=0)
    assert prompt.loop is None
    monkeypatch.setattr("dynamo.decoding.attention.LOOP_NUMBERS", 2 * 8 * 8 - 1)
    long, *_ = step_of(2, 8, 4, 5, 3, 1, seed=0)
    assert long.loop is None


def test_without_numba_torch_attends(monkeypatch):
    monkeypatch.setattr(kernels, "loops", lambda: None)
    step, rows, _ = step_of(2, 8, 4, 5, 3, 2, seed=0)
    expected, _ = by_operators(step, rows.clone(), 0.3, False)
    (found,) = step.attend_packed([rows], 1, 0.3, False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("group", [1, 3, 5])
def test_each_of_many_rows_attends_to_its_own_length(kind, width, group):
    """Of 16 bits, too, and with query heads that share keys and values."""
    from dynamo.kernels.rows import attend_rows

    rng = np.random.default_rng(0)
    rows, kv_heads, capacity = 3, 2, 20
    keys, values = rng.standard_normal((2, rows, kv_heads, capacity, width)).astype(kind)
    news = rng.standard_normal((2, rows, kv_heads, 1, width)).astype(kind)
    query = rng.standard_normal((rows, kv_heads * group, width)).astype(np.float32)
    lengths, out = np.array([0, 7, 19]), np.empty_like(query)
    expected = []
    for row, length in enumerate(lengths):
        k, v = (
            torch.from_numpy(np.concatenate([each[row, :, :length], new[row]], axis=1)).double()
            for each, new in zip((keys, values), news, strict=True)
        )
        q = torch.from_numpy(query[row].reshape(kv_heads, group, width)).double()
        expected.append(((q @ k.mT * 0.3).softmax(-1) @ v).flatten(0, 1))
    bits = [each.view(np.uint16) if kind is np.float16 else each for each in (keys, values, *news)]
    attend_rows(query, *bits, lengths, np.float32(0.3), out)
    np.testing.assert_allclose(out, torch.stack(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(keys[np.arange(rows), :, lengths], news[0, :, :, 0])
