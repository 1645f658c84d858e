"""PPL_d against a count by hand over every position, with the oracle as the sampler."""

import functools
import json
import math

import numpy as np
import oracle
import pytest
import torch
from command_line import run
from conftest import DIALOGUES, tiny_base, tiny_dynamo
from tables import table_for

from dynamo import CooccurrenceTable, DynamoForCausalLM, SamplingOptions
from dynamo.data.text import encode_turns
from dynamo.evaluation.perplexity import measure_dynamic_perplexity
from dynamo.training.trainer import save_model

RANDOM = np.random.default_rng(5)
DOCUMENTS = [RANDOM.integers(0, 12, size) for size in (26, 9, 14)]
OPTIONS = SamplingOptions(temperature=0.8, top_k=6)
EVERYWHERE = {"positions": 10**6, "per_document": 100}


@pytest.fixture(scope="module")
def model():
    return DynamoForCausalLM.from_base(tiny_base(seed=3, vocab_size=12), num_token_heads=3).eval()


@pytest.fixture(scope="module")
def table():
    return CooccurrenceTable.count(DOCUMENTS, order=3, vocab_size=12)


def test_ppl_d_equals_a_count_by_hand_at_every_position(model, table):
    thresholds = (0.2, 0.45, 0.6)
    measured = measure_dynamic_perplexity(
        model, table, DOCUMENTS, thresholds, OPTIONS, special_ids=(0,), **EVERYWHERE
    )
    ratio = functools.cache(lambda ids: float(table.ratio(ids)))
    for threshold, found in zip(thresholds, measured, strict=True):
        nats, tokens, orders = 0.0, 0, []
        for document in DOCUMENTS:
            with torch.no_grad():
                logits = model(torch.from_numpy(document)[None]).head_logits[:, 0].double()
            for t in range(len(document) - 3):
                options = oracle.OracleOptions(threshold=threshold, temperature=0.8, top_k=6)
                order = oracle.choose(
                    logits[:, t].numpy(), document[: t + 1].tolist(), ratio,
                    options, 0.5, frozenset([0]),
                ).order  # fmt: skip
                log_p = logits[:, t].log_softmax(-1)
                nats -= sum(float(log_p[n, document[t + 1 + n]]) for n in range(order))
                tokens += order
                orders.append(order)
        assert found.ppl.value == pytest.approx(math.exp(nats / tokens))
        assert found.tokens_per_place.value == pytest.approx(tokens / len(orders))
        assert found.share_by_order == {str(m): orders.count(m) / len(orders) for m in sorted(set(orders))}
        assert found.places == len(orders) and len(set(orders)) > 1


def test_at_the_ends_it_is_the_first_heads_and_all_heads_own(model):
    """Without a mask threshold 0 scores all three heads and threshold 1 the first, at the same places."""
    zero, one = measure_dynamic_perplexity(model, None, DOCUMENTS, (0.0, 1.0), OPTIONS, **EVERYWHERE)
    nats = np.zeros(3)
    for document in DOCUMENTS:
        with torch.no_grad():
            log_p = model(torch.from_numpy(document)[None]).head_logits[:, 0].log_softmax(-1)
        for t in range(len(document) - 3):
            nats -= [float(log_p[n, t, document[t + 1 + n]]) for n in range(3)]
    means = nats / zero.places
    assert one.ppl.value == pytest.approx(math.exp(means[0]), rel=1e-5)
    assert zero.ppl.value == pytest.approx(math.exp(means.mean()), rel=1e-5)


def test_intervals_are_over_documents_and_hold_the_value(model):
    found = measure_dynamic_perplexity(model, None, DOCUMENTS, (0.4,), OPTIONS, **EVERYWHERE)[0]
    assert found.ppl.low < found.ppl.value < found.ppl.high
    alone = measure_dynamic_perplexity(model, None, DOCUMENTS[:1], (0.4,), OPTIONS, **EVERYWHERE)[0]
    assert alone.ppl.low == pytest.approx(alone.ppl.high), "one document says nothing about others"
    json.dumps(found.to_json())


def test_no_more_places_than_asked_for(model):
    found = measure_dynamic_perplexity(model, None, DOCUMENTS, (0.5,), OPTIONS, positions=7, per_document=5)[
        0
    ]
    assert found.places == 7


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"documents": [np.arange(3)]}, "documents"),
        ({"thresholds": (1.5,)}, "threshold"),
        ({"options": SamplingOptions(exact=True)}, "exact"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(model, changes, named):
    arguments = {"documents": DOCUMENTS, "thresholds": (0.5,), "options": OPTIONS, **changes}
    with pytest.raises(ValueError, match=named):
        measure_dynamic_perplexity(model, None, **arguments)


def test_perplexity_adds_ppl_d_where_thresholds_are_named(tmp_path, capsys, tokenizer):
    model, table = tiny_dynamo(seed=2), table_for(tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    table.save(tmp_path / "model" / "cooccurrence.safetensors")
    data = tmp_path / "dialogues.jsonl"
    data.write_text("\n".join(json.dumps({"messages": turns}) for turns in DIALOGUES))
    arguments = ["perplexity", "--data", data, "--model", tmp_path / "model"]
    code, result = run(capsys, *arguments, "--thresholds", 0, 0.5, "--positions", 8, "--top-k", 20)
    assert code == 0
    documents = [np.array(encode_turns(tokenizer, turns).ids) for turns in DIALOGUES]
    expected = measure_dynamic_perplexity(
        model, table, documents, (0, 0.5), SamplingOptions(top_k=20), 8, special_ids=tokenizer.all_special_ids
    )
    found = [(row["ppl"]["value"], row["places"]) for row in result["dynamic"]]
    assert found == [(pytest.approx(each.ppl.value, rel=1e-5), 8) for each in expected]
    code, result = run(capsys, *arguments)
    assert code == 0 and result["dynamic"] == []
    assert run(capsys, *arguments, "--thresholds", 2)[0] == 2
