from __future__ import annotations

from dynamo.decoding.race import race
from dynamo.sampling.records import StepRecord


class ScriptedStream:
    """Records of given durations; knows when it was closed."""

    def __init__(self, seconds):
        self.steps = iter([StepRecord(tokens=(1,), order=1, seconds=s) for s in seconds])
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.steps)

    def close(self):
        self.closed = True


def test_race_steps_the_lane_with_less_model_time_and_runs_both_to_the_end():
    lanes = {"slow": ScriptedStream([3.0, 3.0]), "fast": ScriptedStream([1.0, 1.0, 1.0, 1.0, 1.0])}
    order = [lane for lane, record in race(lanes) if record is not None]
    assert order == ["slow", "fast", "fast", "fast", "slow", "fast", "fast"]
    assert all(lane.closed for lane in lanes.values())


def test_closing_a_race_closes_its_streams():
    lanes = {"one": ScriptedStream([1.0] * 9), "other": ScriptedStream([1.0] * 9)}
    running = race(lanes)
    next(running)
    running.close()
    assert all(lane.closed for lane in lanes.values())


def test_the_end_of_a_lane_is_told_once_and_in_its_place():
    lanes = {"long": ScriptedStream([1.0, 1.0, 1.0]), "short": ScriptedStream([0.5])}
    story = [(lane, record is None) for lane, record in race(lanes)]
    assert story.index(("short", True)) < story.index(("long", True)) == len(story) - 1
    assert story.count(("short", True)) == story.count(("long", True)) == 1
