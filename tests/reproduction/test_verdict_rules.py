"""Each rule of the training-free experiments flips with the numbers that it is about, one at a time."""

import copy
import json

import pytest

from dynamo.evaluation.calibration import EVENTS
from dynamo.evaluation.sweep import QUALITY
from dynamo.loading.sizes import PYTHIA
from dynamo.reproduction import ablations, heads, joints, perplexities, replies, thresholds
from dynamo.reproduction.sweeps import THRESHOLDS


def sure(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def point(threshold, drift=0.1, speed=1.5, tokens=2.0, shares=None):
    quality = {name: sure(0.2) for name in QUALITY} | {"share_below_1_percent": sure(drift)}
    return {
        "threshold": threshold, "speed_up": sure(speed), "tokens_per_forward": sure(tokens),
        "quality": quality, "share_by_order": shares or {"1": 1.0}, "backoff_rate": 0.1,
    }  # fmt: skip


def table_4():
    return {"extra_parameter_share": {name: p / 100 for name, p in heads.PAPER_PERCENT.items()}}


def table_2():
    own = {"PPL_1": sure(8), "PPL_2": sure(20), "PPL_3": sure(40), "PPL_1:2": sure(12), "PPL_1:3": sure(18)}
    return {
        "documents": 9,
        "dynamo": own,
        "base": {"PPL_1": sure(8.1)},
        "first_head_over_base": sure(0.99, 0.005),
    }


def table_9():
    drift = dict.fromkeys(ablations.OPTIONS, 0.02) | {ablations.UNMASKED: 0.3, "neither": 0.3}
    return {"base": point(None), "rows": {name: point(0.5, drift[name]) for name in ablations.OPTIONS}}


def otsu():
    drift = {"mask": 0.2, "mask + Otsu": 0.12, ablations.FULL: 0.1}
    return {"curves": {n: [point(t, drift[n]) for t in ablations.THRESHOLDS] for n in ablations.STAGES}}


def figure_12():
    steep = dict.fromkeys(ablations.PAPER, 0.02) | {ablations.FULL: 0.01, ablations.UNMASKED: 0.2}
    return {
        "base": point(None),
        "curves": {
            name: [point(t, 0.05 + steep[name] * (1 - t), 2 - t, 3 - 2 * t) for t in ablations.THRESHOLDS]
            for name in ablations.PAPER
        },
    }


def figure_5():
    shares = [{"1": t, "2": 0.1 * t * (1 - t), "3": 1 - t - 0.1 * t * (1 - t)} for t in THRESHOLDS]
    return {
        "base": point(None),
        "points": [point(t, shares=s) for t, s in zip(THRESHOLDS, shares, strict=True)],
    }


def figure_15():
    return {
        "points": [point(t, speed=2 - t, tokens=3 - 2 * t) for t in THRESHOLDS],
        "ppl_d": [{"ppl": sure(20 - 10 * t), "tokens_per_place": sure(3 - 2 * t)} for t in THRESHOLDS],
    }


def figure_11():
    entropies, cells = (3, 2, 1, 0.2, 0.3), (2500, 400, 400, 2, 3)
    stages = {
        name: {"entropy": e, "cells": c, "largest": 0.5, "mass": 1.0}
        for name, e, c in zip(joints.STAGES, entropies, cells, strict=True)
    }
    grids = {name: [[0.5, 0.0], [0.2, 0.3]] for name in joints.STAGES}
    return {"prompts": 4, "stages": stages, "shown": {"texts": [["a", "b"], ["c", "d"]], "grids": grids}}


def calibration():
    def curve(order, event, accuracy):
        each = {"low": 0.5, "high": 0.6, "count": 50, "confidence": 0.55, "right": 27, "accuracy": accuracy,
                "interval": [0.4, 0.6]}  # fmt: skip
        return {"order": order, "event": event, "meaning": EVENTS[event], "positions": 50, "without_joint": 0,
                "expected_calibration_error": abs(0.55 - accuracy), "bins": [each]}  # fmt: skip

    curves = [curve(order, event, 0.54) for order in (2, 3) for event in EVENTS]
    return {"curves": {"0.7": curves, "1": curves}}


def next_turns():
    def row(threshold):
        compared = threshold is not None and threshold < 1
        against = dict.fromkeys(replies.NAMES, sure(0.0)) if compared else None
        measures = dict.fromkeys(replies.NAMES, sure(0.3))
        fields = {"threshold": threshold, "tokens_per_forward": None}
        return {**fields, "measures": measures, "against_one": against}

    return {"places": 5, "rows": [row(None), *map(row, replies.THRESHOLDS)]}


def other_corpus():
    def corpus(tokens):
        rows = [
            {"threshold": t, "ppl": sure(30 - 10 * t), "tokens_per_place": sure(3 - tokens * t)}
            for t in THRESHOLDS[::2]
        ]
        return {"documents": 3, "heads": table_2()["dynamo"], "ppl_d": rows}

    return {"given": True, "file": "other.jsonl", "corpora": {"home": corpus(1.0), "away": corpus(1.5)}}


def put(result, path, value):
    """A copy of a result with one of its numbers replaced."""
    result = copy.deepcopy(result)
    *way, last = path
    inner = result
    for step in way:
        inner = inner[step]
    inner[last] = value
    return result


DRIFT = ("quality", "share_below_1_percent")
CASES = {
    "a share that rounds to another number": (
        heads.TABLE_4, table_4,
        [(("extra_parameter_share", "pythia-1b"), 0.0996)],
    ),
    "heads out of order, a joint above its last head, a worse first head": (
        perplexities.TABLE_2, table_2,
        [(("dynamo", "PPL_2"), sure(7)), (("dynamo", "PPL_1:3"), sure(41)),
         (("first_head_over_base",), sure(1.01, 0.005))],
    ),
    "no mask as good as the mask, half a mask worst, the mask alone better than the whole": (
        ablations.TABLE_9, table_9,
        [(("rows", ablations.UNMASKED, *DRIFT), sure(0.03)),
         (("rows", "half mask + Otsu + blur", *DRIFT), sure(0.5)),
         (("rows", "mask", *DRIFT), sure(0.0, 0.001))],
    ),
    "the adaptive threshold hurts at one threshold": (
        ablations.OTSU, otsu, [(("curves", ablations.FULL, 1, *DRIFT), sure(0.4))],
    ),
    "the whole rises fastest, or does not rise least": (
        ablations.FIGURE_12, figure_12,
        [(("curves", ablations.FULL, 0, *DRIFT), sure(0.9)), (("curves", "mask", 0, *DRIFT), sure(0.0))],
    ),
    "many twos, not all threes at 0, not all ones at 1, full passes that rise": (
        thresholds.FIGURE_5, figure_5,
        [(("points", 5, "share_by_order"), {"1": 0.3, "2": 0.2, "3": 0.5}),
         (("points", 0, "share_by_order"), {"1": 0.1, "3": 0.9}),
         (("points", 10, "share_by_order"), {"1": 0.99, "3": 0.01}),
         (("points", 4, "share_by_order"), {"1": 0.1, "2": 0.1, "3": 0.8})],
    ),
    "PPL_d that rises, tokens that rise, no speed-up": (
        thresholds.FIGURE_15, figure_15,
        [(("ppl_d", 10, "ppl"), sure(21)), (("points", 6, "tokens_per_forward"), sure(2.9)),
         (("points", 10, "speed_up"), sure(1.995))],
    ),
    "a mask that spreads, Otsu that keeps all": (
        joints.FIGURE_11, figure_11,
        [(("stages", "mask, strength 0.5", "entropy"), 3.5), (("stages", "mask + Otsu", "cells"), 400)],
    ),
    "confidence that is too high for one number of tokens": (
        replies.CALIBRATION, calibration, [(("curves", "0.7", 2, "expected_calibration_error"), 0.2)],
    ),
    "a measure below that of threshold 1 beyond doubt": (
        replies.NEXT_TURNS, next_turns,
        [(("rows", 4, "against_one", "names_in_context"), sure(-0.05))],
    ),
    "a sampler as bold away as at home, PPL_d that rises": (
        perplexities.OTHER_CORPUS, other_corpus,
        [(("corpora", "away", "ppl_d", 2, "tokens_per_place"), sure(2.9)),
         (("corpora", "away", "ppl_d", 5, "ppl"), sure(40))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_verdict_flips_with_each_number_that_its_rule_names(case):
    experiment, make, changes = CASES[case]
    result = json.loads(json.dumps(make()))
    held = experiment.show(result).finding
    assert held.verdict == "holds", held.sentence
    for path, value in changes:
        changed = experiment.show(put(result, path, value)).finding
        assert changed.verdict == "differs", (path, changed.sentence)


def test_what_is_not_named_by_the_rule_leaves_the_verdict_alone():
    """Variants that the paper lacks may drift as they like; other thresholds of replies are only shown."""
    result = put(table_9(), ("rows", "double mask + Otsu + blur", *DRIFT), sure(0.9))
    assert ablations.TABLE_9.show(result).finding.verdict == "holds"
    result = put(next_turns(), ("rows", 6, "against_one", "chrf"), sure(-9))
    assert replies.NEXT_TURNS.show(result).finding.verdict == "holds"


def test_what_is_not_there_cannot_be_tested():
    for experiment, result in (
        (perplexities.OTHER_CORPUS, {"given": False}),
        (replies.NEXT_TURNS, {"places": 0, "rows": []}),
        (joints.FIGURE_11, {"stages": {}}),
    ):
        assert experiment.show(result).finding.verdict == "cannot be tested here"


def test_the_papers_table_4_follows_from_the_shapes_by_hand():
    """A GPT-NeoX layer has 12 h^2 + 13 h weights: attention 4 h^2 + 4 h, the other part 8 h^2 + 5 h, two
    norms 4 h. A base has L of them, two embeddings of V h and a norm of 2 h."""
    measured = heads.measure_extra_parameters(None)["extra_parameter_share"]
    for name, share in measured.items():
        layers, h, _, vocabulary = PYTHIA[name.removeprefix("pythia-")]
        layer = 12 * h**2 + 13 * h
        assert share == pytest.approx(2 * layer / (layers * layer + 2 * vocabulary * h + 2 * h), rel=1e-12)
    assert heads.TABLE_4.show({"extra_parameter_share": measured}).finding.verdict == "holds"


def test_a_slope_is_that_of_the_least_squares_line():
    assert ablations.slope([0, 1, 2], [1, 3, 5]) == pytest.approx(2)
    # By hand: x away from its mean -1, 0, 1; sum of products 2; over 2.
    assert ablations.slope([1, 2, 3], [0, 5, 2]) == pytest.approx(1)
    assert ablations.slope([2, 2], [0, 1]) == 0
