"""kill -9 at any moment: real processes, killed after random times until one comes to its end.

Each time what was acknowledged is kept, what is on disk is whole, and the work goes on from there to the
result of a run that nobody killed. Nobody is left behind who works for the dead.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import DIALOGUES
from judges import JudgeServer
from processes import WORK_SECONDS, started
from safetensors import safe_open
from safetensors.numpy import load_file
from trainings import OPTIONS, trainer
from visitors import until

from dynamo.__main__ import main
from dynamo.cooccurrence.external import count_files
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data.corpus import tokenise
from dynamo.data.sources import data_files
from dynamo.ui.compare.votes import VoteBook

pytestmark = pytest.mark.timeout(900)  # three that are killed, and one that comes to its end
MOST_KILLS = 3
EVERY_STEP = replace(OPTIONS, checkpoint_every=1)


def killed_again_and_again(
    work: Callable[[], object], whole: Callable[[], None], shortest: float, longest: float
) -> int:
    """Runs `work` in processes that are killed after random times; `whole` looks at what is left each time.

    After some kills one is let go to its end. Returns how many were killed.
    """
    rng = random.Random(int.from_bytes(os.urandom(4)))
    kills = 0
    while True:
        process = started(work)
        process.join(rng.uniform(shortest, longest) if kills < MOST_KILLS else WORK_SECONDS)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert kills < MOST_KILLS, "left alone, it did not come to its end"
        kills += 1
        try:
            until(lambda group=process.pid: not _alive(group), 60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        whole()


def _alive(group: int) -> list[int]:
    """Processes of a group, those that have ended and were not asked about left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def _train(documents, folder: Path) -> None:
    run = trainer(documents, folder / "killed", EVERY_STEP)
    run.run()
    torch.save(run.model.state_dict(), folder / "weights.pt")


def test_a_training_killed_at_any_moment_ends_with_the_same_weights(documents, tmp_path):
    killed = tmp_path / "killed"
    steps = []

    def whole():
        folders = [killed / "checkpoint", killed / "checkpoint.old"]
        found = next((path for path in folders if path.exists()), None)
        if found is not None:
            steps.append(json.loads((found / "run.json").read_text())["step"])
        if (killed / "log.jsonl").exists():
            *lines, last = (killed / "log.jsonl").read_text().split("\n")
            assert all(json.loads(line) for line in lines), last

    kills = killed_again_and_again(partial(_train, documents, tmp_path), whole, 0.05, 0.4)
    assert steps == sorted(steps), kills  # a checkpoint is never lost to a later kill
    AcceleratorState._reset_state()
    expected = trainer(documents, tmp_path / "whole", EVERY_STEP).run()
    AcceleratorState._reset_state()
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in expected.state_dict().items())


def test_a_row_of_the_log_that_a_kill_cut_is_dropped(documents, tmp_path):
    trainer(documents, tmp_path).save_checkpoint()
    (tmp_path / "log.jsonl").write_text('{"step": 10}\n{"step": 20, "los')
    AcceleratorState._reset_state()
    trainer(documents, tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0] == {"step": 10} and rows[1]["step"] == 10
    AcceleratorState._reset_state()


# ---- counting


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    words = sorted({word for turns in DIALOGUES for turn in turns for word in turn["content"].split()})
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=30))}) for _ in range(3000)]
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines[number::4]))
    return tmp_path


def _count(files, output: Path, workers: int) -> None:
    work = output.with_suffix(".counting")
    counted = count_files(files, 3, 300, workers=workers, work=work, slice_tokens=2**12)
    CooccurrenceTable(*counted).save(output)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_count_killed_at_any_moment_leaves_a_whole_table_or_none(corpus, tokenizer, workers):
    """A count killed at any moment leaves a whole table or none and nobody behind."""
    files = tokenise(data_files([str(corpus)]), tokenizer, corpus / "tokens")

    slices: set[str] = set()

    def whole():
        if table.exists():
            CooccurrenceTable.load(table)
        found = {path.name for path in table.with_suffix(".counting").glob("runs/*.npz")}
        assert slices <= found, "what was counted is counted again"
        slices.update(found)

    table, other = corpus / "table.safetensors", corpus / "other.safetensors"
    killed_again_and_again(partial(_count, files, table, workers), whole, 0.02, 0.5)
    _count(files, other, 1)
    # The header's order is that of a hash table, another one in each process.
    assert _metadata(table) == _metadata(other)
    counted, expected = load_file(table), load_file(other)
    assert counted.keys() == expected.keys()
    assert all(np.array_equal(counted[name], expected[name]) for name in expected)


