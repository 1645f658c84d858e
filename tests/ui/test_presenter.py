from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from fakes import scripted_pair
from scripted_races import END, OPTIONS, Steps, lane, race, scripted_race, trace

from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.presenter import RACING, TIMING, Race, RecordedRun
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


# ---- clocks that something else held up

HELD_UP = [0.02, *[0.004, 0.012] * 10]  # every second pass waited for another program


def spread_race(base, dynamo, again):
    """Lanes of as many tokens as passes and of twice as many; again: seconds of the passes, timed again. The
    list gets what happens after the race: threads that are settled, lanes that run."""
    happened = []
    lanes = race(Steps(base), Steps(dynamo, [(5, 5)] * len(dynamo))).lanes
    contest = Race(lanes, store=RunStore(), settle=lambda: happened.append("settled"))

    def begin(kind):
        happened.append(kind)
        return Steps(again)

    for kind, running in contest.lanes.items():
        running.again = partial(begin, kind)
    return contest, happened


def test_lanes_whose_times_spread_are_timed_again_and_the_trace_says_so():
    """Of answers of a dozen passes, beside a busy program, a fifth had no ratio and half had a wrong one."""
    settling = [0.5, *[0.0047, 0.0053] * 5, *[0.005] * 10]
    contest, happened = spread_race(HELD_UP, HELD_UP, settling)
    *_, ran = contest.views()
    assert ran.status != TIMING and not happened, "the answer is there before"
    *waiting, last = contest.time_again(wait_seconds=0)
    assert {view.status for view in waiting} == {TIMING} and last.status != TIMING
    for kind, tokens in (("base", 1), ("dynamo", 2)):
        running, written = contest.lanes[kind], trace(getattr(last, kind))
        assert happened == ["settled", "base", "dynamo"], "one round of both lanes was enough"
        assert running.decode_seconds == pytest.approx(sum(HELD_UP[1:])), "what was seen took that long"
        assert written.end.timed == pytest.approx(running.pass_speed, rel=1e-3)
        speed = (5 / 0.0047 + 5 / 0.0053 + 10 / 0.005) / 20
        assert running.tokens_per_second == pytest.approx(tokens * speed), "none of the race itself"
        assert written.wire == getattr(last, kind), "a next turn goes on from what the page has"
        assert written.text == running.text


def test_timing_again_takes_no_longer_than_it_may():
    """One pass of twenty was 200 times as quick: no number of rounds makes that agree."""
    uneven = [0.02, 0.0001, *[0.02] * 19]
    contest, happened = spread_race(uneven, uneven, uneven)
    list(contest.views())
    list(contest.time_again())
    rounds = ["base", "dynamo", "dynamo", "base", "base", "dynamo"]  # the second one finds warm caches
    assert happened == ["settled", *rounds], "three rounds of 0.8 seconds fit into three seconds"


@pytest.mark.parametrize(
    "seconds",
    [[0.02, *[0.005] * 20], HELD_UP[:9], [1.0, *[0.1, 0.3] * 10]],
    ids=["times that agree", "too few tokens for a ratio", "a race of seconds"],
)
def test_other_lanes_are_not_timed_again(seconds):
    contest, happened = spread_race(seconds, seconds, seconds)
    assert TIMING not in [view.status for view in contest.views()]
    assert not list(contest.time_again()) and not happened
    assert trace(contest.lanes["base"].wire).end.timed is None
