import numpy as np
import pytest
import torch
from bases import BASES, ids, new_base, with_heads

from dynamo import Engine, SamplingOptions
from dynamo.decoding import static
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.static import StaticDecoder, span_of
from dynamo.sampling import candidates

PROMPT = ids(9, seed=4).tolist()


@pytest.fixture
def short_spans(monkeypatch):
    """Several steps within the few positions of a tiny model."""
    monkeypatch.setattr(static, "LEAST_SPAN", 16)


def test_steps_hold_the_positions_and_end_with_the_cache():
    assert [span_of(stop, 1000) for stop in (1, 256, 257, 512, 900, 1000)] == [256, 256, 512, 512, 1000, 1000]
    assert span_of(100, 128) == 128


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.usefixtures("short_spans")
def test_fixed_shapes_give_the_ordinary_passes_logits(kind, heads):
    base = new_base(kind)
    model = base if heads == 1 else with_heads(base, num_token_heads=heads)
    ours, ordinary = StaticDecoder(model), Decoder(model, packed=False)
    states = ours.new_cache(80), ordinary.new_cache(80)
    with torch.inference_mode():
        states[0].cache.fill_(3.0)  # what an earlier text left behind
    rng = np.random.default_rng(0)
    chunks = [(new, queries) for new in (1, 2, 3) for queries in range(1, new + 1)]
    for new, queries in [(9, 1), *chunks, *chunks, (4, 4)]:
        tokens = rng.integers(3, 97, new).tolist()
        found = ours.forward(states[0], tokens, queries=queries)
        expected = ordinary.forward(states[1], tokens, queries=queries)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
        for state in states:
            state.crop(queries - 1)  # as exact mode takes back what it rejects
    assert {shape[3] for shape in states[0].passes} == {16, 32, 64}
    assert len(states[0].passes) < 20 and not states[1].passes


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.usefixtures("short_spans")
def test_streams_are_the_same_text_with_and_without(kind, exact):
    model = with_heads(new_base(kind), num_token_heads=3)
    engine, other = Engine(model), Engine(model)
    other._decoder = StaticDecoder(model)
    options = SamplingOptions(threshold=0.05, top_k=6, exact=exact)
    for seed in range(3):
        runs = [[step.tokens for step in each.stream(PROMPT, options, 40, seed)] for each in (engine, other)]
        assert runs[0] == runs[1]
    assert max(map(len, runs[0])) > 1, "chunks of several tokens were read"


def test_a_pass_that_cannot_be_captured_leaves_the_ordinary_one(monkeypatch, caplog):
    model = with_heads(new_base("llama"), num_token_heads=3)
    ours, ordinary = StaticDecoder(model), Decoder(model, packed=False)

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(static.StaticPass, "__call__", refuse)
    states = ours.new_cache(40), ordinary.new_cache(40)
    for tokens in (PROMPT, [5], [6, 7]):
        found, expected = ours.forward(states[0], tokens), ordinary.forward(states[1], tokens)
        torch.testing.assert_close(found, expected)
    assert caplog.text.count("cannot be captured") == 1


def test_one_copy_brings_logits_and_ids():
    values, ids_ = torch.topk(torch.randn(3, 70, generator=torch.Generator().manual_seed(0)), 20)

    class Elsewhere(torch.Tensor):
        is_cpu = False

    for dtype in (torch.float32, torch.bfloat16):
        there = values.to(dtype)
        best, ids = candidates._copied(there.as_subclass(Elsewhere), ids_)
        assert np.array_equal(best, there.float().numpy()) and np.array_equal(ids, ids_.numpy())
        assert ids.dtype == np.int64
