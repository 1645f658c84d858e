"""Other people's files as values: JSON lists and lines, CSV, TSV, parquet and plain text, packed or not.

A file's name says what it is; where it does not, its first bytes do. Everything is read as a stream except
JSON that spans lines, such as a list. Errors name file and line (in a list or parquet: row), and a file that
is none of these is named for what it is. `dynamo.data.rows` says what the values mean.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any

from dynamo.common.validation import parse_json, parse_json_values, short_repr
from dynamo.data.reading import Reading

ROW_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TEXT_SUFFIXES = (".txt", ".md")
FORMATS = (*ROW_SUFFIXES, ".json", *TEXT_SUFFIXES)
PACKINGS = {".gz": b"\x1f\x8b\x08", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
LONGEST_LINE = 2**27  # characters; a compressed file may hold a line larger than memory
DOCUMENT = 4000  # characters of a plain text that make one document, at least
HEAD = 1024  # bytes that say what a file is
PARQUET_ROWS = 256  # at a time

_MARKS = (
    # UTF-32's mark of little-endian files begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_OTHER_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (spreadsheets and PyTorch files are such too): unpack or export it"),
    (b"\xd0\xcf\x11\xe0", "an old Office document: export it as CSV"),
    (b"ARROW1", "an Arrow file: save it as parquet or JSON lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream (as `save_to_disk` writes): save it as parquet or JSON lines"),
    (b"SQLite format 3", "an SQLite database: export a table as CSV"),
    (b"%PDF", "a PDF document: extract its text first"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x93NUMPY", "a numpy array"),
    (b"GGUF", "a GGUF model"),
    (b"\x80", "a pickle, which is not opened as it may run code"),
    (b"<!doctype", "a web page: was a login or an error downloaded in place of the data?"),
    (b"<html", "a web page: was a login or an error downloaded in place of the data?"),
)


def file_format(name: str) -> tuple[str, str]:
    """A file name's format and packing, each a suffix or "": (".jsonl", ".gz")."""
    stem, packing = name.lower(), ""
    for suffix in PACKINGS:
        if stem.endswith(suffix):
            stem, packing = stem.removesuffix(suffix), suffix
    return next((each for each in FORMATS if stem.endswith(each)), ""), packing


def read_values(path: str | Path, reading: Reading, document: int = DOCUMENT) -> Iterator[tuple[Any, str]]:
    """The values of a file with their places, "FILE, line N" or "FILE, row N": objects by column, or a str
    for a plain document, lines of at least `document` characters. A line that is not JSON is left out.

    Raises ValueError for a file that is damaged or of another kind, OSError if there is none.
    """
    path = Path(path)
    head, kind = _head(path), file_format(path.name)[0]
    if head.startswith(b"PAR1"):
        yield from _parquet(path)
        return
    _refuse_other_kinds(path, head, kind)
    start = head.decode(_encoding(head), errors="ignore").lstrip()[:2]
    if kind in (".csv", ".tsv"):
        yield from _table(path, "\t" if kind == ".tsv" else None)
    elif kind in TEXT_SUFFIXES and start != '{"':  # else JSON lines under another name
        yield from _documents(path, document)
    elif kind or start[:1] in ("{", "["):
        yield from _json(path, reading)
    elif start:
        raise ValueError(f"{path}: not a kind of file that is read here; name it as what it is ({formats()})")


def formats() -> str:
    """The suffixes that are read, for messages."""
    return f"{', '.join(FORMATS)}, each also with {', '.join(PACKINGS)}"


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place: "FILE, line N".

    UTF-8, or UTF-16 and UTF-32 where the first bytes say so; also packed (.gz, .bz2, .xz, and .zst if the
    program zstd is installed). Raises ValueError naming the place where the file is damaged, OSError if there
    is no such file.
    """
    for number, line in _lines(Path(path)):
        if line.strip():
            yield line, f"{path}, line {number}"


def parse_line(line: str, where: str) -> Any:
    """A line's JSON value. Raises ValueError naming the place."""
    try:
        # NaN in a column that is not read does no harm.
        return parse_json(line, finite=False)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


# -- bytes and characters -----------------------------------------------------------------------------------


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file's content. What its name says is believed, also where it is wrong."""
    packing = file_format(path.name)[1]
    if not packing:
        with open(path, "rb") as file:
            start = file.read(6)
        packing = next((each for each, magic in PACKINGS.items() if start.startswith(magic)), "")
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd_open, "": open}
    with openers[packing](path, "rb") as file:
        yield file


@contextmanager
def _zstd_open(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """The content of a .zst file, which Python reads from 3.14 on. Raises EOFError if it is cut off."""
    program = which("zstd")
    if program is None:
        raise ValueError(f"{path}: .zst files are read by the program zstd; install it, or unpack the file")
    path.open(mode).close()
    process = Popen([program, "-dcq", "--", str(path)], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        yield process.stdout
        if not process.stdout.read(1) and process.wait():
            raise EOFError("zstd cannot unpack it to the end")
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@contextmanager
def _named_damage(path: Path, after: str = "") -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}{after}: the file is damaged or in another encoding ({error}); expected UTF-8"
        ) from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}{after}: the file is damaged ({error})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path}{after}: the file is damaged ({error})") from None  # gzip's and bz2's own


