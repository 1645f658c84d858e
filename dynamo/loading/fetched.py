"""Checks of what a hub sends: names and hashes before they become paths, files before they become a model.

The cache names a file by the hash that the hub announced, so its content can be checked against it. A file
that differs from what was announced, or that should be JSON or safetensors and is not, is removed again. A
revision is entered in the cache once all of its files are sound; until then the next download resumes.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import constants, get_session, scan_cache_dir, set_client_factory
from safetensors import SafetensorError, safe_open

from dynamo.common.validation import parse_json, short_repr
from dynamo.model.gguf import is_whole

LISTING_SECONDS = 5.0  # of silence before a list of files is given up; the library itself waits for ever
JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "*.index.json",
)  # fmt: skip

_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile(r"[\w-][\w.-]{0,199}")
_REQUESTED = re.compile("/resolve/([0-9a-f]{40})/")
_CHUNK = 2**20
_INSTALLING = threading.Lock()


class CorruptDownload(OSError):
    """A hub's answer is impossible, or differs from what it announced."""


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
    """Have the hub's library use a client that refuses hashes which are paths, and gives up on a silent list.

    The library would write where such hashes lead. Its client is replaced by one with the same hooks, headers
    and timeouts. A program whose own client factory sets a proxy or certificates passes its clients through
    `guarded`; those are left as they are.
    """
    with _INSTALLING:
        client = get_session()
        if _refuse in client.event_hooks["response"]:
            return
        names = ("auth", "headers", "cookies", "timeout", "follow_redirects", "trust_env", "event_hooks")
        settings = {name: getattr(client, name) for name in names}
        set_client_factory(lambda: guarded(type(client)(**settings)))


def guarded(client: Any) -> Any:
    """The HTTP client, with the checks of this module among its event hooks."""
    hooks = client.event_hooks
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
    requested = _REQUESTED.search(response.request.url.path)
    if requested and commit != requested[1]:
        raise CorruptDownload(
            f"the hub answers with revision {short_repr(commit)} where another was asked for"
        )
    check_names(commit, [])
    if response.request.method != "HEAD":  # the only answers from which the library takes a hash
        return
    etag = response.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or response.headers.get("ETag")
    if etag is not None and not _HASH.fullmatch(etag.lstrip("W/").strip('"')):  # as the library strips it
        raise CorruptDownload(f"the hub gives a file the hash {short_repr(etag)}, which is none")


def remove_corrupt(folder: Path) -> str:
    """Remove corrupt files from a fetched revision. Returns the first one and its fault, or ""."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() or file.is_symlink()]
    faults = {file: fault for file in files if (fault := _fault(file))}
    if faults:
        _forget(folder, list(faults))
    return next((f"{file.relative_to(folder)} {fault}" for file, fault in faults.items()), "")


def _forget(folder: Path, files: list[Path]) -> None:
    """Remove the files with their blobs, so that the next download fetches them again.

    With Xet a blob is itself a link, to a store shared by all models; the library removes what is stored
    there if no other model has it.
    """
    blobs = folder.parents[1].resolve() / "blobs"
    corrupt = {blobs / name for file in files if (name := _announced(file))}  # equal files share a blob
    for file in files:
        if not file.is_file():
            file.unlink()  # a broken link would keep the library from reading the cache
    cache = scan_cache_dir(folder.parents[2])
    cached = [file for repo in cache.repos for revision in repo.revisions for file in revision.files]
    cache.delete_files(*(file for file in cached if file.blob_path in corrupt)).execute()
    for path in (*files, *corrupt):  # what the library does not count as its own
        if not path.is_dir():
            path.unlink(missing_ok=True)


def missing(folder: Path, files: list[str]) -> str:
    """The first file that was not fetched, and that fault, or ""."""
    return next((f"{file} did not come" for file in files if not (folder / file).is_file()), "")


def enter(folder: Path) -> None:
    """Enter this revision in the cache, which looks for `main` in `refs`."""
    ref = folder.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    part = ref.with_suffix(".part")
    try:
        part.write_text(folder.name)
        part.replace(ref)
    finally:
        part.unlink(missing_ok=True)


def _announced(file: Path) -> str:
    """The hash that the hub announced for a file: the name of its blob. "" in a cache without links.

    With Xet the blob links on to a store that uses other names.
    """
    return Path(os.readlink(file)).name if file.is_symlink() else ""


def _fault(file: Path) -> str:
    if not file.is_file():
        return "is no file"
    if not _is_what_was_announced(file):
        return "is not what the hub announced"
    try:
        if any(fnmatch(file.name, pattern) for pattern in JSON_FILES):
            parse_json(file.read_text(encoding="utf-8"), finite=False)
        elif file.suffix == ".safetensors":
            with safe_open(file, "numpy"):
                pass
        elif file.suffix == ".gguf" and not is_whole(file):
            return "is no whole gguf"
    except (ValueError, SafetensorError):
        return f"is no {file.suffix[1:]}"
    return ""


def _is_what_was_announced(file: Path) -> bool:
    name = _announced(file)
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name):
        return True  # no hash, or a cache without links: nothing to compare with
    large = len(name) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == name
