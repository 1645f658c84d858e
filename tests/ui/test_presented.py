"""What a race leaves behind: the inspector's passes and a store of runs. And the scripted engine itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import ScriptedEngine, Vocabulary, scripted_pair
from scripted_races import OPTIONS, Steps, lane, race, scripted_race, trace

from dynamo.data.text import TokenLabels
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import Header
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.presenter import FINISHED, most_telling
from dynamo.ui.compare.settings import Settings
from dynamo.ui.server.store import RunStore

# ---- the inspector


def test_every_dynamo_pass_can_be_looked_up_after_the_race():
    store = RunStore()
    *_, last = scripted_race(store).views()
    dynamo = trace(last.dynamo)
    for step in dynamo.passes:
        value = json.loads(store.get_pass(dynamo.header.run, step.index))
        assert value["run"] == dynamo.header.run
        assert value["pass"]["ids"] == list(step.tokens)
    assert store.get_pass(dynamo.header.run, len(dynamo.passes)) is None
    assert store.get_pass("another run", 0) is None


def test_the_inspector_rests_on_the_first_pass_that_backed_off():
    *_, last = scripted_race().views()
    assert last.status == FINISHED
    backed_off = [step.index for step in trace(last.dynamo).passes if step.backoffs]
    assert json.loads(last.inspector)["pass"]["pass"] == backed_off[0]


def test_a_recording_rests_where_its_race_did():
    store = RunStore()
    *_, last = scripted_race(store).views()
    dynamo = trace(last.dynamo)
    dynamo = replace(dynamo, joints=store_joints(store, dynamo))
    assert most_telling(dynamo) == json.loads(last.inspector)["pass"]["pass"]
    assert most_telling(replace(dynamo, joints={})) == 0
    sure = tuple(replace(step, backoffs=()) for step in dynamo.passes)
    assert len(sure[most_telling(replace(dynamo, passes=sure))].tokens) == 3, "where none backed off"


def store_joints(store, dynamo):
    found = {step.index: store.get_joint(dynamo.header.run, step.index) for step in dynamo.passes}
    return {index: joint for index, joint in found.items() if joint is not None}


def test_a_pass_without_a_joint_is_shown_too():
    *_, last = race(Steps([0.1] * 3), Steps([0.1] * 3)).views()
    assert json.loads(last.inspector)["joint"] is None


def test_a_stored_run_reads_back_as_a_trace_with_its_joints():
    store = RunStore()
    *_, last = scripted_race(store).views()
    shown = trace(last.dynamo)
    stored = trace(store.get_trace(shown.header.run))
    assert (stored.header, stored.passes, stored.end) == (shown.header, shown.passes, shown.end)
    assert stored.joints.keys() == {step.index for step in shown.passes if step.best is not None}
    assert store.get_joint(shown.header.run, min(stored.joints)).grid.shape[0] > 10


def test_the_store_forgets_the_oldest_run_first_but_keeps_recordings():
    store = RunStore(capacity=2)
    *_, last = scripted_race().views()
    store.add(trace(last.dynamo), keep=True)
    for run in ("a", "b", "c"):
        store.start(Header(run, "base", "m", "hi"))
    assert [store.get_trace(run) is None for run in ("a", "b", "c")] == [True, False, False]
    assert store.get_pass(trace(last.dynamo).header.run, 0)


def test_a_pass_of_a_run_that_was_dropped_is_still_shown():
    store = RunStore(capacity=1)
    running = lane(Steps([0.1, 0.1]))
    store.start(Header("other", "base", "m", "hi"))
    line = running.take(next(running.steps))
    assert json.loads(store.put("gone", line, None))["pass"]["ids"] == [5]


def test_two_runs_never_share_an_id():
    pair = scripted_pair()
    runs = {
        each.header.run
        for _ in range(20)
        for each in pair.lanes(Chat(), "hi", Settings(OPTIONS, 8, 0)).values()
    }
    assert len(runs) == 40
    assert all(len(run) == 32 for run in runs)


# ---- the scripted engine itself, on which other tests lean


@pytest.mark.parametrize(("threshold", "sizes"), [(0.0, {3}), (1.0, {1})])
def test_the_script_follows_the_threshold(threshold, sizes):
    vocabulary = Vocabulary("one two three four five six")
    engine = ScriptedEngine(vocabulary, 3)
    records = list(engine.stream([0], SamplingOptions(threshold=threshold), seed=1))
    assert {record.order for record in records[:2]} == sizes
    assert [token for record in records for token in record.tokens] == vocabulary.answer


def test_labels_show_bytes_where_a_token_is_no_character(tokenizer):
    label = TokenLabels(tokenizer)
    assert "".join(map(label, tokenizer(" yes")["input_ids"])) == " yes"
    assert " ".join(map(label, tokenizer("😀")["input_ids"])) == "F0 9F 98 80"
