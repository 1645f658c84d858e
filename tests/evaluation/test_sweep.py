import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import tiny_dynamo

from dynamo import Engine, Pair, SamplingOptions
from dynamo.common.statistics import Estimate
from dynamo.evaluation import calibration
from dynamo.evaluation.audit import audit
from dynamo.evaluation.sweep import QUALITY, Point, sweep, sweep_replies
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.sampling.records import StepRecord
from dynamo.trace.recorder import RunCounts

PROMPTS = [[5, 6, 7], [8, 9], [250, 4, 11, 12]]


@pytest.fixture(scope="module")
def pair():
    model = tiny_dynamo()
    return Pair("tiny", "", model.to_pythia(), model, None, None)


@pytest.fixture(scope="module")
def points(pair):
    return list(sweep(pair, [0.0, 0.2, 1.0], PROMPTS, seeds=2, max_new_tokens=20))


def replies(model, threshold, seeds=2):
    """By prompt and seed, the records of each reply."""
    engine, options = Engine(model), SamplingOptions(threshold=threshold)
    return [[list(engine.stream(p, options, 20, seed)) for seed in range(seeds)] for p in PROMPTS]


def test_points_are_pooled_over_all_replies(pair, points):
    for threshold, point in zip((0.0, 0.2, 1.0), points[1:], strict=True):
        assert point.threshold == threshold
        records = [record for of in replies(pair.dynamo, threshold) for reply in of for record in reply]
        tokens = sum(len(record.tokens) for record in records)
        assert (point.replies, point.tokens, point.passes) == (6, tokens, len(records))
        assert point.tokens_per_forward.value == pytest.approx(tokens / len(records))
        backed_off = [record for record in records if record.backoffs]
        assert point.backoff_rate == pytest.approx(len(backed_off) / len(records))
        assert sum(point.reasons.values()) == sum(len(record.backoffs) for record in records)
        for order, share in point.share_by_order.items():
            assert share == pytest.approx(sum(r.order == int(order) for r in records) / len(records))
    assert points[2].reasons.keys() <= {"3:threshold", "2:threshold", "3:penalty", "2:penalty"}


def test_quality_is_the_bases_opinion_and_the_texts_diversity(pair, points):
    texts = [[RunCounts.fold(reply).tokens for reply in of] for of in replies(pair.dynamo, 0.0)]
    opinions = [audit(pair.base, p, text) for p, of in zip(PROMPTS, texts, strict=True) for text in of]
    count = sum(len(each.ranks) for each in opinions)
    bigrams = [[pair for text in of for pair in pairwise(text)] for of in texts]
    expected = {
        "nats_per_token": -sum(sum(each.log_probabilities) for each in opinions) / count,
        "share_below_1_percent": sum(sum(each.unlikely) for each in opinions) / count,
        "share_outside_top_50": sum(sum(each.outside) for each in opinions) / count,
        "distinct_2": sum(len(set(of)) for of in bigrams) / sum(map(len, bigrams)),
    }
    quality = points[1].quality
    assert set(quality) == set(QUALITY)
    for name, value in expected.items():
        assert quality[name].value == pytest.approx(value)
        assert quality[name].low <= quality[name].value <= quality[name].high
    assert quality["share_outside_top_50"].value > 0, "random heads leave the base's top 50"
    assert 0 <= quality["repetition"].value <= 1


def test_threshold_one_on_the_same_weights_writes_the_bases_text(points):
    base, one = points[0], points[-1]
    assert base.threshold is None and base.share_by_order == {"1": 1.0}
    assert one.quality == base.quality and one.tokens == base.tokens
    assert base.speed_up == Estimate(1.0, 1.0, 1.0)


def test_drift_is_what_a_lane_adds_to_the_bases_own_unlikely_tokens(points):
    base, *others = points
    assert base.drift is None
    shares = [point.quality["share_below_1_percent"].value for point in points]
    for point, share in zip(others, shares[1:], strict=True):
        assert point.drift.value == pytest.approx(share - shares[0])
        assert point.drift.low <= point.drift.value <= point.drift.high
    assert points[-1].drift == Estimate(0.0, 0.0, 0.0), "the same texts: prompts are resampled together"
    written = points[1].to_json()
    assert Point.from_json(written) == points[1]
    del written["drift"]
    assert Point.from_json(written) == replace(points[1], drift=None), "an older file"


