"""Training token heads from the page: `python -m dynamo train`, then `count`, each a process of its own.

A process of its own keeps accelerate's state and the optimiser's memory away from the page, and is stopped by
a signal: it then writes a checkpoint, and the same model, text and steps go on from there. What it reports is
read from the log that training writes anyway.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo.data.readers import read_lines, read_rows
from dynamo.loading import TABLE_FILE
from dynamo.training.recipes import RECIPES

PROJECT = Path(__file__).resolve().parents[3]
DOCUMENT = 4000  # characters of a plain text that make one document, at least
BATCH_SIZE, BLOCK_SIZE = 8, 128
MOST_STEPS, FEW_STEPS = 2000, 200
LARGEST_TABLE = 50  # megabytes
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
TEXT_SUFFIXES = (".txt", ".md", ".txt.gz")


@dataclass(frozen=True)
class Progress:
    """phase: "idle", "training", "counting", "done", "stopped" or "failed"; rows: of the training's log."""

    phase: str = "idle"
    model: str = ""
    step: int = 0
    steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    result: str = ""

    @property
    def running(self) -> bool:
        return self.phase in ("training", "counting")


class TrainingJob:
    """One training at a time, its folders under `root`."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._told = Progress()
        self._child: subprocess.Popen | None = None
        self._stopping = False
        self._folder = root

    def start(self, model: str, data: str | Path, steps: int, chat: bool, folder: Path | None = None) -> None:
        """Begin, or go on where the same training was stopped.

        model: a name as for `loading.load_model`; data: JSONL of conversations or texts, or plain text; chat:
        whether the model's tokenizer has the chat template, without which conversations become plain text;
        folder: `folder_of` these, which reads all of the text, where it is known already. Raises ValueError
        for data that cannot be read, or while another training goes on.
        """
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"steps: expected 1 to {MOST_STEPS} on this page, got {steps}")
        with self._lock:
            if self._told.running:
                raise ValueError(f"training: heads for {self._told.model} are being trained; wait or cancel")
            folder = folder or self.folder_of(model, data, steps)
            if is_done(folder):
                self._told = Progress("done", model, steps, steps, _log(folder), "", str(folder / "model"))
                return
            prepared = prepare(Path(data).expanduser(), folder, chat)
            folder.mkdir(parents=True, exist_ok=True)
            self._folder, self._stopping = folder, False
            self._told = Progress("training", model, 0, steps)
        threading.Thread(target=self._watched, args=(model, prepared, steps), daemon=True).start()

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
        told = self._told
        if told.phase == "idle":
            return told
        rows = _log(self._folder) if told.running else told.rows
        step = rows[-1]["step"] if rows else 0
        fields = {**vars(told), "rows": rows, "step": step}
        return Progress(**fields)

    def _watched(self, *task: Any) -> None:
        try:
            self._work(*task)
        except Exception as error:  # a full disk, say; the page must not wait for ever
            self._end(f"{type(error).__name__}: {error}")

    def _work(self, model: str, data: Path, steps: int) -> None:
        folder = self._folder
        result = folder / "model"
        if not result.exists():
            failed = self._run(train_arguments(model, data, steps, folder))
            if self._stopping or failed:
                return self._end(failed)
        self._told = Progress("counting", model, steps, steps)
        failed = self._run(
            ["count", "--tokenizer", str(result), "--data", str(data), "--tokens", str(folder / "tokens"),
             "--output", str(result / TABLE_FILE), "--max-mb", str(LARGEST_TABLE)]
        )  # fmt: skip
        self._end(failed)

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
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told[-1] if told else f"it ended with code {code}: {' '.join(lines[-1:])}"

    def _end(self, failed: str) -> None:
        told, rows = self._told, _log(self._folder)
        phase = "failed" if failed else "stopped" if self._stopping else "done"
        result = str(self._folder / "model") if phase == "done" else ""
        self._told = Progress(phase, told.model, told.step, told.steps, rows, failed, result)


def train_arguments(model: str, data: Path, steps: int, folder: Path) -> list[str]:
    """The quick recipe, cut to a few minutes: the heads alone, small batches of short rows."""
    recipe = f"{model.removeprefix('EleutherAI/')}-quick"
    chosen = ["--recipe", recipe] if model.startswith("EleutherAI/") and recipe in RECIPES else []
    return [
        "train", *chosen, "--model", model, "--data", str(data), "--output", str(folder), "--heads-only",
        "--steps", str(steps), "--batch-size", str(BATCH_SIZE), "--accumulation", "1",
        "--block-size", str(BLOCK_SIZE), "--warmup", "0.05", "--mixed-precision", "no",
        "--checkpoint-every", "100", "--evaluate-every", "0",
    ]  # fmt: skip


def prepare(data: Path, folder: Path, chat: bool) -> Path:
    """JSONL that `train` reads, `data` itself where it does. Raises ValueError for what is no text."""
    if not data.is_file():
        raise ValueError(f"data: there is no file {str(data)!r}")
    is_json = data.name.endswith(JSON_SUFFIXES)
    if not is_json and not data.name.endswith(TEXT_SUFFIXES):
        raise ValueError(f"data: expected {', '.join((*JSON_SUFFIXES, *TEXT_SUFFIXES))}, got {data.name!r}")
    if is_json and chat:
        next(read_rows(data), None)
        return data
    texts = _as_texts(data) if is_json else _documents(data)
    folder.mkdir(parents=True, exist_ok=True)
    prepared, partial = folder / "data.jsonl", folder / "data.partial"
    with open(partial, "w", encoding="utf-8") as lines:
        written = sum(bool(lines.write(json.dumps({"text": text}) + "\n")) for text in texts)
    if not written:
        raise ValueError(f"data: {data.name} is empty")
    os.replace(partial, prepared)
    return prepared


def _as_texts(data: Path) -> Iterator[str]:
    for row in read_rows(data):
        yield row if isinstance(row, str) else "\n".join(turn["content"] for turn in row)


def _documents(data: Path) -> Iterator[str]:
    """Lines put together until there is enough for a document."""
    lines, size = [], 0
    for line, _ in read_lines(data):
        lines.append(line)
        size += len(line)
        if size >= DOCUMENT:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


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
    """Whether the training of a folder is over, its table counted."""
    return (folder / "model" / TABLE_FILE).is_file()


def in_words(folder: Path) -> tuple[str, str]:
    """What was trained in a folder of the workshop: the model's short name, and on what."""
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


def _environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