def test_a_killed_tokenising_leaves_nobody_behind_and_is_taken_up_again(corpus, tokenizer):
    """Its workers are spawned and not forked: each waits at a pipe whose other end it holds itself."""
    files = data_files([str(corpus)])
    process = started(tokenise, files, tokenizer, corpus / "tokens", 2)
    try:
        until(lambda: len(_alive(process.pid)) >= 3, 120)  # itself and two workers
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        until(lambda: not _alive(process.pid), 60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    again, whole = (tokenise(files, tokenizer, corpus / folder) for folder in ("tokens", "others"))
    assert [each.crc for each in again] == [each.crc for each in whole]


def _metadata(table: Path) -> dict[str, str]:
    with safe_open(table, framework="numpy") as file:
        return file.metadata()


# ---- judging


def _judge(command: list[str]) -> int | None:
    huggingface_hub.constants.HF_HUB_OFFLINE = False  # the endpoint's client obeys it
    return main(command)


def test_judging_killed_at_any_moment_keeps_every_verdict(tmp_path):
    """Judging killed at any moment keeps every verdict and asks only for the rest."""
    rows = [
        {"prompt_id": f"p{number}", "seed": 0, "threshold": threshold, "chat": False, "prompt": "Say",
         "text": f"text {number} {threshold}", "decode_tokens": 10, "decode_seconds": 1.0,
         "settings": {"heads": 3}}
        for number in range(30) for threshold in (None, 0.5)
    ]  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "verdicts.jsonl"
    server = JudgeServer(lambda request: 0.02)  # seconds, then a rating of 5
    command = ["judge", "--completions", str(tmp_path / "texts.jsonl"), "--output", str(output), "--endpoint",
               server.url, "--judge-model", "judge", "--mode", "single", "--workers", "2"]  # fmt: skip
    kept: list[str] = []

    def whole():
        lines = output.read_text().split("\n")[:-1] if output.exists() else []
        assert lines[: len(kept)] == kept
        assert all(json.loads(line)["rating"] == 5 for line in lines)
        kept[:] = lines

    try:
        kills = killed_again_and_again(partial(_judge, command), whole, 0.1, 0.7)
    finally:
        server.close()
    whole()
    assert len(kept) == 60 and len({json.loads(line)["prompt_id"] for line in kept}) == 30
    assert len(server.requests) <= 60 + 2 * kills  # what was under way when the kill came


# ---- voting


def _vote_on(folder: Path, said: str) -> None:
    book = VoteBook(folder)
    with open(said, "a") as acknowledged:
        for number in range(100_000):
            vote = f"{os.getpid()}-{number}"
            book.add(id=vote, model="m", options={"threshold": 0.5}, speed_up=1.5, tokens_per_forward=1.2,
                     outcome="dynamo")  # fmt: skip
            acknowledged.write(f"{vote}\n")
            acknowledged.flush()


def test_voting_killed_at_any_moment_keeps_every_acknowledged_vote(tmp_path):
    said = tmp_path / "acknowledged"
    for number in range(MOST_KILLS):
        process = started(_vote_on, tmp_path, str(said))
        process.join(random.uniform(0.05, 0.5))
        if number == 0:
            until(lambda: said.exists() and said.stat().st_size, 60)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        acknowledged = said.read_text().count("\n") if said.exists() else 0
        standing = VoteBook(tmp_path).summary()
        votes = standing[0].votes if standing else 0
        assert acknowledged <= votes <= acknowledged + MOST_KILLS
    assert acknowledged > 0