def _head(path: Path) -> bytes:
    with _named_damage(path, ", after line 0"), _unpacked(path) as file:
        return file.read(HEAD)


def _encoding(head: bytes) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    # Without a mark: the JSON or the header of a table begins with two ASCII characters.
    if len(head) >= 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) >= 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return "utf-8"


def _refuse_other_kinds(path: Path, head: bytes, kind: str) -> None:
    for magic, name in _OTHER_KINDS:
        if head.lstrip()[: len(magic)].lower() == magic.lower() and not (
            kind in TEXT_SUFFIXES and magic[:1] == b"<"
        ):
            raise ValueError(f"{path}: this is {name}")
    if kind == ".parquet":
        raise ValueError(f"{path}: no parquet file, it begins with {short_repr(head[:8], 40)}")
    if head[257:262] == b"ustar":
        raise ValueError(f"{path}: this is a tar archive: unpack it and name the files")
    if b"\0" in head and _encoding(head) == "utf-8":
        raise ValueError(f"{path}: this is binary data, not text")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """All lines with their numbers, from 1, ending in "\\n" but for the last."""
    number, last = 0, ""
    encoding = _encoding(_head(path))
    try:
        with _unpacked(path) as file:
            lines = TextIOWrapper(file, encoding=encoding)
            try:
                for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
                    if len(line) == LONGEST_LINE:
                        raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
                    if line.endswith("\n"):
                        yield number, line
                    else:
                        last = line  # the file may be cut off here: see what the end says
            finally:
                lines.detach()
    except (EOFError, OSError, zlib.error, lzma.LZMAError, UnicodeDecodeError):
        with _named_damage(path, f", after line {number}"):
            raise
    if last:
        yield number, last


# -- formats ------------------------------------------------------------------------------------------------


def _json(path: Path, reading: Reading) -> Iterator[tuple[Any, str]]:
    lines = read_lines(path)
    begin = list(itertools.islice(lines, 2))
    spans_lines = bool(begin) and (begin[0][0].lstrip().startswith("[") or begin[0][0].strip() == "{")
    if spans_lines or len(begin) == 1:
        yield from _json_values([*begin, *lines], path)
        return
    for line, where in itertools.chain(begin, lines):
        try:
            value = parse_line(line, where)
        except ValueError as error:
            reading.leave_out("text that is not JSON", where, str(error))
            continue
        yield value, where


def _json_values(numbered: list[tuple[str, str]], path: Path) -> Iterator[tuple[Any, str]]:
    """The items of a list, or of the one list in an object; else the values that stand one after another."""
    try:
        values = parse_json_values("".join(line for line, _ in numbered))
    except json.JSONDecodeError as error:
        where = numbered[min(error.lineno, len(numbered)) - 1][1]
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(values) == 1:
        (value,) = values
        if isinstance(value, dict):
            lists = [each for each in value.values() if _is_objects(each) and not _is_turns(each)]
            found = lists[0] if len(lists) == 1 else None
        else:
            found = value if isinstance(value, list) and not _is_turns(value) else None
        if found is None:
            yield value, numbered[0][1]
            return
        values = found
    for number, value in enumerate(values, start=1):
        yield value, f"{path}, row {number}"


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _is_turns(value: Any) -> bool:
    """Whether a list is one conversation."""
    return _is_objects(value) and all({"role", "from"} & each.keys() for each in value)


def _table(path: Path, delimiter: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    lines = _lines(path)
    _, header = next(((n, line) for n, line in lines if line.strip()), (0, ""))
    if delimiter is None:  # a spreadsheet writes ; where the comma is for decimals
        delimiter = ";" if header.count(";") > header.count(",") else ","
    csv.field_size_limit(LONGEST_LINE)
    number = 1

    def numbered() -> Iterator[str]:
        nonlocal number
        yield header
        for number, line in lines:  # noqa: B007
            yield line

    try:
        for row in csv.DictReader(numbered(), delimiter=delimiter):
            yield {name: cell for name, cell in row.items() if name is not None}, f"{path}, line {number}"
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: not a table ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}, row {number}"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        said = short_repr(str(error).partition("\n")[0], 200)
        raise ValueError(f"{path}, after row {number}: the file is damaged ({said})") from None


def _documents(path: Path, least: int) -> Iterator[tuple[str, str]]:
    """Whole lines as documents of at least so many characters."""
    lines: list[str] = []
    size = begin = 0
    for number, line in _lines(path):
        begin = begin if lines else number
        lines.append(line)
        size += len(line.strip())
        if size >= least:
            yield "".join(lines), f"{path}, line {begin}"
            lines, size = [], 0
    if size:
        yield "".join(lines), f"{path}, line {begin}"
