"""The store of runs is bounded, whatever comes, and hands out what it holds, whoever asks."""

from __future__ import annotations

import random

from dynamo.sampling.records import StepRecord
from dynamo.trace.ndjson import Header, PassLine
from dynamo.ui.components import served_passes, served_trace
from dynamo.ui.server.store import RunStore


def line(index: int) -> PassLine:
    record = StepRecord(tokens=(1,), order=1, seconds=0.01, prefill=index == 0, probabilities=(0.5,))
    return PassLine.from_record(index, record, ["a"], [])


def held(store: RunStore, run: str) -> int:
    """How many of a run's first 1,000 passes are there."""
    return sum(store.get_pass(run, index) is not None for index in range(1000))


def test_old_runs_make_room_where_the_passes_are_too_many():
    store = RunStore(capacity=100, most_passes=50)
    for number in range(10):
        store.start(Header(f"run-{number}", "dynamo", "m", "p"))
        for index in range(20):
            store.put(f"run-{number}", line(index), None)
    assert [held(store, f"run-{number}") for number in range(10)] == [0] * 8 + [20, 20]


def test_one_run_stays_however_long_it_is():
    store = RunStore(capacity=100, most_passes=50)
    store.start(Header("long", "dynamo", "m", "p"))
    for index in range(120):
        store.put("long", line(index), None)
    assert held(store, "long") == 120


def test_runs_that_go_on_after_they_were_dropped_never_break_the_bound():
    rng = random.Random(0)
    store = RunStore(capacity=5, most_passes=40)
    reached: dict[str, int] = {}
    for step in range(3000):
        if not reached or rng.random() < 0.1:
            name = f"run-{step}"
            store.start(Header(name, "dynamo", "m", "p"))
            reached[name] = 0
        name = rng.choice([*reached][-4:])
        store.put(name, line(reached[name]), None)
        reached[name] += 1
        total = sum(held(store, each) for each in [*reached][-8:]) if step % 100 == 0 else 0
        assert total <= 40 + reached[name]
    assert held(store, [*reached][-1]) == reached[[*reached][-1]]


# ---- looking up a pass or a run: anyone may send anything


def test_passes_are_served_by_run_and_index():
    get_passes = served_passes(lambda run, index: f"{run} {index}" if (run, index) == ("run", 3) else None)
    assert get_passes(["run", [3, 4, True, "3"]]) == ["run 3", None, None, None]
    wrong = (["run", 3], ["run"], [["run"], [3]], "run", {"run": [3]}, None, ["run", list(range(513))])
    assert all(get_passes(key) == [] for key in wrong)


def test_a_trace_is_served_by_its_run():
    get_trace = served_trace({"run": "lines"}.get)
    assert [get_trace(run) for run in ("run", "other", None, ["run"], 3)] == ["lines", None, None, None, None]
