"""Rows as people have them."""

import json

import pytest
import templates
from hostile import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.data.documents import encode_rows, fitted
from dynamo.data.reading import Reading
from dynamo.data.rows import Row, rows
from dynamo.data.sources import read_questions
from dynamo.data.text import CHAT_TEMPLATE

U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}
S, T = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "21"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}


@pytest.fixture
def read(tmp_path):
    def read(*values, strict=False):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        reading = Reading(strict)
        return [row.content for row in rows(path, reading)], reading

    return read


SPELLINGS = {
    "OpenAI": {"messages": [U, A]},
    "ours": {"turns": [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "Hello."}]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello."}]},
    "ShareGPT of roles": {"conversations": [{"from": "user", "value": "hi"}, A]},
    "capitals": {"messages": [U | {"role": "User"}, A | {"role": "ASSISTANT"}]},
    "parts": {"messages": [U | {"content": [{"type": "text", "text": "h"}, {"text": "i"}]}, A]},
    "nulls": {"turns": None, "text": None, "messages": [U | {"text": None}, A | {"tool_calls": None}]},
    "an empty list": {"turns": [], "messages": [U, A]},
    "with its text": {"messages": [U, A], "text": "<|user|>hi<|end|>"},
    "a list": [U, A],
    "a string": {"messages": json.dumps([U, A])},
    "Alpaca": {"instruction": "hi", "input": "", "output": "Hello.", "text": "### Instruction: .."},
    "Alpaca's null": {"instruction": "hi", "input": None, "output": "Hello.", "system": None, "history": []},
    "only an input": {"instruction": "", "input": "hi", "output": "Hello."},
    "Dolly": {"instruction": "hi", "context": "", "response": "Hello.", "category": "open_qa"},
    "prompt": {"prompt": "hi", "completion": "Hello."},
    "prompt of turns": {"prompt": [U], "completion": [A]},
    "question": {"question": "hi", "answer": "Hello."},
    "nulls of another": {"prompt": None, "completion": None, "question": "hi", "answer": "Hello."},
}


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS)
def test_a_conversation_in_every_spelling(read, row):
    found, reading = read(row)
    assert found == [[U, A]] and not reading.left_out and not reading.parts


def test_system_history_and_input_are_kept(read):
    row = {"instruction": "And?", "input": "you", "output": "Fine.", "system": "Be brief."}
    last = [{"role": "user", "content": "And?\n\nyou"}, {"role": "assistant", "content": "Fine."}]
    assert read(row | {"history": [["hi", "Hello."]]})[0] == [[S, U, A, *last]]
    assert read({"system": "Be brief.", "conversations": [U, A]})[0] == [[S, U, A]]
    assert read({"system": "Be rude.", "conversations": [S, U, A]})[0] == [[S, U, A]]
    assert read({"messages": [S | {"role": "developer"}, U, A]})[0] == [[S, U, A]]


def test_what_is_no_text_of_a_turn_is_counted(read):
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    found, reading = read({"messages": [U | {"content": [image, "hi"]}, CALL, T, A | {"weight": 0}]})
    assert found == [[U, T, A]]
    assert {what: tally.count for what, tally in reading.parts.items()} == {
        "parts of turns that are not text": 1,
        "tool calls": 1,
        "weights of 0, as every reply is learnt": 1,
    }


UNUSABLE = {
    "an empty text": {"text": " \n"},
    "an empty reply": {"instruction": "x", "output": ""},
    "an empty question": {"prompt": "", "completion": "x"},
    "an empty turn": {"messages": [U | {"content": ""}, A]},
    "an empty conversation": {"messages": []},
    "a turn of an unknown role": {"messages": [U | {"role": "robot"}, A]},
    "a turn that is no object": {"messages": ["hi"]},
    "a turn that is no text": {"messages": [U | {"content": 5}, A]},
    "a text that is no text": {"text": 5},
    "a conversation that is no list": {"messages": "hi"},
    "a conversation without a turn of user or assistant": {"messages": [S]},
    "a history that is no list of questions and answers": {"query": "x", "answer": "y", "history": ["z"]},
    "no column that is read": {"label": 1, "url": "x"},
    "a value that is no object": 7,
}  # fmt: skip


