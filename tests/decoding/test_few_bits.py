"""Packed copies in 8 and 4 bits: near the model's own weights, within bounds of rounding."""

import copy

import numpy as np
import pytest
import torch
from bases import ids, new_base, with_heads
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT, tokens_of
from torch import nn

from dynamo import Engine, SamplingOptions, load
from dynamo.data.prompts import read_prompts
from dynamo.decoding import few_bits, packed
from dynamo.decoding.decoder import Decoder
from dynamo.model import architecture_of

WEIGHTS = ("int8", "int4")


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_product_is_that_of_the_rounded_weights_whatever_is_read_beside_a_row(weights, rows):
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(48, 96) + 0.5, torch.randn(48), torch.randn(rows, 96)
    weight[5] = 0.25
    kept = as_kept(weight, weights)
    # Half a step, and what 8 bits of the scale and 11 of the least number make of it.
    steps = {"int8": weight.abs().amax(dim=1) / 127, "int4": (weight.amax(dim=1) - weight.amin(dim=1)) / 15}
    assert ((kept - weight).abs().amax(dim=1) <= 0.6 * steps[weights] + 2**-9).all()
    assert not torch.equal(kept, weight)
    for shift in (None, bias):
        multiply = packed.matrix_product(weights, weight, shift)
        expected = nn.functional.linear(x, kept, shift)
        off = (multiply(x) - expected).abs()
        together, most = {"int8": (96, 32767), "int4": (16, 127)}[weights]  # numbers of x that share a scale
        steps_of_x = x.unflatten(1, (-1, together)).abs().amax(dim=-1) / most
        least = steps_of_x @ kept.abs().unflatten(1, (-1, together)).sum(dim=-1).T  # half a step, and sums
        assert (off <= least + 1e-5).all(), "activations keep 16 bits, or 8 by 16 of them"
        # A lone row's few sums of floats may be taken in another order.
        torch.testing.assert_close(multiply(x)[-1:], multiply(x[-1:]), atol=2e-5, rtol=0)


def as_kept(weight, weights):
    """What a product in so many bits multiplies by."""
    if weights == "int8":
        bits, scales = few_bits.in_rows(weight)
        return bits * scales[:, None]
    bits, *grid = few_bits.in_groups(weight)
    scales, least = (each.repeat_interleave(few_bits.GROUP, dim=1) for each in grid)
    return bits * scales + least


def test_weights_of_a_q4_1_file_get_its_own_bits_back():
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) + 0.3
    kind = gguf.GGMLQuantizationType.Q4_1
    stored = gguf.quantize(weight.numpy(), kind)
    nibbles = stored.reshape(64, 3, 20)[..., 4:]  # behind each group's scale and least number
    bits = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(64, 96)
    read = torch.tensor(gguf.dequantize(stored, kind)).half().float()
    assert np.array_equal(few_bits.in_groups(read)[0].numpy(), bits)


def rounded(model, weights):
    """A copy whose own weights are those that so many bits keep, the output's always 8."""
    model = copy.deepcopy(model)
    base = getattr(model, "backbone", model)
    heads = getattr(model, "token_heads", ())
    layers = [*architecture_of(model).layers(base), *(layer for head in heads for layer in head.layers)]
    with torch.no_grad():
        for each in (module for layer in layers for module in layer.modules()):
            if isinstance(each, nn.Linear):
                each.weight.copy_(as_kept(each.weight, weights))
        output = base.get_output_embeddings()
        output.weight = nn.Parameter(as_kept(output.weight, "int8"))  # tied no longer
    return model


