"""Files that a stranger wrote: tables, weights, sweeps, data sets, journals, votes, configurations."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import random
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hostile import BRIEF, VALUES, changed, places, refusal, values
from hypothesis import given
from hypothesis import strategies as st

from dynamo import charts, instructions
from dynamo.commands.prompts import read_prompts as read_chats
from dynamo.cooccurrence import CooccurrenceTable
from dynamo.data import encode_rows, read_conversations, read_documents
from dynamo.evaluation.completion import read_prompts
from dynamo.evaluation.journal import Journal, read_journal
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.loading import load
from dynamo.spaces import SpaceProject, read_config
from dynamo.spaces.files import render_card, space_files
from dynamo.ui import sweep_view
from dynamo.ui.votes import VOTES_FILE, VoteBook

ROOT = Path(__file__).resolve().parents[1]
SWEEP = json.loads((ROOT / "assets" / "sweep.json").read_text(encoding="utf-8"))
SPACE = yaml.safe_load((ROOT / "spaces_config.yaml").read_text(encoding="utf-8"))


# -- the co-occurrence table: a safetensors file ----------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A small table's header, its bytes, and the place to write a spoiled one."""
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    CooccurrenceTable.count([np.array([1, 2, 3, 1, 2, 3, 4, 5, 1, 2] * 40)], vocab_size=8).save(path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    return path, json.loads(whole[8 : 8 + size]), whole[8 + size :], whole


def file_of(header: bytes | dict, body: bytes, size: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def use_table(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found = CooccurrenceTable.load(path)
    with np.errstate(all="raise"):
        ratios = found.ratio([[1, 2], [2, 3], [7, 7]])
        assert np.isfinite(ratios).all()
        for order in range(2, found.order + 1):
            found.candidates([np.arange(8)] * order)


def test_a_table_with_any_bytes_changed_is_read_or_refused(table):
    path, _, _, whole = table
    draw = random.Random(0)
    for number in range(600):
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 2, 5))):
            spoiled[draw.randrange(len(whole))] = draw.randrange(256)
        content = bytes(spoiled) if number % 5 else whole[: draw.randrange(len(whole))]
        refusal(lambda content=content: use_table(path, content))


def test_a_header_may_claim_anything(table):
    path, header, body, _ = table
    claims = {
        "dtype": ("BF16", "F16", "F32", "F64", "I8", "I64", "BOOL", "F8_E4M3", "C64", "X", None),
        "shape": ([], [0], [2**40], [2**63], [-1], ["a"], None, [0, 2**60], [1, 1]),
        "data_offsets": ([0, 0], [0, 2**62], [5, 3], [-1, 4], [0, 1], None, ["a", "b"]),
    }
    for name, field in header.items():
        if name == "__metadata__":
            continue
        for key, options in claims.items():
            for claim in options:
                spoiled = {**header, name: {**field, key: claim}}
                refusal(lambda spoiled=spoiled: use_table(path, file_of(spoiled, body)))
        gone = {key: each for key, each in header.items() if key != name}
        assert refusal(lambda gone=gone: use_table(path, file_of(gone, body))) is not None


def test_metadata_may_say_anything(table):
    path, header, body, _ = table
    strings = ("", "x", "-1", "nan", "[1", "[]", "null", "[null,null]", "[1e400,1]", "[[1],[2]]",
               "[" * 99_999,                "9" * 5000, "2.5", "1000000000000", None, 5, [])  # fmt: skip
    for name in header["__metadata__"]:
        for value in strings:
            spoiled = copy.deepcopy(header)
            spoiled["__metadata__"][name] = value
            refusal(lambda spoiled=spoiled: use_table(path, file_of(spoiled, body)))


@pytest.mark.parametrize("size", [2**63, 2**40, 2**64 - 1, 0, 3])
def test_a_header_length_that_cannot_be_is_refused(table, size):
    path, header, body, _ = table
    assert refusal(lambda: use_table(path, file_of(header, body, size))) is not None


@pytest.mark.parametrize("header", [b"[" * 100_000, b"[]", b"x" * 50, b'{"a":1}'])
def test_a_header_that_is_no_header_is_refused(table, header):
    path, _, body, _ = table
    assert refusal(lambda: use_table(path, file_of(header, body))) is not None


def test_tensors_that_overlap_are_refused(table):
    path, header, body, _ = table
    spoiled = copy.deepcopy(header)
    spoiled["last.3"]["data_offsets"] = spoiled["counts.3"]["data_offsets"]
    assert refusal(lambda: use_table(path, file_of(spoiled, body))) is not None


# -- a checkpoint folder ----------------------------------------------------------------------------------


class Detonator:
    """What a pickle may do: anything."""

    def __reduce__(self):
        return (sys.exit, ("the pickle ran",))


