"""A disk that fills up in the middle of writing: one sentence, and what was whole before is whole after.

The limit on the size of files stands in for the disk: writing past it fails as on a full one, wherever in
the file and in whatever library. (Votes have theirs in `test_votes_faults`.)
"""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState
from trainings import same_weights, trainer

from dynamo.__main__ import main
from dynamo.common.files import append_row
from dynamo.evaluation.journal import Journal, read_journal
from dynamo.trace.ndjson import read_runs
from dynamo.training.trainer import save_model


@contextmanager
def full_disk(room: int):
    """No file may grow beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50_000, 300_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(documents, tmp_path, room):
    """A checkpoint that does not fit leaves the one before and the run goes on from it."""
    run = trainer(documents, tmp_path / "filled")
    run.run(stop=lambda: run.step == 4)
    before = {path: path.read_bytes() for path in (tmp_path / "filled/checkpoint").rglob("*.*")}
    AcceleratorState._reset_state()
    with (
        full_disk(room),
        pytest.raises(OSError, match=r"checkpoint.partial cannot be written \(.+\); make room"),
    ):
        trainer(documents, tmp_path / "filled").save_checkpoint()
    assert not (tmp_path / "filled/checkpoint.partial").exists()  # what little was written makes room again
    assert {path: path.read_bytes() for path in before} == before
    AcceleratorState._reset_state()
    resumed = trainer(documents, tmp_path / "filled").run()
    AcceleratorState._reset_state()
    assert same_weights(resumed, trainer(documents, tmp_path / "whole").run())


def test_a_model_that_does_not_fit_leaves_the_one_before(dynamo_model, tokenizer, tmp_path):
    save_model(dynamo_model, tokenizer, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with full_disk(60_000), pytest.raises(OSError, match="cannot be written"):
        save_model(dynamo_model, tokenizer, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("short_of", range(1, 40, 6))
def test_a_row_that_does_not_fit_is_dropped_and_asked_for_again(tmp_path, short_of):
    path = tmp_path / "rows.jsonl"
    with Journal(path, ("n",), {}) as journal:
        journal.write({"n": 0, "text": "whole"})
    size = path.stat().st_size
    with pytest.raises(OSError), full_disk(size + short_of), Journal(path, ("n",), {}) as journal:
        journal.write({"n": 1, "text": "does not fit at all"})
    assert path.stat().st_size <= size + short_of
    journal = Journal(path, ("n",), {})
    assert (0,) in journal and (1,) not in journal
    with journal:
        journal.write({"n": 1, "text": "fits now"})
    assert [row["text"] for row in read_journal(path)] == ["whole", "fits now"]


def test_a_log_goes_on_after_a_row_that_did_not_fit(tmp_path):
    path = tmp_path / "log.jsonl"
    append_row(path, {"step": 1})
    with full_disk(path.stat().st_size + 5), pytest.raises(OSError):
        append_row(path, {"step": 2, "losses": [1.0, 2.0]})
    append_row(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_trace_that_does_not_fit_leaves_the_one_before(tmp_path, capsys):
    trace = tmp_path / "run.ndjson"
    command = ["compare", "I want to book a table", "--max-new-tokens", "24", "--trace", str(trace)]
    assert main(command) == 0
    before = trace.read_bytes()
    assert len(read_runs(before.decode().splitlines())) == 2
    capsys.readouterr()
    with full_disk(1000):
        assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "File too large" in error
    assert trace.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["run.ndjson"]
