from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.sampling.records import BackOff, Joint, StepRecord
from dynamo.trace.joint_line import Chunk, JointLine
from dynamo.trace.ndjson import End, Header, PassLine, decode_line, encode_line, encode_lines, read_trace

HEADER = Header("a1b2", "dynamo", "embedded", "book a table", {"threshold": 0.5, "seed": 0})
PASS = PassLine(0, (11, 22, 33), (" was", " they", ""), 3, 21.4, (0.5, 0.25, 0.125), (), 0.42, True)

# Order 3 over 2 candidates a head: three cells left by the mask, one more than any test of them needs.
TRIPLE = Joint(
    candidates=np.array([[5, 6], [7, 8], [9, 10]]),
    probabilities=np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]]),
    ranks=np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]]),
    values=np.array([0.7, 0.1, 0.2]),
)


def label(token: int) -> str:
    return f"<{token}>"


def record_of(joint: Joint | None, tokens: tuple[int, ...], order: int | None = None) -> StepRecord:
    return StepRecord(tokens, order or len(tokens), 0.01, joint=joint)


def lines(*values) -> list[str]:
    return [encode_line(value) + "\n" for value in values]


def test_a_run_survives_writing_and_reading():
    second = PassLine(1, (44,), ("!",), 1, 9.5, (1.0,), (BackOff(3, "threshold", 0.091, 0.25),))
    joint = JointLine.from_record(1, record_of(TRIPLE, (5, 7, 9)), 0.5, label)
    trace = read_trace(io.StringIO(encode_lines([HEADER, PASS, second, joint, End("eos", "�")])))
    assert trace.header == HEADER
    assert trace.passes == (PASS, second)
    assert list(trace.joints) == [1]
    assert trace.end == End("eos", "�")
    assert trace.text == " was they!�" and trace.tokens == [11, 22, 33, 44]
    assert trace.wire == encode_lines([HEADER, PASS, second, End("eos", "�")]), "a pane holds no joints"


def test_an_order_that_an_end_cut_short_is_kept():
    cut = PassLine(0, (11,), ("",), 3, 5.0)
    assert decode_line(encode_line(cut)) == cut


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_stays_on_its_line(texts):
    """U+2028, U+0085 and carriage returns are line breaks for `str.splitlines`; in a trace they are text."""
    line = PassLine(0, tuple(range(len(texts))), tuple(texts), len(texts), 1.0)
    assert read_trace(io.StringIO("".join(lines(HEADER, line)))).passes == (line,)


def test_a_pass_of_three_tokens_takes_about_150_bytes():
    backoffs = (BackOff(3, "threshold", 0.0912345, 0.25), BackOff(2, "mask", 0.0, 0.5))
    emitted = PassLine(47, (1234, 567, 89), (" was", " they", " because"), 3, 21.3999, (0.11111, 0.38, 0.39))
    given_up = PassLine(48, (1234,), (" was",), 1, 21.3999, (0.11111,), backoffs, 0.4242424)
    assert len(encode_line(emitted).encode()) <= 150
    assert len(encode_line(given_up).encode()) <= 150


def test_a_joint_with_all_its_chunks_takes_about_a_kilobyte():
    rng = np.random.default_rng(0)
    candidates = rng.permutation(4096)[:60].reshape(3, 20)
    ranks = np.indices((20, 20, 20)).reshape(3, -1).T
    values = rng.random(8000) ** 40
    joint = Joint(candidates, np.sort(rng.dirichlet(np.ones(20), 3))[:, ::-1], ranks, values / values.sum())
    line = JointLine.from_record(
        12, record_of(joint, tuple(candidates[:, 0].tolist())), 0.5, lambda token: " token"
    )
    assert len(line.chunks) == 32
    assert len(encode_line(line).encode()) < 1200


@given(st.lists(st.floats(1.2e-7, 1.0), min_size=4, max_size=4))
def test_joint_values_are_kept_to_a_thousandth(values):
    line = JointLine(
        0, 2, 0.5, (("a", "b"), ("c", "d")), ((0.6, 0.4), (0.5, 0.5)), np.array(values).reshape(2, 2)
    )
    again = decode_line(encode_line(line))
    np.testing.assert_allclose(again.grid.ravel(), values, rtol=1e-3)


