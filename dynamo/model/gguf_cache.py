"""GGUF files as folders: each is dequantised once, into the user's cache, and is a plain checkpoint there.

The cache is $XDG_CACHE_HOME/dynamo-multi-token/gguf (~/.cache without that variable). A folder is made under
another name and moved to its own when it is whole, under a lock, so a killed or concurrent conversion leaves
nothing that would be taken for one. Beside the weights `gguf.json` says which file they are of, and in what
state that was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from dynamo.common.files import being_written, replace_folder, write_json
from dynamo.common.memory import enough_memory
from dynamo.model.gguf import GGUFModel

FORMAT = 1  # of what is in a folder of the cache
SOURCE_FILE = "gguf.json"
LONGEST_STEM = 80


def base_folder(path: str | os.PathLike) -> str:
    """Where a base is read from: for a GGUF file, or a folder that has one and no safetensors, its folder in
    the cache, which is made if need be; any other path or name is returned as it is.

    Raises ValueError for a folder of several and a file that is no supported model, OSError where there is no
    room for its folder.
    """
    file = gguf_in(Path(path))
    return str(path) if file is None else str(dequantised(file))


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without safetensors.

    Raises ValueError for a folder with several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    return path / name if (name := only_gguf(path, [file.name for file in path.glob("*.gguf")])) else None


def only_gguf(place: Any, files: list[str]) -> str | None:
    """The one of several files that is GGUF, None where none is. Raises ValueError where more are."""
    found = sorted(file for file in files if file.endswith(".gguf"))
    if len(found) > 1:
        raise ValueError(
            f"model: {place} holds several GGUF files ({', '.join(found)}); name one, as {place}/{found[0]}"
        )
    return found[0] if found else None


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file that a folder of the cache was made of, None for another, or where that has
    changed."""
    try:
        said = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        file = Path(said["file"])
        return file if said == _source(file) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def dequantised(file: Path) -> Path:
    """The folder of a GGUF file in the cache. Raises as `base_folder` does."""
    folder = _place(file)
    if gguf_of(folder) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_name(f".{folder.name}.lock")):
            if gguf_of(folder) is None:  # or another process has made it meanwhile
                _dequantise(file, folder)
    return folder


def _place(file: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamo-multi-token" / "gguf"
    key = hashlib.sha256(f"{FORMAT} {file.resolve()}".encode()).hexdigest()[:12]
    return cache / f"{file.stem[:LONGEST_STEM]}-{key}"


def _source(file: Path) -> dict[str, Any]:
    state = file.stat()
    return {
        "format": FORMAT,
        "file": str(file.resolve()),
        "bytes": state.st_size,
        "changed": state.st_mtime_ns,
    }


def _dequantise(file: Path, folder: Path) -> None:
    source = _source(file)
    read = GGUFModel(file)
    needed = read.shape.weight_bytes(read.dtype.itemsize)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(
            f"model: {file.name} takes {needed / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB are "
            "free there; make room, or set XDG_CACHE_HOME to a folder on another disk"
        )
    print(f"{file.name}: dequantised once, into {folder}", file=sys.stderr, flush=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    try:
        with (
            being_written(part),
            enough_memory(lambda: f"model: there is no memory left to read {file.name}"),
        ):
            read.save(part)
            write_json(part / SOURCE_FILE, source)
        replace_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
