"""What the page is made of, without a browser; and that no text of a model becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import gradio as gr
import pytest
from fakes import HOSTILE, scripted_pair
from page_handlers import SETTINGS, handlers, send

from dynamo.pipelines.self_recipe import RECORDED
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import read_runs, read_trace
from dynamo.ui import build_demo, launch_options, layout
from dynamo.ui.compare.examples import LABELS, all_examples, examples_for
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import Settings, exact_switch, settings_panel, threshold_dial
from dynamo.ui.compare.tab import CompareTab
from dynamo.ui.components import ASSETS, SCRIPTS, script


@pytest.fixture(scope="module")
def config():
    return build_demo(scripted_pair()).get_config_file()


# ---- what the page is made of


def test_every_setting_starts_at_the_options_default():
    default = SamplingOptions()
    with gr.Blocks():
        dial = {"threshold": threshold_dial(default), "exact": exact_switch(default)}
        controls = dial | settings_panel(3, default)
    for name in controls.keys() - {"max_new_tokens", "seed", "blur"}:
        assert controls[name].value == getattr(default, name), name
    assert controls["blur"].value is (default.blur == 3)
    assert controls.keys() == SETTINGS.keys()


def test_every_control_explains_itself(config):
    for kind in ("slider", "number", "checkbox"):
        for part in config["components"]:
            if part["type"] == kind:
                assert 10 < len(part["props"]["info"]) < 60, part["props"]["label"]


def test_only_the_three_functions_are_public(config):
    public = [each["api_name"] for each in config["dependencies"] if each["api_visibility"] == "public"]
    assert sorted(public) == ["compare", "generate", "threshold_sweep"]


def test_whatever_runs_the_model_has_one_place_in_the_queue():
    demo = build_demo(replace(scripted_pair(), audit=lambda *_: None), queue_size=7)
    limits = [fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id == "model"]
    assert len(limits) >= 8 and set(limits) <= {1, "default"}
    assert demo._queue.max_size == 7


def test_a_recording_is_on_the_page_before_anything_was_asked(tmp_path):
    service = PageService(scripted_pair())
    run = json.loads(send(handlers())[-1][1].splitlines()[0])["run"]
    path = tmp_path / "recording.ndjson"
    wired = handlers()
    wires = send(wired)[-1][:2]
    path.write_text("".join(wires), encoding="utf-8")
    first = service.load(path, keep=True)
    with gr.Blocks():
        tab = CompareTab(service, first)
    assert read_trace(tab.dynamo.value.splitlines()).header.recorded
    assert run not in tab.dynamo.value


def test_a_page_that_opens_after_a_switch_still_plays_the_recording():
    pair = scripted_pair()
    with gr.Blocks():
        tab = CompareTab(PageService(pair))
    lanes = {tab.base, tab.dynamo, tab.inspector, tab.bar}
    assert lanes <= tab.pair_updates(pair).keys() and not lanes & tab.pair_updates(pair, opening=True).keys()


def test_the_first_example_is_what_the_recording_answers():
    """The first example is what the recording answers so that generate runs it live."""
    with (ASSETS / "recording.ndjson").open(encoding="utf-8", newline="\n") as file:
        asked = {trace.header.prompt for trace in read_runs(file)}
    assert asked == {examples_for("dialogues").first}


def test_so_is_what_is_recorded_of_smollm2():
    assert examples_for("chat").first == RECORDED
    assert f'compare "{RECORDED}" --model smollm2' in (ASSETS.parent / "Makefile").read_text(encoding="utf-8")


def test_every_kind_of_model_has_about_ten_examples():
    for kind in LABELS:
        assert 8 <= len(examples_for(kind).prompts) <= 11


def test_a_model_that_completes_is_given_beginnings_and_no_questions():
    prompts = examples_for("completion").prompts.values()
    assert not any(prompt.rstrip().endswith((".", "?", "!")) for prompt in prompts)
    assert all(prompt.rstrip().endswith((".", "?")) for prompt in examples_for("chat").prompts.values())


def test_all_examples_are_those_of_every_kind():
    assert len(all_examples()) == sum(len(examples_for(kind).prompts) for kind in LABELS)
    assert {examples_for(kind).first for kind in LABELS} <= set(all_examples())


def test_the_description_is_shown_as_text():
    assert "&lt;b&gt;tiny" in layout._about("<b>tiny</b>")


def test_nothing_is_fetched_from_elsewhere_and_no_prompt_is_kept():
    options = launch_options()
    assert options["run_history"] is False and options["ssr_mode"] is False
    assert "http" not in options["head"]
    assert not options["theme"]._stylesheets


# ---- model text never becomes markup


@pytest.mark.parametrize("name", SCRIPTS)
def test_templates_hold_no_placeholder(name):
    template = (ASSETS / name / f"{name}.html").read_text(encoding="utf-8")
    assert not re.search(r"\$\{|\{\{|@children", template)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_write_text_only(name):
    risky = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
    assert not re.search(risky, script(name))


def test_no_file_of_the_page_is_longer_than_300_lines():
    files = [*ASSETS.glob("*/*.js"), *ASSETS.glob("*/*.css"), *ASSETS.glob("*/*.html")]
    files += (ASSETS.parent / "dynamo" / "ui").glob("*.py")
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 300} == {}


def test_hostile_text_passes_through_unchanged():
    base, dynamo, *_ = send(handlers(scripted_pair(HOSTILE)), prompt="${alert(1)}")[-1]
    assert read_trace(base.splitlines()).text.replace(" ", "") == HOSTILE.replace(" ", "")
    assert read_trace(dynamo.splitlines()).header.prompt == "${alert(1)}"


def test_a_pairs_own_options_are_what_its_controls_begin_with_and_what_a_run_keeps():
    chosen = SamplingOptions(threshold=0.9, exact=True, correction="correlator", draw="anchored", blur=1)
    pair = replace(scripted_pair(), options=chosen)
    with gr.Blocks():
        tab = CompareTab(PageService(pair))
    assert tab.settings["threshold"].value == 0.9 and tab.settings["exact"].value is True
    assert tab.settings["blur"].value is False
    names = list(tab.settings)
    asked = Settings.from_controls(names, [each.value for each in tab.settings.values()], pair.options)
    assert asked.options == chosen
    updates = tab.pair_updates(scripted_pair())
    assert updates[tab.settings["exact"]] is False and updates[tab.settings["threshold"]] == 0.5
