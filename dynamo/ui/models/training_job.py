"""Training token heads from the page: `python -m dynamo train`, then `count`, each a process of its own.

A process of its own keeps accelerate's state and the optimiser's memory away from the page, and is stopped by
a signal: it then writes a checkpoint, and the same model, text and steps go on from there. Progress is read
from the log that training writes anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dynamo.data.reading import Reading
from dynamo.data.rows import read_rows, rows
from dynamo.loading import TABLE_FILE
from dynamo.training.options import TrainingOptions, TrainingRun
from dynamo.training.recipes import RECIPES

PROJECT = Path(__file__).resolve().parents[3]
BLOCK_SIZE = 128
OPTIONS = TrainingOptions(heads_only=True, batch_size=8, warmup=0.05, checkpoint_every=100, evaluate_every=0)
TOKENS_PER_STEP = OPTIONS.batch_size * BLOCK_SIZE
MOST_STEPS, FEW_STEPS = 2000, 200
LARGEST_TABLE = 50  # megabytes


@dataclass(frozen=True)
class Progress:
    """phase: "idle", "training", "counting", "done", "stopped" or "failed"; rows: of the training's log;
    left_out: what is not learnt of the text, in sentences."""

    phase: str = "idle"
    model: str = ""
    step: int = 0
    steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    result: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.phase in ("training", "counting")


class TrainingJob:
    """One training at a time, its folders under `root`."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._progress = Progress()
        self._child: subprocess.Popen | None = None
        self._stopping = False
        self._folder = root

    def start(self, model: str, data: str | Path, steps: int, chat: bool, folder: Path | None = None) -> None:
        """Begin, or go on where the same training was stopped.

        model: a name as for `loading.load_model`; data: a file that `dynamo.data` reads; chat:
        whether the model's tokenizer has the chat template, without which conversations become plain text;
        folder: `folder_of` these, which reads all of the text, where it is known already. Raises ValueError
        for data that cannot be read, or while another training goes on.
        """
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"steps: expected 1 to {MOST_STEPS} on this page, got {steps}")
        with self._lock:
            if self._progress.running:
                raise ValueError(
                    f"training: heads for {self._progress.model} are being trained; wait or cancel"
                )
            folder = folder or self.folder_of(model, data, steps)
            if is_done(folder):
                self._folder = folder
                result = str(folder / "model")
                self._progress = Progress("done", model, steps, steps, _log(folder), "", result)
                return
            reading = Reading()
            prepared = prepare(Path(data).expanduser(), folder, chat, reading)
            folder.mkdir(parents=True, exist_ok=True)
            self._folder, self._stopping = folder, False
            left_out = tuple(reading.sentences()[1:])
            self._progress = Progress("training", model, 0, steps, left_out=left_out)
        run = page_run(model, prepared, steps, folder)
        threading.Thread(target=self._watch, args=(run,), daemon=True).start()

    def folder_of(self, model: str, data: str | Path, steps: int) -> Path:
        """Of one training, the same whenever model, text and steps are. Raises as `start` does."""
        return self.root / _folder_name(model, data, steps)

    def stop(self) -> None:
        """Ask the training to stop; it writes a checkpoint first."""
        with self._lock:
            self._stopping = True
            if self._child is not None:
                self._child.terminate()

    def progress(self) -> Progress:
        progress = self._progress
        if progress.phase == "idle":
            return progress
        rows = _log(self._folder) if progress.running else progress.rows
        left_out = progress.left_out or _left_out(self._folder)
        return replace(progress, rows=rows, step=rows[-1]["step"] if rows else 0, left_out=left_out)

    def _watch(self, run: TrainingRun) -> None:
        try:
            failed = self._work(run)
        except Exception as error:  # a full disk, say; the page must not wait for ever
            failed = f"{type(error).__name__}: {error}"
        self._end(failed)

    def _work(self, run: TrainingRun) -> str:
        """Train, then count the table; "" or why it failed."""
        result = run.output / "model"
        if not result.exists():
            failed = self._run(run.arguments())
            if self._stopping or failed:
                return failed
        self._progress = replace(self._progress, phase="counting", step=run.options.steps)
        return self._run(
            ["count", "--tokenizer", str(result), "--data", *run.data, "--tokens", str(run.output / "tokens"),
             "--output", str(result / TABLE_FILE), "--max-mb", str(LARGEST_TABLE)]
        )  # fmt: skip

    def _run(self, arguments: list[str]) -> str:
        """ "" or why it failed, in the command's own sentence."""
        with self._lock:
            if self._stopping:
                return ""
            with open(self._folder / "output.txt", "w", encoding="utf-8") as output:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "dynamo", *arguments],
                    cwd=PROJECT, stdout=output, stderr=output, env=_environment(),
                )  # fmt: skip
        code = self._child.wait()
        self._child = None
        if code == 0 or self._stopping:
            return ""
        lines = (self._folder / "output.txt").read_text(encoding="utf-8").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"it ended with code {code}: {' '.join(lines[-1:])}"

    def _end(self, failed: str) -> None:
        phase = "failed" if failed else "stopped" if self._stopping else "done"
        result = str(self._folder / "model") if phase == "done" else ""
        rows = _log(self._folder)
        self._progress = replace(self._progress, phase=phase, rows=rows, message=failed, result=result)


