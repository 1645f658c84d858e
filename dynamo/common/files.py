"""Files and folders that survive a kill or a full disk: replaced atomically, or appended by whole lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def old_folder(path: Path) -> Path:
    """Where `replace_folder` moves the folder it replaces; a kill in between leaves it complete there."""
    return path.with_name(path.name + ".old")


def replace_folder(new: Path, target: Path) -> None:
    """Move a complete folder into another's place; at every moment one complete folder exists."""
    old = old_folder(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def replace_text(path: str | os.PathLike, content: str) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(content, encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, fields: Any) -> None:
    """`replace_text` with the fields as indented JSON."""
    replace_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def check_output(path: Path | None) -> None:
    """Raises ValueError for a file in a folder that does not exist; writing would fail when all is done."""
    if path is not None and not path.resolve().parent.is_dir():
        raise ValueError(f"output: the folder of {path} does not exist; make it first")


@contextmanager
def being_written(folder: Path) -> Iterator[None]:
    """On failure remove the unfinished folder, and raise what libraries raise on a full disk as OSError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(f"{folder} cannot be written ({reason[0]}); make room and run it again") from error


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON, after dropping a last line that a kill or a full disk cut short."""
    if path.exists():
        drop_cut_line(path)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row) + "\n")


def drop_cut_line(path: Path) -> None:
    """Truncate a file after its last whole line."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 2**16)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            file.truncate(end)
