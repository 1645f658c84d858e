from __future__ import annotations

from itertools import pairwise

import pytest
from fakes import scripted_pair
from scripted_races import END, OPTIONS, Steps, lane, race, scripted_race, trace

from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.presenter import RACING, Race, RecordedRun
from dynamo.ui.compare.settings import Settings
from dynamo.ui.server.store import RunStore


def run_out(running: RecordedRun) -> RecordedRun:
    for record in running.steps:
        running.take(record)
    running.end()
    return running


# ---- lanes


def test_a_lane_writes_a_trace_that_reads_back():
    running = run_out(lane(Steps([0.02, 0.01], [(1, 2), (3, END)])))
    written = trace(running.wire)
    assert written.text == "é 3"
    assert [step.texts for step in written.passes] == [("", "é"), (" 3", "")]
    assert [step.milliseconds for step in written.passes] == [20, 10]
    assert [step.prefill for step in written.passes] == [True, False]
    assert running.seconds == pytest.approx(0.03)


@pytest.mark.parametrize(("last", "reason"), [(END, "eos"), (4, "length")])
def test_the_end_line_says_why(last, reason):
    running = run_out(lane(Steps([0.01], [(3, last)])))
    assert trace(running.wire).end.reason == reason


def test_half_a_character_at_the_end_is_not_lost():
    running = run_out(lane(Steps([0.01], [(3, 1)])))
    assert trace(running.wire).text == " 3�"


# ---- the race


def test_the_lane_with_less_model_time_moves_next():
    moves = []

    class Watched(Steps):
        def __next__(self):
            record = super().__next__()
            moves.append(self)
            return record

    slow, fast = Watched([0.30, 0.30]), Watched([0.10, 0.10, 0.10, 0.10, 0.10])
    for _ in race(slow, fast).views():
        pass
    # Both at 0: the base starts. It is then at 0.3, which DynaMo passes with its fourth step.
    assert moves[:2] == [slow, fast]
    assert moves[2:4] == [fast, fast]
    assert moves.count(slow) == 2 and moves.count(fast) == 5


def test_neither_lane_is_ever_more_than_one_pass_ahead_while_both_run():
    contest = race(Steps([0.05, 0.02, 0.07] * 9), Steps([0.03, 0.01] * 20))
    for _ in contest.views(flush_seconds=0):
        base, dynamo = contest.lanes["base"], contest.lanes["dynamo"]
        if base.end_line is None and dynamo.end_line is None:
            assert abs(base.seconds - dynamo.seconds) <= 0.07 + 1e-9


def test_a_finished_lane_does_not_hold_the_other_up():
    *_, last = race(Steps([0.1]), Steps([0.1] * 7)).views()
    assert len(trace(last.base).passes) == 1
    assert len(trace(last.dynamo).passes) == 7


def test_every_view_continues_the_one_before():
    """Gradio sends what was appended; a value that does not start with its predecessor is sent whole."""
    views = list(scripted_race().views(flush_seconds=0))
    assert len(views) > 20
    for before, after in pairwise(views):
        assert after.base.startswith(before.base)
        assert after.dynamo.startswith(before.dynamo)
    assert trace(views[-1].base).text == trace(views[-1].dynamo).text  # the script, whatever was skipped


def test_views_leave_no_faster_than_the_flush_interval():
    now = 0.0

    def clock():
        nonlocal now
        now += 0.010  # ten milliseconds pass at every look
        return now

    views = list(race(Steps([0.01] * 50), Steps([0.01] * 50)).views(flush_seconds=0.040, clock=clock))
    assert 2 + 100 / 6 < len(views) < 2 + 100 / 3
    assert len(trace(views[-1].base).passes) == 50


def test_the_first_view_comes_before_any_pass():
    steps = Steps([0.1])
    first = next(race(steps, Steps([0.1])).views())
    assert steps.taken == 0
    assert first.status == RACING
    assert trace(first.base).header.lane == "base"


def test_closing_the_race_closes_both_engines():
    pair = scripted_pair()
    store = RunStore()
    lanes = pair.lanes(Chat(), "hello", Settings(OPTIONS, 96, 0))
    views = Race(lanes, store=store).views(flush_seconds=0)
    for _ in range(6):
        next(views)
    views.close()
    assert all(pair.engines.by_name[name].closed == 1 for name in ("loop", "dynamo"))
    assert trace(store.get_trace(lanes["dynamo"].header.run)).end.reason == "cancelled"


def test_an_error_reaches_both_panes_and_then_the_caller():
    broken, whole = Steps([0.1], error=RuntimeError("out of memory")), Steps([0.1] * 5)
    views = race(whole, broken).views()
    seen = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for view in views:
            seen.append(view)
    for wire in (seen[-1].base, seen[-1].dynamo):
        assert trace(wire).end.reason == "error"
        assert trace(wire).end.message == "out of memory"
    assert broken.closed and whole.closed