@pytest.fixture
def checkpoint(tmp_path, tokenizer, dynamo_model):
    from dynamo.training import save_model

    save_model(dynamo_model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def spoil(file: str, content: bytes):
    return lambda folder: (folder / file).write_bytes(content)


def set_config(**fields):
    def spoiler(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return spoiler


SPOILED = {
    "weights are a pickle": spoil("model.safetensors", pickle.dumps(Detonator())),
    "weights are a zip": spoil("model.safetensors", b"PK\x03\x04" + b"\0" * 100),
    "weights are empty": spoil("model.safetensors", b""),
    "header without end": spoil("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "config is no JSON": spoil("config.json", b"{"),
    "config is a list": spoil("config.json", b"[]"),
    "config is nested": spoil("config.json", b"[" * 100_000),
    "config is binary": spoil("config.json", bytes(range(256))),
    "tokenizer is no JSON": spoil("tokenizer.json", b"{"),
    "tokenizer is empty": spoil("tokenizer.json", b"{}"),
    "table is a pickle": spoil("cooccurrence.safetensors", pickle.dumps(Detonator())),
    "another vocabulary": set_config(vocab_size=7),
    "a vocabulary without end": set_config(vocab_size=10**12),
    "negative layers": set_config(num_hidden_layers=-1),
    "heads are a word": set_config(num_token_heads="three"),
    "a thousand heads": set_config(num_token_heads=1000),
    "a foreign kind": set_config(model_type="llama"),
    "kind is a list": set_config(model_type=["dynamo"]),
    "code of its own": set_config(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
    "quantised by a stranger": set_config(quantization_config={"quant_method": "evil"}),
    "quantised by a word": set_config(quantization_config="evil"),
}


@pytest.mark.parametrize("spoiler", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_checkpoint_is_refused(checkpoint, spoiler):
    spoiler(checkpoint)
    assert refusal(lambda: load(str(checkpoint), device="cpu")) is not None


@pytest.mark.parametrize(
    "name",
    ["", " ", "../..", "/etc/passwd", "embedded/../../..", "a/../b", "\0", "x" * 5000, "a\nb", "\ud800/b"],
)
def test_a_name_that_is_no_model_is_refused(name):
    assert refusal(lambda: load(name, device="cpu")) is not None


# -- sweeps -----------------------------------------------------------------------------------------------


def use_sweep(path: Path, text: str, drawn: bool) -> None:
    path.write_text(text)
    report = SweepReport.read(path).to_json()
    sweep_view.table(report)
    sweep_view.provenance(report, here=False).encode()
    json.dumps(report, allow_nan=False)
    if drawn:
        charts.sweep_shares(report["points"])
        charts.calibration(report["calibration"])


@pytest.mark.parametrize("place", list(places(SWEEP)), ids=str)
def test_any_value_in_any_field_of_a_sweep_is_read_or_refused(tmp_path, place):
    for value in VALUES:
        try:
            text = json.dumps(changed(SWEEP, place, value))
        except ValueError:
            continue
        drawn = place[0] in ("points", "calibration")
        refusal(lambda text=text, drawn=drawn: use_sweep(tmp_path / "sweep.json", text, drawn))


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
    "one long line": b'"' + b"x" * 2**20 + b'"',
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
    monkeypatch.setattr("dynamo.data.LONGEST_LINE", 1000)
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


# -- the Space's configuration ----------------------------------------------------------------------------


@pytest.fixture
def space(tmp_path):
    for name in ("requirements.txt", "README.md", "app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def use_space(root: Path, text: str) -> None:
    (root / "spaces_config.yaml").write_text(text, encoding="utf-8")
    for profile in ("cpu", "zerogpu", ""):
        read_config(root / "spaces_config.yaml", {"DYNAMO_PROFILE": profile})
    project = SpaceProject.read(root, "zerogpu")
    project.problems()
    render_card(project)
    for path in space_files(project):
        assert not path.startswith(("/", "..")), path


STRANGE = (None, True, -1, 1.5, 10**400, "", "x", "../../etc", "/etc/passwd", "\u202e", "a\nb", [], [None],
           [[]], ["../*"], ["/etc/*"], {}, {"a": 1}, {5: {}})  # fmt: skip


@pytest.mark.parametrize("place", list(places(SPACE)), ids=str)
def test_any_value_in_any_key_of_the_configuration_is_taken_or_refused(space, place):
    for value in STRANGE:
        refusal(lambda value=value: use_space(space, yaml.safe_dump(changed(SPACE, place, value))))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "{a: " * 9_000, BOMB + "models: *i\n", '!!python/object/apply:os.abort []', "&a [*a]",
     "a: \x07", "<<: 5", "? [a]\n: b", "a: 2020-99-99"],
    ids=["nested", "nested keys", "bomb", "code", "itself", "control", "merge", "key", "date"],
)  # fmt: skip
def test_hostile_yaml_is_refused(space, text):
    assert refusal(lambda: use_space(space, text)) is not None


def test_a_link_out_of_the_folder_is_not_uploaded(space, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("secret")
    (space / "linked.txt").symlink_to(secret)
    config = {**SPACE, "upload": ["*.txt"]}
    (space / "spaces_config.yaml").write_text(yaml.safe_dump(config))
    (space / "README.md").write_text("# x\n")
    files = space_files(SpaceProject.read(space, "zerogpu"))
    assert "requirements.txt" in files and "linked.txt" not in files