def test_a_removed_cell_stays_exactly_zero():
    line = JointLine(0, 2, 0.5, (("a",), ("b", "c")), ((1.0,), (0.5, 0.5)), np.array([[0.0, 1.0]]))
    assert decode_line(encode_line(line)).grid.tolist() == [[0.0, 1.0]]


def test_the_grid_of_a_triple_sums_over_the_third_token():
    line = JointLine.from_record(0, record_of(TRIPLE, (5, 7, 9)), 0.5, label)
    np.testing.assert_allclose(line.grid, [[0.8, 0.0], [0.0, 0.2]])
    assert line.texts == (("<5>", "<6>"), ("<7>", "<8>"))
    assert line.picked == (0, 0, 0)
    assert line.third == (("<9>", pytest.approx(0.875)), ("<10>", pytest.approx(0.125)))


def test_whole_chunks_are_listed_largest_first_and_survive_writing():
    line = JointLine.from_record(0, record_of(TRIPLE, (5, 7, 9)), 0.5, label)
    assert line.chunks == (Chunk((0, 0, 0), 0.7), Chunk((1, 1, 0), 0.2), Chunk((0, 0, 1), 0.1))
    assert line.floor == 0.0
    again = decode_line(encode_line(line))
    assert [chunk.ranks for chunk in again.chunks] == [chunk.ranks for chunk in line.chunks]
    np.testing.assert_allclose([chunk.value for chunk in again.chunks], [0.7, 0.2, 0.1], rtol=1e-3)


def test_floor_bounds_every_chunk_that_is_not_listed():
    values = np.full(100, 0.01)
    ranks = np.indices((10, 10)).reshape(2, -1).T
    candidates = np.arange(20).reshape(2, 10)
    joint = Joint(candidates, np.full((2, 10), 0.1), ranks, values)
    line = JointLine.from_record(0, record_of(joint, (0,)), 0.5, label)
    assert len(line.chunks) == 32
    assert line.floor == pytest.approx(0.01)


def test_a_correlators_joint_brings_its_rows_and_a_smoothed_one_its_name():
    given = np.array([[0.5, 0.4], [0.1, 0.8]])
    parts = TRIPLE.candidates, TRIPLE.probabilities, TRIPLE.ranks, TRIPLE.values
    joint = Joint(*parts, given, "correlator", later=0.9, floor=0.05)
    line = decode_line(encode_line(JointLine.from_record(0, record_of(joint, (5, 7, 9)), 0.5, label)))
    assert line.correction == "correlator" and line.floor == 0.05
    np.testing.assert_allclose(line.given, given, rtol=1e-3)
    np.testing.assert_allclose(line.grid, joint.probabilities[0][:, None] * given * 0.9, rtol=1e-3)
    assert line.third[0] == ("<9>", pytest.approx(0.7 / (0.8 * 0.5 * 0.9), rel=1e-3))
    smoothed = JointLine.from_record(
        0, record_of(Joint(*parts, correction="smoothed"), (5, 7, 9)), 0.5, label
    )
    assert decode_line(encode_line(smoothed)).correction == "smoothed"
    assert "correction" not in encode_line(JointLine.from_record(0, record_of(TRIPLE, (5, 7, 9)), 0.5, label))


def test_a_best_value_that_is_only_a_bound_is_written_as_one():
    line = PassLine(0, (1,), ("a",), 1, 1.0, backoffs=(BackOff(2, "threshold", 0.2, 0.5, True),))
    assert decode_line(encode_line(line)) == line


def test_a_rejected_draft_keeps_its_probabilities():
    line = PassLine(0, (1,), ("a",), 1, 1.0, rejected=("b", "c"), refused=(0.04, 0.31), exact=True)
    assert decode_line(encode_line(line)) == line
    for value in (0.5, [0.5], [0.5, 1.5], ["a", 0.5]):
        with pytest.raises((TypeError, ValueError), match="refused"):
            PassLine.from_json(line.to_json() | {"refused": value})


def test_an_anchored_chunk_keeps_its_ranks_in_the_joint_at_which_it_ended():
    ended = (BackOff(3, "threshold", 0.2, 0.25),)
    record = StepRecord((6, 8), 2, 0.01, backoffs=ended, joint=TRIPLE, anchored=True)
    assert JointLine.from_record(0, record, 0.5, label).picked == (1, 1)
    line = PassLine.from_record(0, record, ["a", "b"])
    assert decode_line(encode_line(line)) == line and line.anchored and line.best is None