class ScriptedEngine:
    """Writes ten tokens, `per_pass` at a time, each pass a tenth of a second; the prompt's takes an hour."""

    def __init__(self, model, table=None, tokenizer=None, weights="own"):
        self._per_pass = 2 if isinstance(model, ScriptedBase) and model.fast else 1

    def stream(self, prompt, options, max_new_tokens, seed=0):
        yield StepRecord((5,) * self._per_pass, self._per_pass, 3600.0, prefill=True)
        for _ in range(10 // self._per_pass - 1):
            yield StepRecord((5,) * self._per_pass, self._per_pass, 0.1)


class ScriptedBase:
    def __init__(self, fast):
        self.fast = fast


def test_speed_up_is_decoding_time_against_the_base_loop(monkeypatch):
    monkeypatch.setattr("dynamo.evaluation.sweep.Engine", ScriptedEngine)
    monkeypatch.setattr("dynamo.evaluation.sweep.audit", lambda base, p, text: audit(base, p, []))
    pair = Pair("scripted", "", ScriptedBase(False), ScriptedBase(True), None, None)
    base, point = sweep(pair, [0.5], PROMPTS)
    assert base.tokens_per_second == pytest.approx(10)
    assert point.tokens_per_second == pytest.approx(20)
    assert point.speed_up.value == pytest.approx(2) and point.tokens_per_forward.value == 2


def test_progress_is_told_of_every_reply_and_can_cancel(pair):
    calls = []
    list(sweep(pair, [0.3, 1.0], PROMPTS, seeds=1, max_new_tokens=4, progress=lambda: calls.append(1)))
    assert len(calls) == sweep_replies(2, len(PROMPTS), 1) == 15

    def cancel():
        calls.append(1)
        if len(calls) == 20:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(sweep(pair, [0.3, 1.0], PROMPTS, seeds=1, max_new_tokens=4, progress=cancel))
    assert len(calls) == 20


def test_replies_decoded_together_are_the_same(pair, monkeypatch):
    """Replies decoded together are the same and only the first of each prompt is timed."""
    alone = list(sweep(pair, [0.2, 1.0], PROMPTS, seeds=3, max_new_tokens=12))
    streamed = []

    class Counted(Engine):
        def stream(self, prompt, options, max_new_tokens, seed=0):
            streamed.append((tuple(prompt), seed))
            return super().stream(prompt, options, max_new_tokens, seed)

    monkeypatch.setattr("dynamo.evaluation.sweep.Engine", Counted)
    calls = []
    together = list(
        sweep(pair, [0.2, 1.0], PROMPTS, None, 3, 12, progress=lambda: calls.append(1), batch=4)
    )  # fmt: skip
    assert len(calls) == sweep_replies(2, len(PROMPTS), 3, batch=4) == 3 * (3 + 2 * (3 + 1))
    assert {seed for _, seed in streamed} == {0}, "alone are only the first replies, which are timed"
    for one, other in zip(alone, together, strict=True):
        assert (one.replies, one.tokens, one.passes) == (other.replies, other.tokens, other.passes)
        assert one.share_by_order == other.share_by_order and one.reasons == other.reasons
        for name in QUALITY:
            assert other.quality[name].value == pytest.approx(one.quality[name].value, abs=1e-5)
    assert all(point.tokens_per_second > 0 for point in together)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch": 0}, "batch: "),
        ({"thresholds": [0.5, 1.5]}, "threshold: "),
        ({"prompts": []}, "prompts: "),
        ({"seeds": 0}, "seeds: "),
        ({"options": SamplingOptions(exact=True)}, "exact: "),
    ],
)
def test_bad_input_is_refused_before_anything_runs(pair, changes, words):
    with pytest.raises(ValueError, match=words):
        sweep(**{"pair": pair, "thresholds": [0.5], "prompts": PROMPTS, **changes})


# -- on disk ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(pair, points):
    documents = [np.arange(5, 60)]
    curves = calibration.measure_calibration(
        pair.dynamo, None, pair.base, documents, SamplingOptions(top_k=5)
    )
    return SweepReport(
        model="tiny", options={"top_k": 50}, prompts=3, seeds=2, max_new_tokens=20,
        machine={"threads": 1}, base=points[0], points=tuple(points[1:]), calibration=tuple(curves),
    )  # fmt: skip


def test_report_reads_back_as_it_was_written(report, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text("an older one")
    report.write(path)
    assert SweepReport.read(path) == report
    assert [each.name for each in tmp_path.iterdir()] == ["sweep.json"]


def test_failed_write_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    report.write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(report, machine={"threads": object()}).write(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


SPOILED = {
    "another format": (lambda f: f.update(format="trace"), "expected dynamo-sweep version 1, got 'trace'"),
    "a later version": (lambda f: f.update(version=2), "version 2"),
    "no points": (lambda f: f.pop("points"), "the field 'points' is missing"),
    "no interval": (lambda f: f["points"][0]["speed_up"].pop("low"), "the field 'low' is missing"),
    "a word": (lambda f: f["base"].update(tokens="many"), "many"),
    "a list": (lambda f: f.update(machine=3), "wrong type"),
    "threshold": (lambda f: f["points"][0].update(threshold=1.5), "thresholds: "),
    "shares": (lambda f: f["points"][1].update(share_by_order={"1": 0.4}), "do not add up to 1"),
    "passes": (lambda f: f["base"].update(passes=10**6), "passes"),
    "event": (lambda f: f["calibration"][0].update(event="luck"), "calibration: "),
}


@pytest.mark.parametrize("spoil, words", SPOILED.values(), ids=SPOILED)
def test_spoiled_report_is_refused_by_name(report, tmp_path, spoil, words):
    fields = json.loads(json.dumps(report.to_json()))
    spoil(fields)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"bad\.json is no sweep report") as refused:
        SweepReport.read(path)
    assert words in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"points": []}'])
def test_file_that_is_something_else_is_refused(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no sweep report"):
        SweepReport.read(path)


def test_point_reads_back(points):
    for point in points:
        assert Point.from_json(json.loads(json.dumps(point.to_json()))) == point
