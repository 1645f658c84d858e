"""The page without a browser: what handlers stream, and votes."""

from __future__ import annotations

import json
from dataclasses import replace

import gradio as gr
import pytest
from fakes import ScriptedEngine, Vocabulary, scripted_pair
from page_handlers import SETTINGS, handlers, send

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.loading import Pair
from dynamo.trace.ndjson import read_runs, read_trace
from dynamo.ui import ModelPair
from dynamo.ui.compare.handlers import in_one_sentence
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.tab import CompareTab
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.server.engines import LocalEngines


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
    pair = Pair(name="tiny", description="", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=None)
    wired = handlers(ModelPair.from_pair(pair))
    base, dynamo, _, said, _ = send(wired, exact=True, max_new_tokens=24)[-1]
    _, *timed = wired.look_again(base, dynamo)  # where their times spread, which a busy machine's do
    *_, status = said, *(status for *_, status in timed)
    assert "as if this model wrote one token at a time" in status
    passes = read_trace(dynamo.splitlines()).passes
    assert any(line.drafted for line in passes) and any(line.rejected for line in passes)


def test_a_dial_let_go_where_it_was_asks_for_nothing():
    wired = handlers()
    chat = send(wired)[-1][:2]
    assert list(wired.decode_again("loop", *chat, *SETTINGS.values())) == [(gr.skip(),) * 4]
    *_, again = wired.decode_again("loop", *chat, *{**SETTINGS, "threshold": 0.7}.values())
    assert again[0] != chat[0] and again[1] != chat[1]


def test_an_empty_seed_is_seed_zero():
    assert send(handlers(), seed=None)[-1][1].count("\n") == send(handlers(), seed=0)[-1][1].count("\n")


def test_a_bad_option_becomes_one_sentence():
    with pytest.raises(gr.Error, match="threshold: "):
        send(handlers(), threshold=7)


def test_an_error_cannot_bring_markup_to_the_page():
    class Refusing(ScriptedEngine):
        def stream(self, *args, **kwargs):
            raise ValueError("input_ids: <img src=x onerror=alert(1)> is too long")

    pair = scripted_pair()
    refusing = replace(
        pair, engines=LocalEngines({**pair.engines.by_name, "dynamo": Refusing(Vocabulary("x"), 3)})
    )
    with pytest.raises(gr.Error) as caught:
        send(handlers(refusing))
    assert "&lt;img" in caught.value.message and "<" not in caught.value.message


def test_a_failing_model_is_reported_without_its_internals(caplog):
    pair = scripted_pair()
    failing = ScriptedEngine(Vocabulary("one two three four"), 3, fail_at=1)
    pair = replace(pair, engines=LocalEngines({**pair.engines.by_name, "dynamo": failing}))
    with pytest.raises(gr.Error, match=r"The model failed \(RuntimeError\)"):
        send(handlers(pair))
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
    pair = Pair(
        name="tiny", description="tiny", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=table
    )
    wired = handlers(ModelPair.from_pair(pair))
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
    pair = Pair(name="tiny", description="", base=base, dynamo=dynamo_model, tokenizer=tokenizer, table=None)
    wired = handlers(ModelPair.from_pair(pair))
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
    base, dynamo, _, verdict, left = wired.vote(duel, "left")
    assert read_trace(base.splitlines()).header.lane == "base"
    assert read_trace(dynamo.splitlines()).header.lane == "dynamo"
    assert f"DynaMo was on the {'left' if duel.left == 'dynamo' else 'right'}" in verdict and left is None
    (row,) = VoteBook(tmp_path).summary()
    assert row.votes == 1 and (row.wins, row.losses) == ((1, 0) if duel.left == "dynamo" else (0, 1))


def test_no_answer_of_a_duel_was_to_be_read_before(tmp_path):
    """At the visitor's seed it was word for word the recording's, which says whose it is."""
    wired = handlers(votes=tmp_path)
    seeds = {send(wired, blind=True)[-1][-1].options["seed"] for _ in range(3)}
    assert len(seeds) == 3 and 0 not in seeds


def test_a_vote_on_a_quantised_pair_names_its_bits(tmp_path):
    """It named the model alone, and was summed up with votes on the same model as it is."""
    wired = handlers(replace(scripted_pair(), bits=4), votes=tmp_path)
    wired.vote(send(wired, blind=True)[-1][-1], "tie")
    book = VoteBook(tmp_path)
    assert book.summary("scripted", 4)[0].ties == 1 and book.summary("scripted", 0) == []


def test_without_a_folder_there_is_no_voting():
    with gr.Blocks():
        tab = CompareTab(PageService(scripted_pair()))
    assert isinstance(tab.blind, gr.State) and tab.votes is None
    assert read_trace(send(handlers(), blind=True)[-1][0].splitlines()).header.lane == "base"
