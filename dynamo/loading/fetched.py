"""What a hub sends is checked before anything here believes it: names and hashes before they become paths,
files before they become a model.

The cache calls a file by the hash that the hub announced, so what came can be held against it. A file that is
not what was announced, or no JSON or safetensors where one is read, is taken out again. A revision is entered
in the cache when all of it was found whole: until then the next download goes on where this one ended.
"""

from __future__ import annotations

import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import _http
from huggingface_hub.utils._shared_blobs import sweep_shared_blob
from safetensors import SafetensorError, safe_open

from dynamo.common.validation import parse_json, short_repr

LISTING_SECONDS = 5.0  # of silence, for which the library would wait for ever; it tries six times
READ_JSON = (
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "*.index.json",
)  # fmt: skip

_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile(r"[\w-][\w.-]{0,199}")
_ASKED = re.compile("/resolve/([0-9a-f]{40})/")
_PIECE = 2**20


class CorruptDownload(OSError):
    """What a hub sent cannot be, or is not what it announced."""


def check_names(commit: Any, files: list[Any]) -> None:
    """Raise CorruptDownload for a revision that is no hash or a file that would lie outside the model's
    folder."""
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CorruptDownload(f"the hub calls its revision {short_repr(commit)}, which is no hash")
    for file in files:
        if not (isinstance(file, str) and file.isprintable() and _stays_inside(file)):
            raise CorruptDownload(f"the hub names a file {short_repr(file)}, which is no path in a folder")


def _stays_inside(file: str) -> bool:
    windows = PureWindowsPath(file)
    outside = PurePosixPath(file).is_absolute() or windows.drive or windows.root
    return bool(file) and not outside and ".." not in windows.parts


def install_checks() -> None:
    """From now on the library's client refuses hashes that are paths, and does not wait for ever for a list.

    The library would write where such hashes lead. What the program around this one has set up stays as it
    is: its factory is wrapped and a client that is open stays open, for which the library has no public way.
    """
    factory = _http._GLOBAL_CLIENT_FACTORY
    if not isinstance(factory, _Careful):
        _http._GLOBAL_CLIENT_FACTORY = _Careful(factory)
    _guard(get_session())


class _Careful:
    def __init__(self, factory: Any):
        self.factory = factory

    def __call__(self) -> Any:
        return _guard(self.factory())


def _guard(client: Any) -> Any:
    hooks = client.event_hooks
    if _refuse not in hooks["response"]:
        client.event_hooks = {
            "request": [*hooks["request"], _bound],
            "response": [*hooks["response"], _refuse],
        }
    return client


def _bound(request: Any) -> None:
    if request.method == "GET" and "/api/models/" in request.url.path:
        limits = request.extensions.get("timeout", {})
        limits = {name: limits.get(name) or LISTING_SECONDS for name in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": limits}


def _refuse(response: Any) -> None:
    commit = response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is None:
        return
    asked = _ASKED.search(response.request.url.path)
    if asked and commit != asked[1]:
        raise CorruptDownload(
            f"the hub answers with revision {short_repr(commit)} where another was asked for"
        )
    check_names(commit, [])
    if response.request.method != "HEAD":  # of which alone the library takes a hash, this one
        return
    told = response.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or response.headers.get("ETag")
    if told is not None and not _HASH.fullmatch(told.lstrip("W/").strip('"')):  # as the library strips it
        raise CorruptDownload(f"the hub gives a file the hash {short_repr(told)}, which is none")


def remove_corrupt(folder: Path) -> str:
    """Remove from a fetched revision what is not whole. The first such file and its fault, or ""."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() or file.is_symlink()]
    faults = {file: fault for file in files if (fault := _fault(file))}
    for file in faults:
        if name := _announced(file):
            _forget(folder.parents[1] / "blobs" / name)  # files of the same content share it
        file.unlink(missing_ok=True)
    return next((f"{file.relative_to(folder)} {fault}" for file, fault in faults.items()), "")


def missing(folder: Path, files: list[str]) -> str:
    """The first of the files that did not come, and that fault, or ""."""
    return next((f"{file} did not come" for file in files if not (folder / file).is_file()), "")


def enter(folder: Path) -> None:
    """Have the cache find this revision from now on: it looks for `main` in its `refs`."""
    ref = folder.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    part = ref.with_suffix(".part")
    try:
        part.write_text(folder.name)
        part.replace(ref)
    finally:
        part.unlink(missing_ok=True)


def _announced(file: Path) -> str:
    """The hash under which the hub announced a file, "" in a cache without links.

    One link leads to it; with Xet another goes on to a store of all models, which has names of its own.
    """
    return Path(os.readlink(file)).name if file.is_symlink() else ""


def _forget(blob: Path) -> None:
    """Remove a model's blob; what it links to in the store of all models goes if no other model has it."""
    if blob.is_dir():
        return
    stored = blob.parent / os.readlink(blob) if blob.is_symlink() else None
    blob.unlink(missing_ok=True)
    if stored is not None:
        sweep_shared_blob(stored, cache_dir=blob.parents[2])


def _fault(file: Path) -> str:
    if not file.is_file():
        return "is no file"
    if not _is_what_was_announced(file):
        return "is not what the hub announced"
    try:
        if any(fnmatch(file.name, pattern) for pattern in READ_JSON):
            parse_json(file.read_text(encoding="utf-8"), finite=False)
        elif file.suffix == ".safetensors":
            with safe_open(file, "numpy"):
                pass
    except (ValueError, SafetensorError):
        return f"is no {file.suffix[1:]}"
    return ""


def _is_what_was_announced(file: Path) -> bool:
    name = _announced(file)
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name):
        return True  # no hash, or a cache without links: there is nothing to hold it against
    large = len(name) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == name
