"""Files of dialogues and texts that somebody else wrote, row by row.

Whatever is wrong with a row is reported with its file and line. `dynamo.data.documents` makes token
documents of rows.
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
LONGEST_LINE = 2**27  # characters; a packed file could hold a line that no memory does


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file (also .gz, and .zst where the program zstd is) that are not blank, each with its
    place: "FILE, line N".

    Raises ValueError naming the place where the file is damaged, OSError if it is not there.
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
                    last = line  # whole only if the file is
                elif line.strip():
                    yield line, f"{path}, line {number}"
        if last.strip():
            yield last, f"{path}, line {number}"
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, after line {number}: the file is damaged ({error})") from None


@contextmanager
def _zstd_open(path: Path, mode: str, encoding: str) -> Iterator[IO[str]]:
    """The text of a .zst file, which Python reads from 3.14 on. EOFError at its end if it is no whole one."""
    program = which("zstd")
    if program is None:
        raise ValueError(f"{path}: .zst files are read by the program zstd; install it, or unpack the file")
    path.open("rb").close()
    process = Popen([program, "-dcq", "--", str(path)], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        with TextIOWrapper(process.stdout, encoding=encoding) as lines:
            yield lines
        if process.wait():
            raise EOFError("zstd cannot unpack it to its end")
    finally:
        process.kill()
        process.wait()


def parse_line(line: str, where: str) -> Any:
    try:
        # NaN in a column that nobody reads is no fault of the row.
        return parse_json(line, finite=False)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_rows(path: str | Path) -> Iterator[Turns | str]:
    """Rows of a JSONL file (also .gz, .zst): conversations (`turns` or `messages`, turns of `role` and `text`
    or `content`) and plain documents (`text`).

    Raises ValueError naming file and line of a row that is neither, OSError if the file is not there.
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
    if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"]:
        return row["text"]
    turns = row.get("turns", row.get("messages")) if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected an object with a list 'turns' or 'messages', or a string 'text'")
    return as_turns(turns, where)


def as_turns(turns: list[Any], where: str) -> Turns:
    """Turns of `role` and `text` or `content`, checked, as the template wants them."""
    conversation = []
    for turn in turns:
        content = turn.get("text", turn.get("content")) if isinstance(turn, dict) else None
        # One by one: what is no string may not be hashable either.
        if not isinstance(content, str) or not any(turn.get("role") == role for role in text.ROLES):
            raise ValueError(
                f"{where}: a turn needs 'role' ({' or '.join(text.ROLES)}) and 'text', got {short_repr(turn)}"
            )
        conversation.append({"role": turn["role"], "content": content})
    return conversation
