"""What a hub sends is checked before anything here believes it: names and hashes before they become paths,
files before they become a model.

The cache calls a file by the hash that the hub announced, so what came can be held against it. A file that is
not what was announced, or no JSON or safetensors at all, is taken out again. A revision is entered in the
cache when all of it was found whole: until then the next download goes on where this one ended.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from safetensors import SafetensorError, safe_open

from dynamo.foreign import parse_json, shown

_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile(r"[\w-][\w.-]{0,199}")
_PIECE = 2**20


class Untrue(OSError):
    """What a hub sent cannot be, or is not what it announced."""


def check_names(commit: Any, files: list[Any]) -> None:
    """Raise Untrue for a revision that is no hash or a file that would lie outside the model's folder."""
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise Untrue(f"the hub calls its revision {shown(commit)}, which is no hash")
    for file in files:
        if not (isinstance(file, str) and file.isprintable() and _stays_inside(file)):
            raise Untrue(f"the hub names a file {shown(file)}, which is no path inside a folder")


def _stays_inside(file: str) -> bool:
    windows = PureWindowsPath(file)
    outside = PurePosixPath(file).is_absolute() or windows.drive or windows.root
    return bool(file) and not outside and ".." not in windows.parts


@cache
def be_careful() -> None:
    """From now on the library's own client refuses hashes that are paths: it would write where they lead."""

    def refuse(response: Any) -> None:
        if constants.HUGGINGFACE_HEADER_X_REPO_COMMIT not in response.headers:
            return
        for header in (constants.HUGGINGFACE_HEADER_X_LINKED_ETAG, "ETag"):
            told = response.headers.get(header)
            if told is not None and not _HASH.fullmatch(told.removeprefix("W/").strip('"')):
                raise Untrue(f"the hub gives a file the hash {shown(told)}, which is none")

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = {**hooks, "response": [*hooks["response"], refuse]}
        return made

    set_client_factory(client)


def take_out(folder: Path) -> str:
    """Remove from a fetched revision what is not whole. The first such file and its fault, or ""."""
    faults = {file: _fault(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    spoiled = [file for file, fault in faults.items() if fault]
    for blob in {file.resolve() for file in spoiled}:  # files of the same content share it
        blob.unlink()
    for file in spoiled:
        file.unlink(missing_ok=True)
    return f"{spoiled[0].relative_to(folder)} {faults[spoiled[0]]}" if spoiled else ""


def missing(folder: Path, files: list[str]) -> str:
    """The first of the files that did not come, and that fault, or ""."""
    return next((f"{file} did not come" for file in files if not (folder / file).is_file()), "")


def enter(folder: Path) -> None:
    """Have the cache find this revision from now on: it looks for `main` in its `refs`."""
    ref = folder.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    part = ref.with_suffix(".part")
    part.write_text(folder.name)
    part.replace(ref)


def _fault(file: Path) -> str:
    if not _is_what_was_announced(file.resolve()):
        return "is not what the hub announced"
    try:
        if file.suffix == ".json":
            parse_json(file.read_text(encoding="utf-8"), finite=False)
        elif file.suffix == ".safetensors":
            safe_open(file, "numpy")
    except (ValueError, SafetensorError):
        return f"is no {file.suffix[1:]}"
    return ""


def _is_what_was_announced(blob: Path) -> bool:
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return True  # no hash, or a cache without links: there is nothing to hold it against
    large = len(blob.name) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == blob.name
