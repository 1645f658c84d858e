"""Reading other people's files of dialogues and texts, row by row.

Errors name the file and the line. `dynamo.data.documents` turns rows into token documents,
`dynamo.data.instructions` into examples for finetuning.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any

from dynamo.common.validation import parse_json, short_repr
from dynamo.data import text

Turns = list[dict[str, str]]
LONGEST_LINE = 2**27  # characters; a compressed file may hold a line larger than memory


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place: "FILE, line N".

    Also reads .gz, and .zst if the program zstd is installed. Raises ValueError naming the place where the
    file is damaged, OSError if there is no such file.
    """
    path = Path(path)
    opener = {".gz": gzip.open, ".zst": _zstd_open}.get(path.suffix, open)
    number, last = 0, ""
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
                if not line.endswith("\n"):
                    last = line  # the file may be cut off here: see what the end says
                elif line.strip():
                    yield line, f"{path}, line {number}"
        if last.strip():
            yield last, f"{path}, line {number}"
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, after line {number}: the file is damaged ({error})") from None


@contextmanager
def _zstd_open(path: Path, mode: str, encoding: str) -> Iterator[IO[str]]:
    """The text of a .zst file, which Python itself reads from 3.14 on. Raises EOFError if it is cut off."""
    program = which("zstd")
    if program is None:
        raise ValueError(f"{path}: .zst files are read by the program zstd; install it, or unpack the file")
    path.open("rb").close()
    process = Popen([program, "-dcq", "--", str(path)], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        with TextIOWrapper(process.stdout, encoding=encoding) as lines:
            yield lines
        if process.wait():
            raise EOFError("zstd cannot unpack it to the end")
    finally:
        process.kill()
        process.wait()


def parse_line(line: str, where: str) -> Any:
    """A line's JSON value. Raises ValueError naming the place."""
    try:
        # NaN in a column that is not read does no harm.
        return parse_json(line, finite=False)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_rows(path: str | Path) -> Iterator[Turns | str]:
    """Rows of a JSONL file (also .gz, .zst): conversations (see `conversation`) and plain documents (`text`).

    Raises ValueError naming file and line of a row that is neither, OSError if there is no such file.
    """
    for line, where in read_lines(path):
        yield _row(parse_line(line, where), where)


def read_conversations(path: str | Path) -> Iterator[Turns]:
    """`read_rows` of a file that holds conversations only; a plain document is a ValueError."""
    for number, row in enumerate(read_rows(path), start=1):
        if isinstance(row, str):
            raise ValueError(
                f"{path}, row {number}: expected a conversation ('turns' or 'messages'), got 'text'"
            )
        yield row


def _row(row: Any, where: str) -> Turns | str:
    document = row.get("text") if isinstance(row, dict) else None
    if isinstance(document, str) and document:
        return document
    turns = conversation(row, where) if isinstance(row, dict) else None
    if turns is None:
        raise ValueError(f"{where}: expected an object with a list 'turns' or 'messages', or a string 'text'")
    return turns


def conversation(row: dict[str, Any], where: str) -> Turns | None:
    """A row's `turns` or `messages` as the template takes them (`role`, `content`); None if it has neither.

    A turn has a `role` and `text` or `content`. Raises ValueError naming the place for anything else.
    """
    given = row.get("turns", row.get("messages"))
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: expected a list 'turns' or 'messages' that is not empty")
    turns = []
    for turn in given:
        content = turn.get("text", turn.get("content")) if isinstance(turn, dict) else None
        # Compared one by one, as a role that is not a string may not be hashable.
        if not isinstance(content, str) or not any(turn.get("role") == role for role in text.ROLES):
            raise ValueError(
                f"{where}: a turn needs 'role' ({' or '.join(text.ROLES)}) and 'text', got {short_repr(turn)}"
            )
        turns.append({"role": turn["role"], "content": content})
    return turns
