from pathlib import Path

import numpy as np
import pytest
import torch
from bases import ids, new_base, with_heads

from dynamo.decoding.decoder import Decoder
from dynamo.evaluation import few_bits

ROOT = Path(__file__).parents[2]


def test_divergence_and_loss_are_those_of_both_decoders_distributions():
    model = with_heads(new_base("llama", intermediate_size=64), num_token_heads=2)
    documents = [ids(21, seed=1).numpy(), ids(30, seed=2).numpy()]
    found = few_bits.measure_few_bits(model, documents, "int4", cut=24)
    sums = np.zeros((2, 4))
    for document in documents:
        tokens = document[:24].tolist()
        p, q = (
            decoder.forward(decoder.new_cache(24), tokens, queries=len(tokens)).log_softmax(-1).double()
            for decoder in (Decoder(model), Decoder(model, weights="int4"))
        )
        for head in range(2):
            places = range(len(tokens) - head - 1)
            for at in places:
                target = tokens[at + head + 1]
                kl = torch.nn.functional.kl_div(q[head, at], p[head, at], log_target=True, reduction="sum")
                own, few = -p[head, at, target], -q[head, at, target]
                sums[head] += [kl, 1, few - own, own]
    assert [(each.head, each.weights) for each in found] == [(1, "int4"), (2, "int4")]
    for each, (kl, tokens, rise, own) in zip(found, sums, strict=True):
        assert each.divergence.value == pytest.approx(kl / tokens, rel=0.05) and kl > 0
        assert each.rise.value == pytest.approx(rise / own, rel=0.05, abs=1e-4)


def test_the_page_and_the_document_say_what_was_measured():
    measured = few_bits.read_few_bits(ROOT / "assets" / "models" / "smollm2" / "few_bits.json")
    text = (ROOT / "docs" / "smollm2.md").read_text("utf-8")
    for weights in ("int8", "int4"):
        heads = [each for each in measured if each.weights == weights]
        cells = [f"{each.divergence.value:.4f} | {100 * each.rise.value:+.2f} %" for each in heads]
        assert len(cells) == 3 and f"| {weights} | {' | '.join(cells)} |" in text