def page_run(model: str, data: Path, steps: int, folder: Path) -> TrainingRun:
    """The quick recipe, cut to a few minutes: the heads alone, small batches of short rows."""
    size = model.removeprefix("EleutherAI/")
    recipe = RECIPES.get(f"{size}-quick") if size != model else None
    rates = {name: recipe.options[name] for name in ("base_lr", "head_lr")} if recipe else {}
    options = replace(OPTIONS, steps=steps, **rates)
    return TrainingRun((str(data),), folder, model=model, block_size=BLOCK_SIZE, options=options)


def prepare(data: Path, folder: Path, chat: bool, reading: Reading) -> Path:
    """A file that `train` can read: `data` itself, or for a model without the template its text, of which
    `reading` then counts what is left out.

    Raises ValueError for a file of another kind, or one without a row that can be used.
    """
    if not data.is_file():
        raise ValueError(f"data: there is no file {str(data)!r}")
    if chat:
        next(read_rows(data), None)
        return data
    folder.mkdir(parents=True, exist_ok=True)
    prepared, partial = folder / "data.jsonl", folder / "data.partial"
    with open(partial, "w", encoding="utf-8") as lines:
        written = sum(
            bool(lines.write(json.dumps({"text": text}) + "\n")) for text in _as_texts(data, reading)
        )
    if not written:
        raise ValueError(f"data: {data.name} is empty")
    os.replace(partial, prepared)
    return prepared


def _as_texts(data: Path, reading: Reading) -> Iterator[str]:
    for row in rows(data, reading):
        turns = row.content
        yield turns if isinstance(turns, str) else "\n".join(turn["content"] for turn in turns)


def _folder_name(model: str, data: str | Path, steps: int) -> str:
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"data: there is no file {str(data)!r}")
    with open(path, "rb") as file:
        text = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    slug = re.sub(r"[^\w.-]+", "-", model.strip("/").split("/")[-1] if "/" in model else model)
    where = hashlib.sha256(model.encode()).hexdigest()[:4]
    return "--".join([slug, path.name.split(".")[0], str(steps), where + text])


def is_done(folder: Path) -> bool:
    """Whether a folder's heads are trained and its table is counted."""
    return (folder / "model" / TABLE_FILE).is_file()


def in_words(folder: Path) -> tuple[str, str]:
    """What was trained in a folder: the model's short name, and on what."""
    model, *rest = folder.name.split("--")
    if len(rest) != 3:
        return folder.name, "heads trained here"
    return model, f"heads trained here: {rest[1]} steps on {rest[0]}"


def _log(folder: Path) -> list[dict[str, Any]]:
    """Rows with losses, by step: what a stopped run wrote twice counts once."""
    path = folder / "log.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # it is being written
                continue
            if "losses" in row:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _left_out(folder: Path) -> tuple[str, ...]:
    """As the training says it."""
    path = folder / "output.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    said = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return tuple(sentence for sentence in said if sentence.startswith("left out"))


def _environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
