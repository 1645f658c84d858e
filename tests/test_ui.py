from __future__ import annotations

import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest
from fakes import HOSTILE, ScriptedEngine, Vocabulary, scripted_contenders

from dynamo.cooccurrence import CooccurrenceTable
from dynamo.ndjson import read_trace
from dynamo.sampler import SamplingOptions
from dynamo.ui import Contenders, build_demo, launch_options, layout
from dynamo.ui.components import ASSETS, joint_inspector, race_bar, script, served, token_pane
from dynamo.ui.presenter import RunStore

SETTINGS = {
    "threshold": 0.5,
    "mask_strength": 1,
    "temperature": 0.7,
    "top_k": 50.0,
    "repetition_penalty": 1.1,
    "max_order": 3.0,
    "max_new_tokens": 96.0,
    "seed": 0,
    "adaptive": True,
}


def run_race(contenders=None, prompt="hello", **changes):
    settings = {**SETTINGS, **changes}
    return list(layout._race(contenders or scripted_contenders(), RunStore(), prompt, settings))


@pytest.fixture(scope="module")
def config():
    return build_demo(scripted_contenders()).get_config_file()


def settings_on_page(config) -> dict[str, dict]:
    return {part["props"].get("label"): part["props"] for part in config["components"]}


# ---- the race handler


def test_the_handler_streams_both_traces_and_the_last_pass():
    base, dynamo, inspector, status = run_race()[-1]
    assert read_trace(base.splitlines()).end.reason == "eos"
    assert read_trace(dynamo.splitlines()).text == read_trace(base.splitlines()).text
    assert json.loads(inspector)["run"] == read_trace(dynamo.splitlines()).header.run
    assert "lossy" in status


def test_whole_numbers_may_come_as_floats():
    header = read_trace(run_race(max_new_tokens=8.0)[-1][0].splitlines()).header
    assert header.options["top_k"] == 50 and isinstance(header.options["top_k"], int)
    assert header.options["max_new_tokens"] == 8


def test_an_empty_seed_is_seed_zero():
    assert run_race(seed=None)[-1][1].count("\n") == run_race(seed=0)[-1][1].count("\n")


def test_a_bad_option_becomes_one_sentence():
    with pytest.raises(gr.Error, match="threshold: expected 0 to 1, got 7"):
        run_race(threshold=7)


def test_an_error_cannot_bring_markup_to_the_page():
    class Refusing(ScriptedEngine):
        def stream(self, *args, **kwargs):
            raise ValueError("input_ids: <img src=x onerror=alert(1)> is too long")

    contenders = scripted_contenders()
    vocabulary = Vocabulary("x")
    refusing = type(contenders)(**{**vars(contenders), "dynamo": Refusing(vocabulary, 3)})
    with pytest.raises(gr.Error) as caught:
        run_race(refusing)
    assert "&lt;img" in caught.value.message and "<" not in caught.value.message


def test_a_failing_model_is_reported_without_its_internals(caplog):
    contenders = scripted_contenders()
    failing = ScriptedEngine(Vocabulary("one two three four"), 3, fail_at=1)
    contenders = type(contenders)(**{**vars(contenders), "dynamo": failing})
    with pytest.raises(gr.Error, match=r"The model failed \(RuntimeError\)"):
        run_race(contenders)
    assert "the scripted engine fails here" in caplog.text


def test_an_empty_prompt_is_a_remark_at_its_box_and_no_error():
    answers = layout._validate("  \n", *SETTINGS.values())
    assert [answer["is_valid"] for answer in answers] == [False] + [True] * len(SETTINGS)
    assert answers[0]["message"] == "Type a message first, or pick an example below."
    assert all(answer["is_valid"] for answer in layout._validate("hi", *SETTINGS.values()))


