"""JSON lines that a run appends one by one, and that a later run goes on from.

A row is whole or absent: a line that a kill cut short is dropped when the file is opened again. Rows carry
the settings that made them, and a file of other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dynamo.data import parse_line, read_lines
from dynamo.folders import drop_cut_line
from dynamo.foreign import shown


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a finished or interrupted journal. Raises ValueError naming file and line of a corrupt one."""
    rows = []
    for line, where in read_lines(path):
        row = parse_line(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {shown(row)}")
        rows.append(row)
    return rows


class Journal:
    """An append-only file of rows, each known by the values of its `key` fields.

    rows: those that are there. Raises ValueError where an existing row was made with other settings.
    """

    def __init__(self, path: str | Path, key: Sequence[str], settings: dict[str, Any]):
        self._path = Path(path)
        self._key = tuple(key)
        # As a row gives them back: tuples are lists there.
        self._settings = json.loads(json.dumps(settings))
        self.rows: list[dict[str, Any]] = []
        if self._path.exists():
            drop_cut_line(self._path)
            self.rows = read_journal(self._path)
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
                f"output: {self._path}, row {number} is none that this program wrote; name another file"
            )
        names = sorted(then.keys() | now.keys())
        changed = [f"{n}: {then.get(n)} then, {now.get(n)} now" for n in names if then.get(n) != now.get(n)]
        if changed:
            raise ValueError(
                f"output: {self._path} holds rows made with other settings ({'; '.join(changed)}); use the "
                "same to go on, or another file"
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
