"""Fixtures of experiments that train: short rows, tiny corpora, and a workspace of its own or a shared one.

A module takes those that it imports; a shared workspace is shared within the module.
"""

import json

import pytest
from conftest import DIALOGUES, tiny_base, tiny_dynamo

from dynamo.charts.lines import lines
from dynamo.data.text import encode_chat
from dynamo.loading import Pair
from dynamo.reproduction import continual, further
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Sizes, Workspace


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    monkeypatch.setattr(further, "BLOCK_SIZE", 32)
    monkeypatch.setattr(further, "BATCH_SIZE", 2)
    monkeypatch.setattr(continual, "FISHER_ROWS", 2)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and held-out dialogues, and a second corpus."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = [{"turns": turns} for turns in DIALOGUES]
    other = [
        {"instruction": f"Name colour {i}.", "input": "", "output": "It is a very dark green. " * 6}
        for i in range(41)
    ]
    second = folder / "other.json"
    second.write_text(json.dumps(other), encoding="utf-8")
    return (
        written(folder / "train.jsonl", rows * 50),
        written(folder / "dev.jsonl", rows * 3),
        second,
    )


@pytest.fixture(scope="module")
def shared(files, tokenizer, tmp_path_factory):
    """One workspace for all that only reads what was trained, so each variant is trained once."""
    return workspace_in(tmp_path_factory.mktemp("work"), files, tokenizer)


@pytest.fixture
def workspace(files, tokenizer, tmp_path):
    return workspace_in(tmp_path, files, tokenizer)


def workspace_in(folder, files, tokenizer):
    train, validation, other = files
    pair = Pair("tiny", "", tiny_base(), tiny_dynamo(), tokenizer, None)
    prompts = [encode_chat(tokenizer, turns[:1]) for turns in DIALOGUES]
    return Workspace(pair, train, validation, folder, prompts, Sizes(steps=2, documents=4), other)


def two_heads(workspace):
    return further.with_heads(workspace, num_token_heads=2, head_init="copy")


def counting(name="one", depends=(), value=1.25, calls=None, fails=False):
    """An experiment that notes each run and shows its own number."""

    def measure(_):
        if fails:
            raise KeyboardInterrupt
        if calls is not None:
            calls.append(name)
        return {"value": value}

    def show(result):
        table = Table("What came out", ("what", "value"), (("value", result["value"]), ("nothing", None)))
        verdict = "holds" if result["value"] > 1 else "differs"
        finding = Finding(verdict, f"It is {result['value']:.2f}.")
        figure = lines([{"name": "it", "x": [0, 1], "y": [0, result["value"]]}], "x", "y")
        return Shown((table,), finding, {"A line": figure})

    return Experiment(name, f"Title of {name}", "It is 3.", "Holds above 1.", measure, show, depends)
