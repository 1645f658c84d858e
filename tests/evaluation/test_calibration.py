import json

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from scipy import stats

from dynamo import CooccurrenceTable, DynamoForCausalLM, SamplingOptions
from dynamo.evaluation import calibration
from dynamo.evaluation.calibration import Bin, Reliability, base_agrees

DOCUMENTS = [np.random.default_rng(size).integers(5, 300, size) for size in (30, 12, 21)]
OPTIONS = SamplingOptions(temperature=0.5, top_k=20)


def greedy(base, ids, count):
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(base(torch.tensor([ids])).logits[0, -1].argmax())]
    return tuple(ids[-count:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_base_agrees_equals_a_greedy_continuation_token_by_token(attention):
    """Right chunks, chunks that go wrong at each of their tokens, and chunks that follow the document."""
    base, document = tiny_base(attn_implementation=attention), DOCUMENTS[0].copy()
    document[11] = greedy(base, document[:11].tolist(), 1)[0]  # here the text is what the base would write
    chunks, expected = [], []
    for place in (0, 4, 10, 17, 29):
        for count in (2, 3):
            right = greedy(base, document[: place + 1].tolist(), count)
            chunks.append((place, right))
            expected.append(True)
            for wrong in range(count):
                spoiled = list(right)
                spoiled[wrong] = (spoiled[wrong] + 1) % 300
                chunks.append((place, tuple(spoiled)))
                expected.append(False)
    order = np.random.default_rng(3).permutation(len(chunks))
    agreed = base_agrees(base, document, [chunks[i] for i in order])
    assert agreed == [expected[i] for i in order]
    assert base_agrees(base, document, []) == []


def test_curves_equal_a_count_over_every_position_by_hand():
    """No mask, and more positions asked for than there are: the dense product at each of them.

    A vocabulary of four, so that chance makes some chunks right.
    """
    base = tiny_base(seed=1, vocab_size=4)
    model = DynamoForCausalLM.from_base(base, num_token_heads=3).eval()
    random = np.random.default_rng(3)
    documents = [random.integers(0, 4, 60) for _ in range(3)]
    options = SamplingOptions(temperature=0.5, top_k=3)
    curves = calibration.measure_calibration(
        model, None, base, documents, options, orders=(2, 3), positions=10**6, per_document=100
    )
    assert [(c.order, c.event) for c in curves] == [(2, "text"), (2, "base"), (3, "text"), (3, "base")]
    for order in (2, 3):
        rows = []
        for document in documents:
            with torch.no_grad():
                logits = model(torch.from_numpy(document)[None]).head_logits[:, 0].double()
            for place in range(len(document) - 3):
                top = logits[:order, place].topk(3)
                confidence = (top.values / 0.5).softmax(-1)[:, 0].prod().item()
                cell = tuple(top.indices[:, 0].tolist())
                follows = cell == tuple(document[place + 1 : place + 1 + order].tolist())
                rows.append(
                    (confidence, follows, cell == greedy(base, document[: place + 1].tolist(), order))
                )
        for column, event in ((1, "text"), (2, "base")):
            curve = next(c for c in curves if (c.order, c.event) == (order, event))
            assert curve.count == len(rows) and curve.without_joint == 0
            assert sum(b.right for b in curve.bins) == sum(row[column] for row in rows)
            assert sum(b.right for b in curve.bins) > 0
            for each in curve.bins:
                here = [row for row in rows if each.low < row[0] <= each.high]
                assert each.count == len(here) and each.right == sum(row[column] for row in here)
                if here:
                    assert each.confidence == pytest.approx(np.mean([row[0] for row in here]), abs=1e-4)


def test_positions_whose_candidates_never_occur_together_are_counted_apart():
    table = CooccurrenceTable.count([np.array([1, 2, 1, 2, 1])], order=3, vocab_size=300)
    curves = calibration.measure_calibration(
        tiny_dynamo(), table, tiny_base(), DOCUMENTS, SamplingOptions(top_k=5)
    )
    everywhere = sum(min(20, len(document) - 3) for document in DOCUMENTS)
    assert {curve.count + curve.without_joint for curve in curves} == {everywhere}
    assert curves[2].without_joint > 0


def test_no_more_positions_than_asked_for_and_the_same_every_time():
    once, again = (
        calibration.measure_calibration(
            tiny_dynamo(), None, tiny_base(), DOCUMENTS, OPTIONS, positions=25, seed=4
        )
        for _ in range(2)
    )
    assert once == again and {curve.count for curve in once} == {25}


def test_expected_calibration_error_by_hand():
    bins = (Bin(0.0, 0.5, 10, 0.4, 1, (0.0, 1.0)), Bin(0.5, 1.0, 30, 0.8, 27, (0.0, 1.0)))
    curve = Reliability(2, "text", bins, 3)
    assert curve.expected_calibration_error == pytest.approx((10 * 0.3 + 30 * 0.1) / 40)
    written = json.loads(json.dumps(curve.to_json()))
    assert written["bins"][1]["accuracy"] == pytest.approx(0.9)
    assert written["positions"] == 40 and written["without_joint"] == 3
    assert Reliability.from_json(written) == curve


def test_bins_carry_wilson_intervals():
    curve = calibration.measure_calibration(tiny_dynamo(), None, tiny_base(), DOCUMENTS, OPTIONS)[0]
    for each in (b for b in curve.bins if b.count):
        interval = stats.binomtest(each.right, each.count).proportion_ci(0.95, method="wilson")
        assert each.interval == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(
    "documents, orders, words",
    [
        (DOCUMENTS, (2, 4), "orders: "),
        (DOCUMENTS, (1,), "orders"),
        ([np.array([5, 6, 7])], (3,), "none has more than 3"),
    ],
)
def test_bad_input_is_refused(documents, orders, words):
    with pytest.raises(ValueError, match=words):
        calibration.measure_calibration(tiny_dynamo(), None, tiny_base(), documents, orders=orders)


def test_a_correlator_that_says_nothing_leaves_the_curves_as_they_are():
    """B is zero at first, and with every token a candidate none of the head's mass is missing."""
    model = tiny_dynamo(correlator_rank=4)
    options = SamplingOptions(top_k=300, correction="none")
    given = SamplingOptions(top_k=300, correction="correlator")
    plain, corrected = (
        calibration.measure_calibration(
            model, None, model.to_base(), DOCUMENTS, each, orders=(2,), positions=9
        )
        for each in (options, given)
    )
    for one, other in zip(plain, corrected, strict=True):
        assert [each.right for each in one.bins] == [each.right for each in other.bins]
        assert [each.confidence for each in one.bins] == pytest.approx(
            [each.confidence for each in other.bins]
        )