def test_without_a_mask_the_joint_is_the_product():
    plain = Joint(TRIPLE.candidates, TRIPLE.probabilities)
    line = JointLine.from_record(0, record_of(plain, (5, 7, 9)), 0.5, label)
    np.testing.assert_allclose(line.grid, [[0.48, 0.32], [0.12, 0.08]])
    assert line.chunks[0] == Chunk((0, 0, 0), pytest.approx(0.8 * 0.6 * 0.9))


def test_a_joint_that_was_given_up_picks_nothing():
    assert JointLine.from_record(0, record_of(TRIPLE, (5,)), 0.5, label).picked == ()
    assert JointLine.from_record(0, record_of(None, (5,)), 0.5, label) is None


def test_a_mask_that_removes_everything_gives_an_empty_joint():
    empty = Joint(TRIPLE.candidates[:2], TRIPLE.probabilities[:2], np.zeros((0, 2), int), np.zeros(0))
    line = decode_line(encode_line(JointLine.from_record(0, record_of(empty, (5,)), 0.5, label)))
    assert not line.grid.any()
    assert line.chunks == ()


def test_a_chunk_that_an_end_cut_keeps_the_ranks_it_has():
    assert JointLine.from_record(0, record_of(TRIPLE, (6, 8), order=3), 0.5, label).picked == (1, 1)


def changed(line, **fields) -> str:
    return json.dumps({**json.loads(encode_line(line)), **fields}) + "\n"


JOINT = JointLine.from_record(0, record_of(TRIPLE, (5, 7, 9)), 0.5, label)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "line 1: the trace is empty, expected a header line"),
        (["{\n"], r"line 1: not JSON \("),
        (["[1]\n"], "line 1: expected an object with one of the keys format, pass, joint, end"),
        (lines(PASS), "line 1: expected a header line first"),
        ([changed(HEADER, format=9)], "line 1: trace format 9, but this version reads 1; record it again"),
        ([*lines(HEADER), changed(PASS, ms=None)], 'line 2: the "pass" line has a field of the wrong type'),
        ([*lines(HEADER), '{"pass":0}\n'], "line 2: the \"pass\" line lacks the field 'ids'"),
        ([*lines(HEADER), changed(PASS, text=["a"])], "line 2: .* got 3 and 1"),
        ([*lines(HEADER, PASS), changed(PASS, **{"pass": 5})], "line 3: pass 5, expected pass 1"),
        ([*lines(HEADER), *lines(JOINT)], "line 2: the joint of pass 0, which has not come yet"),
        ([*lines(HEADER, PASS), changed(JOINT, grid="AAA")], 'line 3: "grid" is not base64'),
        ([*lines(HEADER, PASS), changed(JOINT, grid="AAAA")], 'line 3: "grid" is cut off'),
        (
            [*lines(HEADER, PASS), changed(JOINT, grid="AAA=")],
            'line 3: "grid" holds 1 values, expected 2 x',
        ),
        ([*lines(HEADER, PASS), changed(JOINT, cells="AAA=")], 'line 3: "cells" holds 1 numbers'),
        ([*lines(HEADER), '{"end":"bored"}\n'], "line 2: \"end\" must be one of eos, length, .* got 'bored'"),
        ([*lines(HEADER), '{"end":"eos","timed":[9,0,0.1]}\n'], 'line 2: "timed" must have passes'),
        ([*lines(HEADER), '{"end":"eos","timed":5}\n'], "line 2: "),
        (lines(HEADER, HEADER), "the file holds 2 runs, expected one"),
        (lines(HEADER, End("eos"), PASS), "line 3: a line after the end line"),
    ],
)
def test_a_corrupt_trace_names_the_line(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_trace(text)


def test_blank_lines_count_but_do_not_matter():
    with pytest.raises(ValueError, match=r"^line 4: "):
        read_trace(["\n", *lines(HEADER), "\n", "oops\n"])


def test_a_trace_that_was_cut_off_has_no_end():
    assert read_trace(lines(HEADER, PASS)).end is None
