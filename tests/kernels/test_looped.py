"""Layers in the loop, all or the last ones, against torch's operators: the same numbers, and where it is not
taken."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import saved_in_half

from dynamo import kernels
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.packed import LoopedLayers
from dynamo.kernels import layers as loops
from dynamo.model import model_shape, shape
from dynamo.model.packing import copies_of

pytestmark = pytest.mark.skipif(
    kernels.loops() is None or not kernels.loops().widens_halves(),
    reason="numba is missing, was not asked for, or the processor does not widen halves",
)


@pytest.fixture
def decoder_with(monkeypatch):
    """A decoder whose loop takes at most so many layers."""

    def build(model, layers):
        with monkeypatch.context() as patched:
            patched.setattr(shape, "LARGEST_LOOP", layers * model_shape(model).layer.matrix_parameters)
            return Decoder(model)

    return build


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"num_attention_heads": 2}])
@pytest.mark.parametrize("build", [tiny_base, tiny_dynamo])
@pytest.mark.parametrize("whole", [True, False])
def test_passes_in_the_loop_have_the_logits_of_torchs_operators(whole, build, changes, half, decoder_with):
    model = saved_in_half(build(**changes)) if half else build(**changes)
    layers, heads = model_shape(model).all_layers, 3 if build is tiny_dynamo else 1
    in_loop, by_torch = decoder_with(model, layers if whole else heads), decoder_with(model, 0)
    assert (in_loop._in_loops is not None) == whole == (in_loop._finals.looped is None)
    assert by_torch._in_loops is by_torch._finals.looped is None
    states = in_loop.new_cache(64), by_torch.new_cache(64)
    rng, other = np.random.default_rng(0), False
    for new in (20, 1, 2, 3, 4, 5, 6, 7, 8, 1):
        tokens = rng.integers(0, 40, new).tolist()
        for heads in range(1, in_loop.heads + 1):
            for queries in sorted({None, 1, new - 1 or 1, new}, key=lambda each: each or 0):
                ours = in_loop.forward(states[0], tokens, heads, queries)
                theirs = by_torch.forward(states[1], tokens, heads, queries)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
                other = other or not torch.equal(ours, theirs)
                for state in states:
                    state.crop(new)
        # What a later pass attends to is the same too.
        for decoder, state in zip((in_loop, by_torch), states, strict=True):
            decoder.forward(state, tokens[:2])
    assert other, "it was another way"


def test_gelu_is_torchs_to_float32s_precision():
    x = np.concatenate([np.linspace(-30, 30, 20_001), [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    found = x.copy()
    loops._gelu(found, np.empty_like(x), np.empty(len(x), np.int32))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=6e-7)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_in_the_logits(wrong):
    model = saved_in_half(tiny_dynamo())
    decoder = Decoder(model)
    with torch.no_grad():
        model.backbone.gpt_neox.embed_in.weight[7] = wrong
    assert not decoder.forward(decoder.new_cache(8), [7]).isfinite().any()


def test_layers_that_the_loop_cannot_do_are_left_to_torch(decoder_with, monkeypatch):
    """Layers of another activation or too large or in 8 bits are left to torch."""
    relu = Decoder(tiny_dynamo(hidden_act="relu"))
    assert relu._in_loops is relu._finals.looped is None
    model = saved_in_half(tiny_dynamo())
    if torch.backends.quantized.supported_engines.count("fbgemm"):
        assert not isinstance(Decoder(model, weights="int8")._in_loops, LoopedLayers)
    layers, each = model_shape(model).all_layers, model_shape(model).layer
    copies = {}
    for count in (layers, layers - 1, 3, 2):
        decoder = decoder_with(model, count)
        assert (decoder._in_loops is not None) == (count == layers)
        assert (decoder._finals.looped is not None) == (3 <= count < layers)
        monkeypatch.setattr(shape, "LARGEST_LOOP", count * each.matrix_parameters)
        copies[count] = sum(copies_of(model)[0].values())
    assert copies[layers - 1] == copies[3] == copies[2] + 3 * each.looped_bytes()
    embedding = [model_shape(model).embedding_copy_bytes(looped) for looped in (False, True)]
    assert copies[layers] == copies[2] + layers * each.looped_bytes() + embedding[1] - embedding[0]


def test_a_processor_that_does_not_widen_halves_is_spared_the_loop(monkeypatch):
    old = SimpleNamespace(**kernels.loops()._asdict() | {"widens_halves": lambda: False})
    monkeypatch.setattr(kernels, "loops", lambda: old)
    decoder = Decoder(saved_in_half(tiny_dynamo()))
    assert decoder._in_loops is decoder._finals.looped is None
    assert decoder.forward(decoder.new_cache(8), [1, 2]).isfinite().all()


def test_several_lanes_are_left_to_torch_and_agree():
    decoder = Decoder(saved_in_half(tiny_dynamo()))
    alone, batch = decoder.new_cache(16), decoder.new_batch(2, 16)
    expected = [decoder.forward(alone, each) for each in ([1, 2], [3])]
    for lane in batch.rows:
        decoder.forward(lane, [1, 2])
    found = decoder.forward_batch(batch, [[3], [3]])
    torch.testing.assert_close(found[:, 0], expected[1], rtol=1e-4, atol=1e-5)
