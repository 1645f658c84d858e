"""JSON lines that a run appends one by one, so that a later run can continue.

A line that was cut short when a run was killed is dropped when the file is opened again, so a row is complete
or missing. Rows carry the settings that made them, and a file of other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dynamo.common.distributed import Processes
from dynamo.common.files import drop_cut_line
from dynamo.common.validation import short_repr
from dynamo.data.readers import parse_line, read_lines

Check = Callable[[dict[str, Any]], None]  # KeyError, TypeError or ValueError for a row that cannot be used


def anything(row: dict[str, Any]) -> None:
    """Takes any row."""


def read_journal(path: str | Path, check: Check = anything) -> list[dict[str, Any]]:
    """Rows of a finished or interrupted journal. Raises ValueError naming file and line of a corrupt row, or
    of one that `check` refuses."""
    rows = []
    for line, where in read_lines(path):
        row = parse_line(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {short_repr(row)}")
        try:
            check(row)
        except KeyError as error:
            raise ValueError(f"{where}: the field {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        rows.append(row)
    return rows


class Journal:
    """An append-only file of rows, each identified by the values of its `key` fields.

    rows: those in the file. Raises ValueError if an existing row was made with other settings, or if `check`
    refuses it.
    """

    def __init__(
        self, path: str | Path, key: Sequence[str], settings: dict[str, Any], check: Check = anything
    ):
        self._path = Path(path)
        self._key = tuple(key)
        # As they are read back from a row: tuples are lists there.
        self._settings = json.loads(json.dumps(settings))
        self.rows: list[dict[str, Any]] = []
        if self._path.exists():
            drop_cut_line(self._path)
            self.rows = read_journal(self._path, check)
        for number, row in enumerate(self.rows, start=1):
            self._check(row, number)
        self._done = {self.key_of(row) for row in self.rows}

    def _check(self, row: dict[str, Any], number: int) -> None:
        missing = [name for name in (*self._key, "settings") if name not in row]
        if missing:
            raise ValueError(f"output: {self._path}, row {number} has no {', '.join(missing)}; name another")
        then, now = row["settings"], self._settings
        if not isinstance(then, dict) or not all(isinstance(row[name], Hashable) for name in self._key):
            raise ValueError(
                f"output: {self._path}, row {number} was not written by this program; name another file"
            )
        names = sorted(then.keys() | now.keys())
        changed = [f"{n}: {then.get(n)} then, {now.get(n)} now" for n in names if then.get(n) != now.get(n)]
        if changed:
            raise ValueError(
                f"output: {self._path} holds rows made with other settings ({'; '.join(changed)}); use the "
                "same to continue, or another file"
            )

    def key_of(self, row: dict[str, Any]) -> tuple[Hashable, ...]:
        return tuple(row[name] for name in self._key)

    def __contains__(self, key: tuple[Hashable, ...]) -> bool:
        return key in self._done

    def __enter__(self) -> Journal:
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row with the settings; it is in the file when this returns."""
        row = {**row, "settings": self._settings}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows.append(row)
        self._done.add(self.key_of(row))

    def merge(self, path: Path) -> None:
        """Append the rows of another journal that are not here, then remove its file. A kill in between loses
        nothing: it can be repeated. Raises ValueError if it was made with other settings."""
        for row in Journal(path, self._key, self._settings).rows:
            if self.key_of(row) not in self:
                self.write({name: value for name, value in row.items() if name != "settings"})
        path.unlink()


class SharedJournal:
    """A journal that several processes write, each into its own file next to it. The first process merges
    these files at the end, and at the start those that a killed run left, whatever its number of processes.

    there: rows that existed at the start; written: rows since then. At the end the first process counts the
    rows of all, every other its own.
    """

    def __init__(self, path: Path, key: Sequence[str], settings: dict[str, Any], processes: Processes):
        self._path, self._processes = path, processes
        with processes.first_alone():
            self._whole = Journal(path, key, settings)
            self._gather()
        self.there = len(self._whole.rows)
        share = path.with_name(f"{path.name}.share-{processes.number}")
        self._own = self._whole if processes.count == 1 else Journal(share, key, settings)

    @property
    def written(self) -> int:
        return len(self._whole.rows) - self.there if self._processes.number == 0 else len(self._own.rows)

    def __contains__(self, key: tuple[Hashable, ...]) -> bool:
        return key in self._whole

    def __enter__(self) -> SharedJournal:
        self._own.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._own.__exit__(kind, error, trace)
        if kind is None:
            self._processes.wait()
            self._gather()

    def write(self, row: dict[str, Any]) -> None:
        self._own.write(row)

    def _gather(self) -> None:
        found = self._path.parent.glob("*.share-*")
        shares = sorted(each for each in found if each.stem == self._path.name)
        if self._processes.number == 0 and shares:
            with self._whole:
                for share in shares:
                    self._whole.merge(share)
