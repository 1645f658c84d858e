"""What becomes of the rows of people's data: how many are read, what is left out, why, and where first.

Nothing that somebody wrote is dropped without a word: readers, the chat template and finetuning count here
what they leave out, and every command says it before it starts to work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Names = str | Path | Sequence[str | Path]  # of data, as `dynamo.data.sources.data_files` takes them
PLACES = 3  # of each reason that are named
DATA_HELP = (
    "conversations or texts: JSON, JSON lines, CSV, TSV, parquet or text (also packed), as files, globs, "
    "folders, - for standard input, or data sets of the hub: owner/name, owner/name:SPLIT, owner/name/FILE"
)
STRICT_HELP = "refuse data of which a row would be left out"


@dataclass
class Tally:
    """How often something happened, and the first places where."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, places: list[str], count: int = 1) -> None:
        self.count += count
        self.places += places[: PLACES - len(self.places)]

    def __str__(self) -> str:
        return f"{self.count:,}: {'; '.join(self.places)}{'; ..' if self.count > len(self.places) else ''}"


@dataclass
class Reading:
    """Counts of one reading; strict: a row that would be left out is a ValueError.

    left_out: rows, by what is wrong with them ("an empty reply"); parts: of rows that are read ("tool
    calls"); unread: columns that nothing here reads.
    """

    strict: bool = False
    conversations: int = 0
    texts: int = 0
    left_out: dict[str, Tally] = field(default_factory=dict)
    parts: dict[str, Tally] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Those that are read."""
        return self.conversations + self.texts

    @property
    def rows_left_out(self) -> int:
        return sum(tally.count for tally in self.left_out.values())

    def leave_out(self, reason: str, where: str, detail: str = "", was_read: type | None = None) -> None:
        """Count a row as left out; was_read: list or str if it was counted as read before.

        Raises ValueError, of which `detail` is the more exact sentence, if the reading is strict.
        """
        if self.strict:
            raise ValueError(f"{detail or f'{where}: {reason}'}; without --strict such rows are left out")
        self.left_out.setdefault(reason, Tally()).add([Path(where).name])
        self.conversations -= was_read is list
        self.texts -= was_read is str

    def leave_out_part(self, what: str, where: str) -> None:
        self.parts.setdefault(what, Tally()).add([Path(where).name])

    def check(self, source: Names) -> None:
        """Raise ValueError if nothing is left of a source, or of several."""
        if not isinstance(source, str | Path):
            source = ", ".join(map(str, source))
        if not self.rows and self.left_out:
            raise ValueError(f"{source}: no row can be used: {self._reasons()}")
        if not self.rows:
            raise ValueError(f"{source}: holds no conversation and no text")

    def add(self, other: Reading) -> None:
        """Count another reading's rows here too. Raises ValueError if it left some out and this is strict."""
        if self.strict and other.left_out:
            raise ValueError(f"strict: {other._reasons()}; without --strict such rows are left out")
        self.conversations += other.conversations
        self.texts += other.texts
        for own, given in ((self.left_out, other.left_out), (self.parts, other.parts)):
            for what, tally in given.items():
                own.setdefault(what, Tally()).add(tally.places, tally.count)
        self.unread += [name for name in other.unread if name not in self.unread]

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["strict"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        tallies = {
            name: {what: Tally(**tally) for what, tally in values[name].items()}
            for name in ("left_out", "parts")
        }
        return cls(**{**values, **tallies})

    def sentences(self) -> list[str]:
        """What was read and what was not, for people."""
        kinds = [
            f"{count:,} {name}{'' if count == 1 else 's'}"
            for name, count in (("conversation", self.conversations), ("text", self.texts))
            if count
        ]
        said = [f"read {' and '.join(kinds) or 'nothing'}"]
        if self.left_out:
            rows = self.rows_left_out
            said.append(f"left out {rows:,} row{'' if rows == 1 else 's'}: {self._reasons()}")
        if self.parts:
            parts = ", ".join(f"{what} ({tally})" for what, tally in self.parts.items())
            said.append(f"left out of rows that are read: {parts}")
        return said

    def say(self, name: str, *more: str) -> None:
        """Print `sentences` and more on stderr."""
        for sentence in (*self.sentences(), *more):
            print(f"{name}: {sentence}", file=sys.stderr)

    def _reasons(self) -> str:
        return ", ".join(f"{reason} ({tally})" for reason, tally in self.left_out.items())