def test_real_models_race_to_the_same_end(tokenizer, base, dynamo_model):
    table = CooccurrenceTable.count([list(range(4, 300)) * 2], order=3)
    pair = SimpleNamespace(
        name="tiny", description="tiny", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=table
    )
    contenders = Contenders.from_pair(pair)
    base_wire, dynamo_wire, inspector, _ = run_race(contenders, threshold=0.0, max_new_tokens=24)[-1]
    for wire in (base_wire, dynamo_wire):
        trace = read_trace(wire.splitlines())
        tokens = [token for step in trace.passes for token in step.tokens]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == trace.text
        assert trace.passes[0].prefill and all(step.milliseconds > 0 for step in trace.passes)
        assert (trace.end.reason == "length") == (len(tokens) == 24)
    assert {len(step.tokens) for step in read_trace(base_wire.splitlines()).passes} == {1}
    assert json.loads(inspector)["joint"]["text"]


# ---- what the page is made of


def test_every_setting_starts_at_the_options_default():
    with gr.Blocks():
        controls = layout._settings()
    default = SamplingOptions()
    for name in controls.keys() - {"max_new_tokens", "seed"}:
        assert controls[name].value == getattr(default, name), name
    assert controls.keys() == SETTINGS.keys()


def test_every_control_explains_itself(config):
    for kind in ("slider", "number", "checkbox"):
        for part in config["components"]:
            if part["type"] == kind:
                assert 10 < len(part["props"]["info"]) < 60, part["props"]["label"]


def test_no_handler_is_a_public_endpoint(config):
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}


def test_races_run_one_at_a_time(config):
    demo = build_demo(scripted_contenders())
    streaming = [fn for fn in demo.fns.values() if fn.concurrency_id == "model"]
    assert [fn.concurrency_limit for fn in streaming] == [1]
    assert demo._queue.max_size == 20


def test_examples_start_with_the_restaurant_and_cover_the_domains():
    examples = json.loads((ASSETS / "examples.json").read_text(encoding="utf-8"))
    assert 8 <= len(examples) <= 10
    assert examples[0]["prompt"] == "I want to book a table for two in San Jose"
    assert len({example["label"] for example in examples}) == len(examples)


def test_the_description_is_shown_as_text():
    assert "&lt;b&gt;tiny" in layout._about("<b>tiny</b>")


def test_nothing_is_fetched_from_elsewhere_and_no_prompt_is_kept():
    options = launch_options()
    assert options["run_history"] is False and options["ssr_mode"] is False
    assert "http" not in options["head"]
    assert not options["theme"]._stylesheets


# ---- model text never becomes markup


def test_templates_hold_no_placeholder():
    with gr.Blocks():
        parts = [
            token_pane(kind="dynamo", title="DynaMo", subtitle="s", empty="e", elem_id="pane"),
            race_bar("ready", elem_id="race"),
            joint_inspector(RunStore().get, elem_id="inspector"),
        ]
    for part in parts:
        assert not re.search(r"\$\{|\{\{|@children", part.html_template)


@pytest.mark.parametrize("name", ["joint.js", "pane.js", "race.js", "inspector.js"])
def test_scripts_write_text_only(name):
    risky = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
    assert not re.search(risky, script(name))


def test_hostile_text_passes_through_unchanged():
    base, dynamo, *_ = run_race(scripted_contenders(HOSTILE), prompt="${alert(1)}")[-1]
    assert read_trace(base.splitlines()).text.replace(" ", "") == HOSTILE.replace(" ", "")
    assert read_trace(dynamo.splitlines()).header.prompt == "${alert(1)}"


# ---- looking up an older pass: anyone may send anything


def test_a_pass_is_served_by_run_and_index():
    store = RunStore()
    store.put("run", 3, "value")
    get_pass = served(store.get)
    assert get_pass(["run", 3]) == "value"
    for key in (["run", 4], ["run", "3"], ["other", 3], ["run"], [["run"], 3], "run", {"run": 3}, None):
        assert get_pass(key) is None