def divergence(log_p, log_q):
    """Nats a token, of each head: (heads, positions, vocab) -> (heads,)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean(dim=-1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ["neox", "llama"])
@pytest.mark.parametrize("heads", [1, 3])
def test_cached_decoding_in_few_bits_has_the_distribution_of_the_rounded_weights(heads, kind, weights):
    base = new_base(kind, intermediate_size=64)
    model = base if heads == 1 else with_heads(base, num_token_heads=heads)
    text = ids(40).tolist()

    def log_p(decoder, *sizes):
        state, logits = decoder.new_cache(len(text)), []
        for size in sizes:
            chunk = text[state.length : state.length + size]
            logits.append(decoder.forward(state, chunk, queries=size))
        return torch.cat(logits, dim=1).log_softmax(dim=-1)

    expected = log_p(Decoder(rounded(model, weights), packed=False), len(text))
    few = Decoder(model, weights=weights)
    assert (few._in_loops is not None) == (kind == "llama" and few_bits.in_loops(weights))
    at_once, in_chunks = log_p(few, len(text)), log_p(few, 4, *[1, 2, 3] * 6)
    assert (divergence(expected, at_once) <= 0.01).all()
    assert (divergence(at_once, in_chunks) <= 1e-3).all()
    if weights == "int4":  # 8 bits are as near as bfloat16
        own = log_p(Decoder(model), len(text))
        assert (divergence(expected, own) > 2 * divergence(expected, at_once)).all()


@pytest.fixture(scope="module")
def pair():
    return load("embedded")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_and_loss_of_the_embedded_pair_stay_near_its_own(pair, weights):
    """Teacher-forced on DynaMo's own replies, three positions at a time as it decodes them."""
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    own, few = Decoder(pair.dynamo), Decoder(pair.dynamo, weights=weights)
    losses, divergences = [], []
    for seed, prompt in enumerate(read_prompts(None, pair.tokenizer, 4)):
        text = prompt + [t for step in engine.stream(prompt, None, 48, seed) for t in step.tokens]
        both = []
        for decoder in (own, few):
            state = decoder.new_cache(len(text))
            chunks = [prompt, *(text[i : i + 3] for i in range(len(prompt), len(text) - 1, 3))]
            logits = [decoder.forward(state, chunk, queries=len(chunk)) for chunk in chunks]
            both.append(torch.cat(logits, dim=1)[:, : len(text) - 1].log_softmax(dim=-1))
        places = torch.arange(len(text) - 1), torch.tensor(text[1:])
        losses.append([-log_p[0][places].mean().item() for log_p in both])
        divergences.append(divergence(*both))
    full, small = np.mean(losses, axis=0)
    assert small != full and abs(small - full) < 0.01
    mean = torch.stack(divergences).mean(dim=0)
    assert (mean > 0).all() and (mean < 0.01).all(), "nats of each head, whose entropy is of the order of 1"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_streams_and_batches_run_on_few_bits_and_leave_the_models_weights_alone(weights):
    model = tiny_dynamo()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine, options = Engine(model, weights=weights), SamplingOptions(threshold=0.0)
    alone = list(engine.stream(PROMPT, options, 20))
    assert sum(len(record.tokens) for record in alone) == 20 and max(r.order for r in alone) > 1
    rows = [row for row, _ in engine.stream_batch([PROMPT, PROMPT[:2]], options, 20)]
    assert set(rows) == {0, 1}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_exact_mode_in_few_bits_writes_the_text_of_the_own_loop_in_as_many(weights):
    model, greedy = tiny_dynamo(), SamplingOptions(temperature=0.0)
    own = tokens_of(Engine(model.to_base(), weights=weights).stream(PROMPT, greedy, 24))
    exact = Engine(model, weights=weights).stream(PROMPT, SamplingOptions(temperature=0.0, exact=True), 24)
    assert tokens_of(exact) == own


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: tiny_base().to(torch.bfloat16), "int8"),
        (lambda: tiny_dynamo(head_source="last"), "int8"),
        (lambda: tiny_base().to(torch.bfloat16), "int4"),
        (lambda: tiny_base(intermediate_size=48), "int4"),
    ],
)
def test_models_that_cannot_have_few_bits_are_refused(make, weights):
    with pytest.raises(ValueError, match=f"weights: {weights} is for"):
        Engine(make(), weights=weights)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights: "):
        Engine(tiny_base(), weights="int2")
