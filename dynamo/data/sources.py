"""What people name as data, as files: files, folders, globs, data sets of the hub, standard input.

A hub data set is fetched into the hub's own cache, and read from there when the hub cannot be reached.
"""

from __future__ import annotations

import atexit
import difflib
import glob
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dynamo.common.distributed import started_together
from dynamo.data.readers import PACKINGS, ROW_SUFFIXES, file_format, formats
from dynamo.data.reading import Names, Reading
from dynamo.data.rows import Row, Turns, conversations, rows

STANDARD_INPUT = "-"
# owner/name, then @REVISION, then /FILE_OR_FOLDER or :SPLIT or :CONFIGURATION:SPLIT
_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?(?:/(.+)|:(?:([^:]+):)?([^:]+))?")
# In a folder the first kind that is there: .json and .txt files stand beside data for other reasons, too.
_KINDS = (ROW_SUFFIXES, (".json",), (".txt",))


def data_files(names: Iterable[str | Path], option: str = "data") -> list[Path]:
    """The files behind names: files, globs, folders of files, standard input (-), and hub data sets.

    A data set of the hub is owner/name, a part of one owner/name/FILE_OR_FOLDER, a split of one
    owner/name:SPLIT or owner/name:CONFIGURATION:SPLIT; owner/name@REVISION stays the same whatever the owner
    uploads. Raises ValueError, naming the option, for a name that is none of them or holds no such file,
    OSError for an unreachable hub.
    """
    files: list[Path] = []
    for name in map(str, names):
        if is_piped(name):
            files.append(_spooled(name, option))
        else:
            found = local_files(name, option)
            files += _fetched(name, option) if found is None else found
    return files


def is_piped(name: str) -> bool:
    """Whether it can be read once: standard input, or a shell's <(..)."""
    path = Path(name)
    return name == STANDARD_INPUT or (path.exists() and not path.is_file() and not path.is_dir())


def local_files(name: str, option: str = "data") -> list[Path] | None:
    """The files of a name on this machine; None for a data set of the hub, which is not asked.

    Raises ValueError for a name that is neither or holds no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _some(_data_among(path.rglob("*")), name, option)
    if glob.has_magic(name) and (matches := glob.glob(str(path), recursive=True)):
        return _some(sorted(each for each in map(Path, matches) if each.is_file()), name, option)
    # Whose folder is here is a path with a slip, and so is a bare owner/name.jsonl.
    match = _HUB_NAME.fullmatch(name)
    if match and not (path.parent.is_dir() if match[3] else match[0] == match[1] and file_format(name)[0]):
        return None
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    remedy = f"; did you mean {path.with_name(near[0])}?" if near else ""
    raise ValueError(f"{option}: No such file, folder or hub data set: {name!r}{remedy}")


def read_all(names: Names, reading: Reading, answered: bool = True) -> Iterator[Row]:
    """The usable `rows` of all files behind a name, or behind several."""
    for path in data_files([names] if isinstance(names, str | Path) else names):
        yield from rows(path, reading, answered)


def read_questions(names: Names, reading: Reading) -> Iterator[str]:
    """What each row asks first: the first user turn of a conversation, a question that nothing answers, or a
    text."""
    for row in read_all(names, reading, answered=False):
        if isinstance(row.content, str):
            yield row.content.strip()
        elif asked := [turn["content"] for turn in row.content if turn["role"] == "user"]:
            yield asked[0]
        else:
            reading.leave_out("a conversation without a turn of the user", row.where, was_read=list)


def read_conversations(names: Names, reading: Reading | None = None) -> Iterator[Turns]:
    """The conversations among the rows of data; plain texts are left out."""
    reading = reading or Reading()
    yield from (row.content for row in conversations(read_all(names, reading), reading))
    if reading.left_out:
        reading.check(names)


def _some(found: list[Path], name: str, option: str) -> list[Path]:
    if not found:
        raise ValueError(f"{option}: {name} holds no file that is read here ({formats()})")
    return found


def _data_among(paths: Iterable[Path]) -> list[Path]:
    files = [each for each in paths if each.is_file()]
    for kind in _KINDS:
        if found := sorted(each for each in files if file_format(each.name)[0] in kind):
            return found
    return []


def _spooled(name: str, option: str) -> Path:
    """What is piped in, as a file, as it may be read more than once."""
    if started_together():
        raise ValueError(f"{option}: {name} cannot be read by several processes; write it to a file")
    folder = Path(tempfile.mkdtemp(prefix="dynamo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input"
    with open(path, "wb") as out:
        if name == STANDARD_INPUT:
            shutil.copyfileobj(sys.stdin.buffer, out)
        else:
            with open(name, "rb") as pipe:
                shutil.copyfileobj(pipe, out)
    return path


# -- the hub ------------------------------------------------------------------------------------------------


def _fetched(name: str, option: str) -> list[Path]:
    """The files of a hub data set, or of a part of it; those that are in the cache are not fetched again."""
    from huggingface_hub.utils import filter_repo_objects

    match = _HUB_NAME.fullmatch(name)
    data_set, revision, part, configuration, split = match.groups()
    by_name = False
    if part is not None:
        patterns = [part, f"{part.rstrip('/')}/*"]
    elif split is not None:
        card = _snapshot(name, data_set, revision, ["README.md"], option) / "README.md"
        patterns = _declared(card, configuration, split, option)
        if by_name := not patterns:
            patterns = [f"{configuration}/*{split}*" if configuration else f"*{split}*"]
    else:
        suffixes = [suffix for kind in _KINDS for suffix in kind]
        patterns = [f"*{suffix}{packing}" for suffix in suffixes for packing in ("", *PACKINGS)]
    folder = _snapshot(name, data_set, revision, patterns, option)
    names = (each.relative_to(folder).as_posix() for each in folder.rglob("*"))
    found = list(filter_repo_objects(names, allow_patterns=patterns))
    if by_name:  # train_sft is not the split "train"
        word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(split)}(?![A-Za-z]|_[A-Za-z])")
        found = [each for each in found if word.search(each)]
    return _some(_data_among(folder / each for each in found), name, option)


def _declared(card: Path, configuration: str | None, split: str, option: str) -> list[str]:
    """The files of a split by the data set's card, as patterns; none where the card names no files.

    Raises ValueError for a configuration or split that a card with some does not have.
    """
    configurations = _card(card).get("configs")
    configurations = [each for each in configurations or [] if isinstance(each, dict)]
    named = {str(each.get("config_name")): each for each in configurations if each.get("data_files")}
    if not named:
        return []
    usual = next((name for name, each in named.items() if each.get("default")), next(iter(named)))
    name = configuration or ("default" if "default" in named else usual)
    if name not in named:
        raise ValueError(f"{option}: expected a configuration among {', '.join(named)}, got {name!r}")
    given = named[name]["data_files"]
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        given = [{"split": "train", "path": given}]
    splits = {str(each.get("split")): each.get("path") for each in given}
    if split not in splits:
        raise ValueError(f"{option}: expected a split among {', '.join(splits)}, got {split!r}")
    paths = splits[split] if isinstance(splits[split], list) else [splits[split]]
    return [f"{named[name].get('data_dir', '')}/{each}".lstrip("/") for each in paths]


def _card(path: Path) -> dict[str, Any]:
    """The metadata of a card, {} where it has none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _snapshot(name: str, data_set: str, revision: str | None, patterns: Sequence[str], option: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(data_set, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
        )
    except Exception as error:
        raise OSError(
            f"{option}: {name} is no local file or folder and cannot be fetched from the hub "
            f"({type(error).__name__})"
        ) from error
