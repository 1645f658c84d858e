import math

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo

from dynamo import Engine, SamplingOptions
from dynamo.evaluation import perplexity, replies
from dynamo.evaluation.audit import Audit, audit
from dynamo.pipelines import embedded

PROMPT, REPLY = [5, 6, 7], [8, 250, 9, 3]


def test_audit_equals_a_loop_over_positions():
    base = tiny_base()
    with torch.no_grad():
        log_p = base(torch.tensor([PROMPT + REPLY])).logits[0].double().log_softmax(-1)
    result = audit(base, PROMPT, REPLY)
    for i, token in enumerate(REPLY):
        row = log_p[len(PROMPT) + i - 1]
        assert result.log_probabilities[i] == pytest.approx(row[token].item(), abs=1e-4)
        assert result.ranks[i] == int((row > row[token]).sum())
    assert result.nats_per_token == pytest.approx(-sum(result.log_probabilities) / 4)


def test_audit_counts_tokens_below_one_percent():
    log_p = (math.log(0.5), math.log(0.009), math.log(0.011), math.log(0.001))
    assert Audit(log_p, (0, 1, 2, 3)).unlikely_share == 0.5
    assert audit(tiny_base(), PROMPT, []) == Audit((), ()) and Audit((), ()).unlikely_share == 0.0


def test_perplexities_by_hand():
    measured = perplexity.Perplexity(nats=(2 * math.log(4), 3 * math.log(9)), targets=(2, 3), text_bytes=8)
    assert measured.ppl == pytest.approx([4, 9])
    assert measured.joint_ppl == pytest.approx([4, 6])
    assert measured.bits_per_byte == pytest.approx(2 * 2 / 8)


def test_bytes_are_counted_up_to_the_cut():
    sizes = np.zeros(300, dtype=int)
    sizes[10:20] = 3
    documents = [np.array([1, 10, 11, 2]), np.array([12, 13, 14, 15, 16])]
    measured = perplexity.measure_perplexity(tiny_dynamo(), documents, sizes, cut=4)
    assert measured.text_bytes == 6 + 12 and measured.targets == (6, 4, 2)


def test_perplexities_are_summed_by_hand_with_intervals_over_documents():
    model = tiny_dynamo()
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 300, n) for n in (30, 7, 4, 19, 40, 5)]
    sums = perplexity.document_sums(model, documents, cut=25)
    for document, (nats, targets) in zip(documents, sums, strict=True):
        ids = document[:25]
        log_p = model(torch.tensor(ids[None])).head_logits[:, 0].detach().double().log_softmax(-1)
        for head in range(3):
            scored = [float(log_p[head, t, ids[t + head + 1]]) for t in range(len(ids) - head - 1)]
            assert targets[head] == len(scored) and nats[head] == pytest.approx(-sum(scored), rel=1e-5)
    measured = perplexity.measure_perplexity(model, documents, np.ones(300), cut=25)
    assert measured.intervals.keys() == {"PPL_1", "PPL_2", "PPL_3", "PPL_1:2", "PPL_1:3"}
    for name, value in (("PPL_2", measured.ppl[1]), ("PPL_1:3", measured.joint_ppl[2])):
        each = measured.intervals[name]
        assert each.value == pytest.approx(value) and each.low < value < each.high
    pooled = [sums[rng.integers(0, 6, 6)].sum(axis=0) for _ in range(4000)]
    by_hand = np.percentile([np.exp(nats[1] / targets[1]) for nats, targets in pooled], [2.5, 97.5])
    second = measured.intervals["PPL_2"]
    assert (second.low, second.high) == (
        pytest.approx(by_hand[0], rel=0.1),
        pytest.approx(by_hand[1], rel=0.1),
    )


def test_replies_are_pooled_over_prompts():
    model = tiny_dynamo()
    engine, base = Engine(model), model.to_pythia()
    prompts = [PROMPT, PROMPT[:1]]
    measured = replies.audited_replies(
        engine, prompts, SamplingOptions(threshold=0.0), base, max_new_tokens=8, seed=3
    )
    expected = [
        [
            token
            for step in engine.stream(prompt, SamplingOptions(threshold=0.0), 8, seed)
            for token in step.tokens
        ]
        for prompt, seed in zip(prompts, (3, 4), strict=True)
    ]
    assert [run.tokens for run in measured.runs] == expected
    summary = measured.summary()
    assert summary["share_by_order"] == {"3": 1.0} and summary["tokens"] == sum(map(len, expected))
    passes = sum(-(-len(text) // 3) for text in expected)
    assert summary["passes"] == passes
    assert summary["tokens_per_forward"] == pytest.approx(summary["tokens"] / passes)
    audits = [audit(base, *pair) for pair in zip(prompts, expected, strict=True)]
    log_p = [p for each in audits for p in each.log_probabilities]
    assert summary["nats_per_token_under_base"] == pytest.approx(-sum(log_p) / len(log_p))


def test_card_states_the_reports_numbers():
    measured = {"bits_per_byte": 0.81234, "mean_nats": [1.5, 2.25, 3.125]}
    reply = {
        "tokens_per_forward": 2.468,
        "share_by_order": {"1": 0.2, "2": 0.05, "3": 0.75},
        "nats_per_token_under_base": 1.01,
        "share_below_1_percent": 0.017,
    }
    report = {
        "development": {"base": measured, "dynamo": measured},
        "replies": {"base": reply, "dynamo at 0.5": reply},
        "commands": ["python -m dynamo train"],
        "samples": [["Hello", " Hi."]],
    }
    card = embedded.card("dynamo", report)
    for words in ("0.812 bits per byte", "1.500, 2.250, 3.125", "| 0.5 | 2.47 | 20 / 5 / 75 | 1.01 | 1.7 % |",
                  "CC BY-SA", "Not a Pythia checkpoint", "copies of the base", "*Hello* → Hi."):  # fmt: skip
        assert words in card
