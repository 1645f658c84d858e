"""The page without a browser: what handlers stream, what the page is made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from fakes import HOSTILE, ScriptedEngine, Vocabulary, scripted_contenders

from dynamo.cooccurrence import CooccurrenceTable
from dynamo.ndjson import read_runs, read_trace
from dynamo.sampler import SamplingOptions
from dynamo.ui import Analyses, Contenders, Offer, build_demo, launch_options, layout
from dynamo.ui.compare import compare_tab
from dynamo.ui.components import ASSETS, SCRIPTS, script
from dynamo.ui.examples import LABELS, all_examples, examples_for
from dynamo.ui.handlers import Handlers, in_one_sentence
from dynamo.ui.host import Host
from dynamo.ui.settings import exact_switch, settings_panel, threshold_dial
from dynamo.ui.votes import VoteBook

SETTINGS = {
    "threshold": 0.5,
    "exact": False,
    "mask_strength": 1,
    "temperature": 0.7,
    "top_k": 50.0,
    "repetition_penalty": 1.1,
    "max_order": 3.0,
    "max_new_tokens": 96.0,
    "seed": 0,
    "adaptive": True,
    "blur": True,
}


def handlers(contenders=None, votes=None) -> Handlers:
    host = Host(contenders or scripted_contenders())
    return Handlers(host, list(SETTINGS), VoteBook(votes) if votes else None)


def send(
    wired: Handlers, prompt="hello", chat=("", ""), replacing=False, blind=False, opponent="loop", **changes
):
    values = {**SETTINGS, **changes}.values()
    return list(wired.send(prompt, replacing, blind, opponent, *chat, *values))


@pytest.fixture(scope="module")
def config():
    return build_demo(scripted_contenders()).get_config_file()


# ---- the handlers


def test_a_turn_streams_both_traces_and_the_last_pass():
    base, dynamo, inspector, status, duel = send(handlers())[-1]
    assert read_trace(base.splitlines()).end.reason == "eos"
    assert read_trace(dynamo.splitlines()).text == read_trace(base.splitlines()).text
    assert json.loads(inspector)["run"] == read_trace(dynamo.splitlines()).header.run
    assert "lossy" in status and duel is None


def test_an_edited_message_replaces_the_last_turn_and_a_retry_asks_it_again():
    wired = handlers()
    first = send(wired)[-1][:2]
    edited = send(wired, "goodbye", first, replacing=True)[-1][:2]
    assert [run.header.prompt for run in read_runs(edited[1].splitlines())] == ["goodbye"]
    *_, retried = wired.retry("loop", *edited, *{**SETTINGS, "seed": 1}.values())
    header = read_trace(retried[1].splitlines()).header
    assert (header.prompt, header.options["seed"]) == ("goodbye", 1)
    assert wired.edit(*edited)[:2] == ("goodbye", True)


def test_whole_numbers_may_come_as_floats():
    header = read_trace(send(handlers(), max_new_tokens=8.0)[-1][0].splitlines()).header
    assert header.options["top_k"] == 50 and isinstance(header.options["top_k"], int)
    assert header.options["max_new_tokens"] == 8


def test_exact_mode_runs_and_says_what_it_keeps(tokenizer, base, dynamo_model):
    pair = SimpleNamespace(
        name="tiny", description="", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=None
    )
    _, dynamo, _, status, _ = send(handlers(Contenders.from_pair(pair)), exact=True, max_new_tokens=24)[-1]
    assert "same distribution as this model's first head" in status
    passes = read_trace(dynamo.splitlines()).passes
    assert any(line.drafted for line in passes) and any(line.rejected for line in passes)


def test_a_dial_let_go_where_it_was_asks_for_nothing():
    wired = handlers()
    chat = send(wired)[-1][:2]
    assert list(wired.decode_again(*chat, *SETTINGS.values())) == [(gr.skip(),) * 4]
    *_, again = wired.decode_again(*chat, *{**SETTINGS, "threshold": 0.7}.values())
    assert again[0] == chat[0] and again[1] != chat[1]


def test_an_empty_seed_is_seed_zero():
    assert send(handlers(), seed=None)[-1][1].count("\n") == send(handlers(), seed=0)[-1][1].count("\n")


def test_a_bad_option_becomes_one_sentence():
    with pytest.raises(gr.Error, match="threshold: expected 0 to 1, got 7"):
        send(handlers(), threshold=7)


def test_an_error_cannot_bring_markup_to_the_page():
    class Refusing(ScriptedEngine):
        def stream(self, *args, **kwargs):
            raise ValueError("input_ids: <img src=x onerror=alert(1)> is too long")

    contenders = scripted_contenders()
    refusing = type(contenders)(**{**vars(contenders), "dynamo": Refusing(Vocabulary("x"), 3)})
    with pytest.raises(gr.Error) as caught:
        send(handlers(refusing))
    assert "&lt;img" in caught.value.message and "<" not in caught.value.message


def test_a_failing_model_is_reported_without_its_internals(caplog):
    contenders = scripted_contenders()
    failing = ScriptedEngine(Vocabulary("one two three four"), 3, fail_at=1)
    contenders = type(contenders)(**{**vars(contenders), "dynamo": failing})
    with pytest.raises(gr.Error, match=r"The model failed \(RuntimeError\)"):
        send(handlers(contenders))
    assert "the scripted engine fails here" in caplog.text


def test_a_handler_that_was_closed_closes_its_run():
    closed = []

    @in_one_sentence
    def handler():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    running = handler()
    next(running)
    running.close()
    assert closed == [True]


def test_an_empty_prompt_is_a_remark_at_its_box_and_no_error():
    answers = handlers().validate("  \n", *SETTINGS.values())
    assert [answer["is_valid"] for answer in answers] == [False] + [True] * len(SETTINGS)
    assert answers[0]["message"] == "Type a message first, or pick an example below."
    assert all(answer["is_valid"] for answer in handlers().validate("hi", *SETTINGS.values()))


def test_real_models_race_to_the_same_end(tokenizer, base, dynamo_model):
    table = CooccurrenceTable.count([list(range(4, 300)) * 2], order=3)
    pair = SimpleNamespace(
        name="tiny", description="tiny", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=table
    )
    wired = handlers(Contenders.from_pair(pair))
    base_wire, dynamo_wire, inspector, *_ = send(wired, threshold=0.0, max_new_tokens=24)[-1]
    for wire in (base_wire, dynamo_wire):
        trace = read_trace(wire.splitlines())
        tokens = [token for step in trace.passes for token in step.tokens]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == trace.text
        assert trace.passes[0].prefill and all(step.milliseconds > 0 for step in trace.passes)
        assert (trace.end.reason == "length") == (len(tokens) == 24)
    assert {len(step.tokens) for step in read_trace(base_wire.splitlines()).passes} == {1}
    assert json.loads(inspector)["joint"]["text"]


@pytest.mark.parametrize("opponent", ["loop", "generate", "threshold-1"])
def test_every_opponent_of_a_real_pair_answers_a_second_turn(tokenizer, base, dynamo_model, opponent):
    pair = SimpleNamespace(
        name="tiny", description="", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=None
    )
    wired = handlers(Contenders.from_pair(pair))
    first = send(wired, opponent=opponent, max_new_tokens=8)[-1]
    second = send(wired, "and then?", first[:2], opponent=opponent, max_new_tokens=8)[-1]
    runs = read_runs(second[0].splitlines())
    assert [run.header.engine for run in runs] == [opponent] * 2
    assert all(len(line.tokens) == 1 for run in runs for line in run.passes)


# ---- votes


def test_a_vote_is_kept_and_then_the_sides_are_told(tmp_path):
    wired = handlers(votes=tmp_path)
    views = send(wired, blind=True)
    assert all(len(read_runs(wire.splitlines())[0].passes) == 1 for wire in views[-1][:2])
    duel = views[-1][-1]
    base, dynamo, _, told, left = wired.vote(duel, "left")
    assert read_trace(base.splitlines()).header.lane == "base"
    assert read_trace(dynamo.splitlines()).header.lane == "dynamo"
    assert f"DynaMo was on the {'left' if duel.left == 'dynamo' else 'right'}" in told and left is None
    (row,) = VoteBook(tmp_path).summary()
    assert row.votes == 1 and (row.wins, row.losses) == ((1, 0) if duel.left == "dynamo" else (0, 1))


def test_a_vote_on_a_quantised_pair_names_its_bits(tmp_path):
    """It named the model alone, and was summed up with votes on the same model as it is."""
    wired = handlers(replace(scripted_contenders(), bits=4), votes=tmp_path)
    wired.vote(send(wired, blind=True)[-1][-1], "tie")
    book = VoteBook(tmp_path)
    assert book.summary("scripted", 4)[0].ties == 1 and book.summary("scripted", 0) == []


def test_without_a_folder_there_is_no_voting():
    with gr.Blocks():
        tab = compare_tab(Host(scripted_contenders()), Offer(), None)
    assert isinstance(tab.blind, gr.State) and tab.votes is None
    assert read_trace(send(handlers(), blind=True)[-1][0].splitlines()).header.lane == "base"


# ---- what the page is made of


def test_every_setting_starts_at_the_options_default():
    with gr.Blocks():
        controls = {"threshold": threshold_dial(), "exact": exact_switch(), **settings_panel(3)}
    default = SamplingOptions()
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
    demo = build_demo(scripted_contenders(), Analyses(audit=lambda *_: None), Offer(queue_size=7))
    limits = [fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id == "model"]
    assert len(limits) >= 8 and set(limits) <= {1, "default"}
    assert demo._queue.max_size == 7


def test_a_recording_is_on_the_page_before_anything_was_asked(tmp_path):
    host = Host(scripted_contenders())
    run = json.loads(send(handlers())[-1][1].splitlines()[0])["run"]
    path = tmp_path / "recording.ndjson"
    wired = handlers()
    wires = send(wired)[-1][:2]
    path.write_text("".join(wires), encoding="utf-8")
    first = host.load(path, keep=True)
    with gr.Blocks():
        tab = compare_tab(host, Offer(recording=path), first)
    assert read_trace(tab.dynamo.value.splitlines()).header.recorded
    assert run not in tab.dynamo.value


def test_the_first_example_is_what_the_recording_answers_so_that_generate_runs_it_live():
    with (ASSETS / "recording.ndjson").open(encoding="utf-8", newline="\n") as file:
        asked = {trace.header.prompt for trace in read_runs(file)}
    assert asked == {examples_for("dialogues").first}


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
    base, dynamo, *_ = send(handlers(scripted_contenders(HOSTILE)), prompt="${alert(1)}")[-1]
    assert read_trace(base.splitlines()).text.replace(" ", "") == HOSTILE.replace(" ", "")
    assert read_trace(dynamo.splitlines()).header.prompt == "${alert(1)}"
