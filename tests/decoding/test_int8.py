"""Packed copies in 8 bits: near the model's own weights, by bounds that come from the rounding itself."""

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT

from dynamo import Engine, SamplingOptions, load
from dynamo.data.prompts import read_prompts
from dynamo.decoding import packed
from dynamo.decoding.decoder import Decoder

pytestmark = pytest.mark.skipif(not packed.has_int8(), reason="this machine has no kernel for it")


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_product_is_off_by_no_more_than_rounding_both_factors_can_make_it(rows):
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(70, 33), torch.randn(70), 3 * torch.randn(rows, 33) + 1
    weight[5] = 0.0
    weight_step = weight.abs().amax(dim=1) / 127
    x_step = (x.max() - x.min()) / 127  # 7 bits, and as much again for the zero that must be hit
    bound = x_step * weight.abs().sum(dim=1) + (weight_step / 2) * (x.abs().sum(dim=1)[:, None] + 33 * x_step)
    for shift in (None, bias):
        expected = torch.nn.functional.linear(x, weight, shift)
        off = (packed.int8_product(weight, shift)(x) - expected).abs()
        assert (off <= bound + 1e-4).all()
        assert (off[:, 5] <= 1e-6).all() and off.max() > 0


@pytest.fixture(scope="module")
def pair():
    return load("embedded")


def test_logits_and_loss_of_the_embedded_pair_stay_near_its_own(pair):
    """Teacher-forced on DynaMo's own replies, three positions at a time as it decodes them."""
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    own, eight = Decoder(pair.dynamo), Decoder(pair.dynamo, weights="int8")
    losses, divergence = [], []
    for seed, prompt in enumerate(read_prompts(None, pair.tokenizer, 4)):
        text = prompt + [t for step in engine.stream(prompt, None, 48, seed) for t in step.tokens]
        both = []
        for decoder in (own, eight):
            state = decoder.new_cache(len(text))
            chunks = [prompt, *(text[i : i + 3] for i in range(len(prompt), len(text) - 1, 3))]
            logits = [decoder.forward(state, chunk, queries=len(chunk)) for chunk in chunks]
            both.append(torch.cat(logits, dim=1)[:, : len(text) - 1].log_softmax(dim=-1))
        places = torch.arange(len(text) - 1), torch.tensor(text[1:])
        losses.append([-log_p[0][places].mean().item() for log_p in both])
        divergence.append((both[0].exp() * (both[0] - both[1])).sum(dim=-1).mean(dim=1))
    full, small = np.mean(losses, axis=0)
    assert small != full and abs(small - full) < 0.01
    mean = torch.stack(divergence).mean(dim=0)
    assert (mean > 0).all() and (mean < 0.01).all(), "nats of each head, whose entropy is of the order of 1"


def test_streams_and_batches_run_on_8_bits_and_leave_the_models_weights_alone():
    model = tiny_dynamo()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine, options = Engine(model, weights="int8"), SamplingOptions(threshold=0.0)
    alone = list(engine.stream(PROMPT, options, 20))
    assert sum(len(record.tokens) for record in alone) == 20 and max(r.order for r in alone) > 1
    rows = [row for row, _ in engine.stream_batch([PROMPT, PROMPT[:2]], options, 20)]
    assert set(rows) == {0, 1}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_base().to(torch.bfloat16),
        lambda: tiny_dynamo(head_source="last"),
    ],
)
def test_models_that_cannot_have_int8_are_refused(make):
    with pytest.raises(ValueError, match="weights: "):
        Engine(make(), weights="int8")


def test_unknown_weights_and_exact_mode_on_int8_are_refused():
    with pytest.raises(ValueError, match="weights: "):
        Engine(tiny_base(), weights="int4")
    with pytest.raises(ValueError, match="exact: "):
        Engine(tiny_dynamo(), weights="int8").stream(PROMPT, SamplingOptions(exact=True))
