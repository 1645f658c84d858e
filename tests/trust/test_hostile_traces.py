"""Traces that a stranger wrote: files to load, and what a browser sends back of a chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hostile import BRIEF, VALUES, changed, places, refusal, values
from hypothesis import given
from hypothesis import strategies as st

from dynamo import charts
from dynamo.trace.ndjson import PassLine, decode_line, encode_line, read_runs
from dynamo.ui.compare.chat import Chat

RECORDING = Path(__file__).resolve().parents[2] / "assets" / "recording.ndjson"
LINES = RECORDING.read_text(encoding="utf-8").splitlines()


def _samples() -> dict[str, dict]:
    """One line of every kind, the fullest of each."""
    found: dict[str, dict] = {}
    for line in map(json.loads, LINES):
        kind = next(iter(line))
        if len(line) > len(found.get(kind, ())):
            found[kind] = line
    return found


SAMPLES = _samples()
PLACES = [(kind, place) for kind, line in SAMPLES.items() for place in places(line)]


def use(text: str) -> None:
    """What the page does with a line that it has read."""
    line = decode_line(text)
    written = encode_line(line)
    written.encode()
    assert encode_line(decode_line(written)) == written
    if isinstance(line, PassLine):
        charts.backoff_timeline([line], 0.5).to_json()


def test_the_samples_are_of_every_kind():
    assert set(SAMPLES) == {"format", "pass", "joint", "end"}


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=lambda value: str(value))
def test_any_value_in_any_field_is_read_or_refused(kind, place):
    for value in VALUES:
        try:
            text = json.dumps(changed(SAMPLES[kind], place, value))
        except ValueError:
            continue  # Python writes no whole number of so many digits
        refusal(lambda text=text: use(text))


@BRIEF
@given(st.sampled_from(PLACES), values)
def test_no_field_lets_another_error_through(where, value):
    kind, place = where
    refusal(lambda: use(json.dumps(changed(SAMPLES[kind], place, value))))


@BRIEF
@given(st.text(max_size=200))
def test_text_that_is_no_trace_is_refused(text):
    assert refusal(lambda: read_runs(text.split("\n"))) is not None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 50_000, '{"pass":0,"ids":' + "[" * 100_000])
def test_nesting_without_end_is_refused_and_not_followed(text):
    assert "nested too deeply" in refusal(lambda: decode_line(text))


def test_a_number_too_large_for_a_float_is_refused():
    text = json.dumps(SAMPLES["pass"]).replace(f'"ms": {SAMPLES["pass"]["ms"]}', '"ms": 1e999')
    assert "too large" in refusal(lambda: decode_line(text))


def test_half_a_character_is_mended_so_that_the_page_can_be_sent():
    header = decode_line(json.dumps({**SAMPLES["format"], "prompt": "a\ud800b"}))
    assert header.prompt == "a?b"


@pytest.mark.parametrize("cut", range(1, 2000, 97))
def test_a_chat_that_was_cut_anywhere_is_read_or_refused(cut):
    wire = "\n".join(line for line in LINES if '"joint"' not in line)
    refusal(lambda: Chat.read(wire[:-cut], wire[:-cut]))


def test_a_chat_of_deeply_nested_lines_is_refused():
    deep = '{"format":' + "[" * 100_000
    assert "nested too deeply" in refusal(lambda: Chat.read(deep, deep))


@pytest.mark.parametrize("seed", [None, "x", -1, 1.5, True, 2**70])
def test_a_made_up_seed_in_a_chat_is_refused_when_it_is_asked_for(seed):
    fields = {**SAMPLES["format"], "lane": "dynamo", "options": {"seed": seed}}
    fields.pop("recorded", None)
    chat = Chat.read(*(json.dumps({**fields, "lane": lane}) for lane in ("base", "dynamo")))
    assert refusal(lambda: chat.last_seed).startswith("chat: ")
