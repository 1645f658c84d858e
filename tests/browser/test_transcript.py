"""A lane's chat as the page reads it, against the Python that wrote it."""

from __future__ import annotations

import re

import pytest
from chats import ANSWER, FIRST, NEXT, SECOND, one_by_one, run

from dynamo.trace.ndjson import read_trace
from dynamo.ui.components import script

TRANSCRIPT = ("pane/transcript.js",)


def test_a_chat_is_read_alike_in_one_piece_and_in_many(arithmetic):
    chat = FIRST[1] + SECOND[1]
    expression = """(() => { let chat = newChat(); for (let end = 0; end <= args[0].length; end += args[1])
      chat = readChat(chat, args[0].slice(0, end)); return readChat(chat, args[0]).turns; })()"""
    whole = arithmetic("readChat(newChat(), args[0]).turns", chat, files=TRANSCRIPT)
    assert [len(turn["passes"]) for turn in whole] == [len(ANSWER), len(NEXT)]
    for step in (1, 97, 1000):
        assert arithmetic(expression, chat, step, files=TRANSCRIPT) == whole


def test_a_run_without_an_end_was_stopped_when_the_next_begins(arithmetic):
    first = run("1", "dynamo", "a", ANSWER, end="")
    turns = arithmetic("readChat(newChat(), args[0]).turns", first + SECOND[1], files=TRANSCRIPT)
    assert [turn["end"]["end"] for turn in turns] == ["cancelled", "eos"]


@pytest.mark.parametrize(
    ("milliseconds", "count"), [(0, 0), (39.9, 0), (40, 1), (59.99, 1), (60, 2), (1e9, 6), (None, 6)]
)
def test_a_pass_is_shown_once_it_is_done(arithmetic, milliseconds, count):
    expression = "passesDone(readChat(newChat(), args[0]).turns[0], args[1])"
    assert arithmetic(expression, FIRST[1], milliseconds, files=TRANSCRIPT) == count


def test_what_is_saved_is_a_trace_that_python_reads(arithmetic):
    stopped = run("5", "dynamo", "a", ANSWER, end="")
    expression = """(() => { const turn = readChat(newChat(), args[0]).turns[0];
      turn.end ??= { end: "cancelled" };
      return [traceOf(turn), textOf(turn)]; })()"""
    for wire, end in ((FIRST[1], "eos"), (stopped, "cancelled")):
        saved, text = arithmetic(expression, wire, files=TRANSCRIPT)
        trace = read_trace(saved.splitlines())
        assert trace.end.reason == end
        assert trace.text.strip() == text == "".join(one_by_one(ANSWER))


@pytest.mark.parametrize(
    ("side", "header", "title"),
    [
        ("base", None, "Base model: one token per pass"),
        ("dynamo", None, "DynaMo: one to three tokens per pass"),
        ("base", {"lane": "base"}, "Base model: one token per pass"),
        (
            "base",
            {"lane": "base", "engine": "generate"},
            "Base model: one token per pass, transformers generate",
        ),
        (
            "base",
            {"lane": "base", "engine": "threshold-1"},
            "DynaMo at threshold 1: same weights, one token per pass",
        ),
        ("base", {"lane": "base", "engine": "toString"}, "Base model: one token per pass"),
        ("dynamo", {"lane": "dynamo", "engine": "dynamo"}, "DynaMo: one to three tokens per pass"),
    ],
)
def test_a_lane_is_titled_by_its_engine(arithmetic, side, header, title):
    assert ": ".join(arithmetic("titlesOf(...args)", side, header, files=TRANSCRIPT)) == title


def test_a_file_name_holds_only_plain_characters(arithmetic):
    header = {"lane": "../base", "run": "a/b c.d" + "0" * 20}
    assert arithmetic("fileName(args[0], 'txt')", header, files=TRANSCRIPT) == "dynamo-base-abcd0000.txt"


def test_no_function_of_the_pane_hides_another():
    names = re.findall(r"^(?:async )?(?:function|const|let) (\w+)", script("pane"), re.MULTILINE)
    assert len(names) > 50
    assert len(names) == len(set(names))
