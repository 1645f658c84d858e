"""Files that a stranger wrote: sweeps, data sets, journals, votes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hostile import BRIEF, VALUES, changed, places, refusal, values
from hypothesis import given
from hypothesis import strategies as st

from dynamo import charts
from dynamo.data import instructions
from dynamo.data.documents import encode_rows, read_documents
from dynamo.data.prompts import read_prompts as read_chats
from dynamo.data.sources import read_conversations
from dynamo.evaluation.completion import read_prompts
from dynamo.evaluation.journal import Journal, read_journal
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.ui.compare.votes import VOTES_FILE, VoteBook
from dynamo.ui.explore import sweep_view

ROOT = Path(__file__).resolve().parents[2]
SWEEP = json.loads((ROOT / "assets" / "sweep.json").read_text(encoding="utf-8"))


# -- sweeps -----------------------------------------------------------------------------------------------


CURVE = SWEEP["calibration"][0]
SHORT = {**SWEEP, "points": SWEEP["points"][:2], "calibration": [{**CURVE, "bins": CURVE["bins"][:2]}]}
CHARTS = {"points": charts.sweep_shares, "calibration": charts.calibration}


def use_sweep(path: Path, text: str, drawn: str) -> None:
    path.write_text(text)
    report = SweepReport.read(path).to_json()
    sweep_view.table(report)
    sweep_view.provenance(report, here=False).encode()
    json.dumps(report, allow_nan=False)
    if drawn in CHARTS:
        CHARTS[drawn](report[drawn])


@pytest.mark.parametrize("place", list(places(SHORT)), ids=str)
def test_any_value_in_any_field_of_a_sweep_is_read_or_refused(tmp_path, place):
    for value in VALUES:
        try:
            text = json.dumps(changed(SHORT, place, value))
        except ValueError:
            continue
        refusal(lambda text=text: use_sweep(tmp_path / "sweep.json", text, place[0]))


def test_no_cell_of_the_csv_is_a_formula():
    """A spreadsheet runs a cell that begins so; only numbers and our own headers stand there."""
    for line in sweep_view.to_csv(SWEEP).splitlines():
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r", '"')) for cell in line.split(","))
    renamed = changed(SWEEP, ("points", 0, "share_by_order"), {"=1+1": 1.0})
    with pytest.raises(ValueError):
        SweepReport.from_json(renamed)


# -- rows: data sets, instructions, prompts, journals -----------------------------------------------------

RAW = {
    "nested": b"[" * 200_000,
    "nested objects": b'{"turns":' * 100_000,
    "empty": b"",
    "zeros": b"\0" * 100,
    "binary": bytes(range(256)),
    "utf-16": '{"text":"a"}'.encode("utf-16"),
    "null": b"null",
    "a number": b"5",
    "a long number": b"9" * 10_000,
    "too large": b"1e999",
    "one long line": b'"' + b"x" * 2**18 + b'"',
    "newlines": b"\n" * 100_000,
    "surrogates": b'{"text":"\\ud800","turns":[{"role":"user","text":"\\udfff"}]}',
    "rating too large": b'{"instruction":"a","output":"b","rating":1e999}',
    "rating is no number": b'{"instruction":"a","output":"b","rating":NaN}',
    "rating of many digits": b'{"instruction":"a","output":"b","rating":' + b"9" * 400 + b"}",
    "a role that is a list": b'{"turns":[{"role":[],"text":"a"}]}',
    "a turn that is a number": b'{"turns":[5]}',
    "a row too long to quote": b'{"turns":[{"role":"x","text":"' + b"y" * 100_000 + b'"}]}',
    "a chat of numbers": b'[[{"role":"user","content":5}]]',
    "a chat of another role": b'[[{"role":[],"content":"a"}]]',
    "settings that are a number": b'{"settings":5,"a":1}',
    "a key that is a list": b'{"settings":{},"a":[]}',
}


def readers(path: Path, tokenizer) -> list:
    return [
        lambda: read_documents(path, tokenizer),
        lambda: list(read_conversations(path)),
        lambda: instructions.encode(instructions.read_examples(path), tokenizer, 64),
        lambda: instructions.read_ratings(path),
        lambda: read_journal(path),
        lambda: Journal(path, ("a",), {"x": 1}),
        lambda: read_chats(path, tokenizer),
        lambda: read_prompts(path),
    ]


@pytest.mark.parametrize("content", RAW.values(), ids=RAW)
def test_every_reader_of_rows_reads_or_refuses(tmp_path, tokenizer, content):
    for suffix in (".jsonl", ".jsonl.gz"):
        for number in range(8):
            path = tmp_path / f"rows{number}{suffix}"  # a journal mends its own file
            path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
            refusal(readers(path, tokenizer)[number])


def test_a_packed_file_that_was_cut_or_is_not_packed_is_refused(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl.gz"
    for content in (gzip.compress(b'{"text":"a"}\n' * 99)[:-9], b'{"text":"a"}'):
        path.write_bytes(content)
        assert "damaged" in refusal(lambda: read_documents(path, tokenizer))


def test_a_packed_line_that_no_memory_holds_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("dynamo.data.readers.LONGEST_LINE", 1000)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text":"' + b"a" * 10**6 + b'"}'))
    assert "longer than 1,000 characters" in refusal(lambda: read_documents(path, tokenizer))


@BRIEF
@given(
    st.dictionaries(st.sampled_from(["text", "turns", "messages", "instruction", "output", "rating"]), values)
)
def test_a_row_of_anything_is_read_or_refused(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "row.jsonl"
    try:
        path.write_text(json.dumps(row) + "\n")
    except ValueError:
        return
    refusal(lambda: list(read_conversations(path)))
    refusal(lambda: instructions.read_examples(path))


def test_text_of_any_kind_is_encoded(tokenizer):
    from hostile import TEXTS

    turns = [[{"role": "user", "content": text}] for text in TEXTS if len(text) < 9000]
    assert len(encode_rows(turns, tokenizer)) == len(turns)


# -- votes ------------------------------------------------------------------------------------------------


def vote(folder: Path, **fields) -> None:
    usual = {"model": "m", "options": {"threshold": 0.5}, "speed_up": 1.0, "tokens_per_forward": 1}
    VoteBook(folder).add(**{**usual, "outcome": "tie", **fields})


def test_votes_of_any_bytes_are_read_or_refused(tmp_path):
    vote(tmp_path)
    file = tmp_path / VOTES_FILE
    whole = file.read_bytes()
    draw = random.Random(1)
    for number in range(120):
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            spoiled[draw.randrange(100 if number % 3 == 0 else len(whole))] = draw.randrange(256)
        file.write_bytes(bytes(spoiled) if number % 5 else whole[: draw.randrange(len(whole))])
        refusal(lambda: [standing.to_json() for standing in VoteBook(tmp_path).summary()])
        refusal(lambda: vote(tmp_path))


@pytest.mark.parametrize("name", ["model", "speed_up", "tokens_per_forward", "outcome", "id"])
def test_a_vote_of_anything_is_kept_or_refused(tmp_path, name):
    for value in VALUES:
        refusal(lambda value=value: vote(tmp_path, **{name: value}))
    for row in VoteBook(tmp_path).summary():
        assert 0 <= row.threshold <= 1