@pytest.mark.parametrize("reason", UNUSABLE)
def test_an_unusable_row_is_left_out_and_named(read, reason):
    found, reading = read(UNUSABLE[reason], {"messages": [U, A]}, *[UNUSABLE[reason]] * 4)
    assert found == [[U, A]] and reading.rows == 1
    ((said, tally),) = reading.left_out.items()
    assert said == reason and tally.count == 5
    assert tally.places == ["rows.jsonl, line 1", "rows.jsonl, line 3", "rows.jsonl, line 4"]
    assert Reading.from_json(reading.to_json()) == reading
    with pytest.raises(ValueError, match=f"line 1: {reason}.*--strict"):
        read(UNUSABLE[reason], {"messages": [U, A]}, strict=True)
    with pytest.raises(ValueError, match=r"rows.jsonl"):
        read(UNUSABLE[reason])


def test_a_template_without_a_place_for_a_role_leaves_its_turns_out(tokenizer):
    assert tokenizer.chat_template == CHAT_TEMPLATE
    reading = Reading(conversations=2)
    found = [Row([S, U, A], "a, line 1"), Row([U, T, A], "a, line 2"), Row("Text.", "a, line 3")]
    kept = [row.content for row in fitted(found, tokenizer, reading)]
    assert kept == [[U, A], [U, A], "Text."] and reading.conversations == 2
    assert sorted(tally.places[0] for tally in reading.parts.values()) == ["a, line 1", "a, line 2"]
    assert len(encode_rows(kept, tokenizer)) == 3


@pytest.mark.parametrize(
    ("template", "placed"),
    [
        (templates.CHATML, {"system", "tool"}),
        (templates.LLAMA_3, {"system", "tool"}),
        (templates.THINKING, {"system", "tool"}),
        (templates.MISTRAL, set()),
        (templates.PLAIN_MARKERS, {"system"}),
    ],
    ids=["ChatML", "Llama 3", "thinking", "Mistral", "plain markers"],
)
def test_a_turn_stands_where_the_template_has_a_marker_for_it(template, placed):
    """Mistral's refuses a system turn, and would write what a tool says as the assistant's."""
    tokenizer = templates.byte_level(template)
    reading = Reading(conversations=1)
    (row,) = fitted([Row([S, U, T, A], "a, line 1")], tokenizer, reading)
    assert {turn["role"] for turn in row.content} == {"user", "assistant"} | placed
    assert {what.split()[0] for what in reading.parts} == {"system", "tool"} - placed
    assert len(encode_rows([row.content], tokenizer)) == 1


def test_a_conversation_that_the_template_does_not_take_is_left_out():
    reading = Reading(conversations=2)
    found = [Row([U, U, A], "a, line 1"), Row([U, A], "a, line 2")]
    assert [row.content for row in fitted(found, templates.byte_level(templates.MISTRAL), reading)] == [
        [U, A]
    ]
    assert reading.conversations == 1 and reading.rows_left_out == 1
    with pytest.raises(ValueError, match=r"a, line 1: .*alternate.*--strict"):
        list(fitted(found, templates.byte_level(templates.MISTRAL), Reading(strict=True)))


NAMES = ["messages", "conversations", "turns", "text", "instruction", "input", "output", "prompt",
         "completion", "system", "history", "rating", "role", "from", "content", "value"]  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "gpt"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(anything, min_size=1, max_size=4))
def test_rows_of_anything_are_read_or_refused(tmp_path_factory, tokenizer, values):
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    values = [{"text": "One."}, *values]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    reading = Reading()
    if refusal(lambda: list(rows(path, Reading()))) is None:
        found = list(fitted(rows(path, reading), tokenizer, reading))
        assert len(found) == reading.rows == len(values) - reading.rows_left_out
        assert len(encode_rows([row.content for row in found], tokenizer)) == len(found)


def test_a_question_needs_no_answer_where_only_questions_are_wanted(tmp_path):
    asked = [
        {"messages": [S, U]},
        {"messages": [S, U, A, {"role": "user", "content": "More?"}]},
        {"text": "hi"},
        {"question": "hi"},
        {"instruction": "hi", "input": "", "output": ""},
        {"prompt": [S, U]},
        {"prompt": "more", "response": "Hello.", "history": [["hi", "Hello."]]},
        "hi",
        {"messages": [A]},
        {"answer": "hi"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(asked))
    (tmp_path / "lines.txt").write_text("\nhi\n\nWhat now?\n\n")
    reading = Reading()
    names = [str(tmp_path / name) for name in ("rows.json", "lines.txt")]
    assert list(read_questions(names, reading)) == ["hi"] * 9 + ["What now?"]
    assert (reading.conversations, reading.texts, reading.rows_left_out) == (6, 4, 2)
    with pytest.raises(ValueError, match="row 9: a conversation without a turn of the user"):
        list(read_questions(names[:1], Reading(strict=True)))
