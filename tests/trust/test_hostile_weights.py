"""Tables and checkpoints that a stranger wrote: lengths, types, offsets and values that lie, and pickles."""

from __future__ import annotations

import copy
import json
import pickle
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import refusal

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.loading import load

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
    from dynamo.training.trainer import save_model

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
    "layers without end": set_config(num_hidden_layers=10**7),
    "no layers": set_config(num_hidden_layers=0),
    "no attention heads": set_config(num_attention_heads=0),
    "no width": set_config(hidden_size=0),
    "positions without end": set_config(max_position_embeddings=2**40),
    "positions below none": set_config(max_position_embeddings=-5),
    "an activation of its own": set_config(hidden_act="os.system"),
    "rotations of its own": set_config(rope_parameters={"rope_type": "evil"}),
    "a foreign kind": set_config(model_type="llama"),
    "kind is a list": set_config(model_type=["dynamo"]),
    "code of its own": set_config(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
    "quantised by a stranger": set_config(quantization_config={"quant_method": "evil"}),
    "quantised by a word": set_config(quantization_config="evil"),
}


def test_a_tokenizer_with_code_of_its_own_is_refused_and_nobody_is_asked(checkpoint, monkeypatch):
    """The library asked at the terminal, and a page that was started there waited for the answer."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.signal.alarm", lambda _: None)
    own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(own))
    (checkpoint / "evil.py").write_text("raise SystemExit('the code ran')")
    assert "tokenizer" in refusal(lambda: load(str(checkpoint), device="cpu"))


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
