"""One conversation in every file format, encoding and packing; and files that are something else."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import subprocess
from shutil import which

import pytest
from hostile import refusal
from pyarrow import Table, parquet

from dynamo.data.documents import read_documents
from dynamo.data.reading import Reading
from dynamo.data.rows import read_rows, rows
from dynamo.data.sources import data_files, read_all

ASKED, TOLD = "Which is it, the “blue” one; or\nthe red?", "The blue one, at 5,50 €."
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]
PAIRS = [{"instruction": ASKED, "output": TOLD}] * 3
CHATS = [{"messages": TURNS, "text": None}] * 3


def lines(found):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def table(found, delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, found[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


CELLS = [{"messages": json.dumps(TURNS)}] * 3
FILES = {
    "rows.jsonl": lines(CHATS).encode(),
    "rows.ndjson": lines(PAIRS).encode(),
    "list.json": json.dumps(CHATS, indent=2).encode(),
    "lists.json": json.dumps([TURNS] * 3).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": PAIRS}, indent=1).encode(),
    "one-line.json": json.dumps({"data": PAIRS}).encode(),
    "objects.json": "".join(json.dumps(row, indent=1) + "\n" for row in CHATS).encode(),
    "lists.jsonl": lines([TURNS] * 3).encode(),
    "no-suffix": lines(CHATS).encode(),
    "called.txt": lines(CHATS).encode(),
    "table.csv": table(PAIRS, ",").encode(),
    "spreadsheet.csv": table(PAIRS, ";").encode("utf-8-sig"),
    "table.tsv": table(PAIRS, "\t").encode(),
    "cells.csv": table(CELLS, ",").encode(),
    "marked.jsonl": lines(CHATS).encode("utf-8-sig"),
    "windows.jsonl": lines(CHATS).replace("\n", "\r\n").encode(),
    "utf-16.jsonl": lines(CHATS).encode("utf-16"),
    "utf-16-le.jsonl": lines(CHATS).encode("utf-16-le"),
    "utf-16-be.jsonl": lines(CHATS).encode("utf-16-be"),
    "utf-32.jsonl": lines(CHATS).encode("utf-32"),
    "blank.jsonl": b"\n\n" + lines(CHATS).replace("\n", "\n\n").encode(),
    "rows.jsonl.gz": gzip.compress(lines(CHATS).encode()),
    "rows.jsonl.bz2": bz2.compress(lines(CHATS).encode()),
    "table.csv.xz": lzma.compress(table(PAIRS, ",").encode()),
    "packed.jsonl": gzip.compress(lines(CHATS).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_conversation_reads_alike_in_every_format(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    reading = Reading()
    assert [row.content for row in rows(tmp_path / name, reading)] == [TURNS] * 3
    assert reading.conversations == 3 and not reading.left_out and not reading.parts


def test_parquet_reads_like_lines(tmp_path):
    other = [{"messages": None, "text": "Plain."}]
    parquet.write_table(Table.from_pylist(CHATS + other), tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "rows.parquet")) == [TURNS] * 3 + ["Plain."]
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rows.parquet, after row 0: the file is damaged"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.skipif(which("zstd") is None, reason="the program zstd is not there")
def test_a_packed_file_is_known_by_its_first_bytes(tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text(lines(CHATS))
    subprocess.run(["zstd", "-q", "-o", str(tmp_path / "packed.jsonl"), str(plain)], check=True)
    assert list(read_rows(tmp_path / "packed.jsonl")) == [TURNS] * 3


@pytest.mark.parametrize(
    ("name", "content", "called"),
    [
        ("a.jsonl", b"PK\x03\x04..", "zip archive"),
        ("a.csv", b"\xd0\xcf\x11\xe0..", "Office"),
        ("a.jsonl", b"%PDF-1.7", "PDF"),
        ("a.json", b"<!DOCTYPE html><p>Sign in", "web page"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "LFS"),
        ("a.parquet", b'{"text": "a"}', "no parquet"),
        ("a.jsonl", b"ARROW1\0\0", "Arrow"),
        ("a.txt", b"\0\1\2\3", "binary"),
        ("a.log", b"12:30 started", "not a kind of file"),
        ("a.jsonl", '{"text": "é"}'.encode("latin-1"), "encoding"),
        ("a.tar.gz", gzip.compress(b"a" * 257 + b"ustar" + b"\0" * 250, mtime=0), "tar"),
    ],
)
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path, name, content, called):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{called}"):
        list(read_rows(tmp_path / name))


def test_a_plain_text_is_documents_and_loses_no_line(tmp_path):
    story = "".join(f"line {number} of a long story\n\n" for number in range(400))
    (tmp_path / "story.txt").write_text(story)
    found = list(rows(tmp_path / "story.txt", Reading()))
    assert "".join(row.content for row in found) == story and len(found) == 3
    for row in found:
        line = int(row.where.rpartition(" ")[2])
        assert story.splitlines()[line - 1] == row.content.splitlines()[0]


def test_a_line_that_is_cut_off_is_left_out(tmp_path):
    """As a download that was stopped leaves it."""
    (tmp_path / "rows.jsonl").write_text(lines(CHATS)[:-20])
    reading = Reading()
    assert len(list(rows(tmp_path / "rows.jsonl", reading))) == 2
    assert reading.left_out["text that is not JSON"].places == ["rows.jsonl, line 3"]


def test_files_globs_folders_and_standard_input_read_alike(tmp_path, tokenizer, monkeypatch):
    for name in ("a.jsonl", "b.csv", "notes.txt", "settings.json", "README.md"):
        content = FILES["table.csv"] if name == "b.csv" else FILES["rows.jsonl"]
        (tmp_path / name).write_bytes(content)
    two = [str(tmp_path / name) for name in ("a.jsonl", "b.csv")]
    assert [str(path) for path in data_files([str(tmp_path)])] == two
    assert [str(path) for path in data_files([str(tmp_path / "[ab].*")])] == two
    expected = [ids.tolist() for ids in read_documents(two, tokenizer)]
    assert len(expected) == 6 and expected == [ids.tolist() for ids in read_documents(tmp_path, tokenizer)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(FILES["rows.jsonl.gz"])))
    assert [row.content for row in read_all("-", Reading())] == [TURNS] * 3
    with pytest.raises(ValueError, match="data: "):
        data_files([str(tmp_path / "*.parquet")])


WORDS = [b'{"', b'"messages"', b":", b"[", b"]", b"{", b"}", b",", b"null", b"\n", b'"text"', b'"role"',
         b'"user"', b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"PAR1", b"\x1f\x8b\x08", b"BZh9", b"1e999", b'"',
         b";", b"a,b\n", b"\r", b"\\ud800", b"\xe9", b"[[", b'{"a": 1}\n', b"prompt,answer\n"]  # fmt: skip
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".bz2", ".jsonl.xz", "")


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path, ending):
    random_ = random.Random(ending)
    whole = FILES["rows.jsonl.gz"] if ending.endswith("gz") else FILES["list.json"]
    for number in range(100):
        content = b"".join(random_.choices(WORDS, k=random_.randrange(12)))
        if number % 3 == 0:  # a good file with a fault in it
            place = random_.randrange(len(whole))
            content = whole[:place] + content + whole[place + random_.randrange(9) :]
        path = tmp_path / f"rows{ending}"
        path.write_bytes(content)
        refusal(lambda: list(rows(path, Reading())))  # noqa: B023
