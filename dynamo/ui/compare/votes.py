"""Blind votes: which of two answers visitors preferred, kept in one SQLite file.

A vote is settings, two speeds and an outcome; there is no room in it for the prompt or an answer. A vote that
`add` has returned from is on the disk. Folders of Spaces may be mounted over a network, where SQLite's WAL
cannot work, so the file has SQLite's plain journal; each call opens its own connection, and waits for others.

This module knows neither torch nor gradio.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from dynamo.common.statistics import wilson
from dynamo.sampling.options import CORRECTIONS, DRAWS

log = logging.getLogger(__name__)

OUTCOMES = ("dynamo", "base", "tie")
VOTES_FILE = "votes.sqlite3"
SCHEMA_VERSION = 1
LOCK_SECONDS = 10.0

_APPLICATION_ID = 0x44594D4F  # "DYMO": tells our file from another program's
_WORDS = {"correction": CORRECTIONS, "draw": DRAWS}  # of the options
_OPPONENT = re.compile(r"[a-z][a-z0-9-]{0,23}")

_SCHEMA = f"""
CREATE TABLE votes (
    id TEXT PRIMARY KEY,
    time TEXT NOT NULL,
    model TEXT NOT NULL,
    threshold REAL NOT NULL,
    options TEXT NOT NULL,
    speed_up REAL,
    tokens_per_forward REAL NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN {OUTCOMES})
);
CREATE INDEX votes_by_threshold ON votes (model, threshold);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True)
class Standing:
    """All votes on one model at one threshold.

    speed_up, tokens_per_forward: means over the votes; win_rate: wins over losses, as the paper has it, None
    without a loss; share: of the decided votes, those for DynaMo, None where every vote is a tie.
    """

    threshold: float
    wins: int
    ties: int
    losses: int
    speed_up: float | None
    tokens_per_forward: float

    @property
    def votes(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float | None:
        return self.wins / self.losses if self.losses else None

    @property
    def share(self) -> float | None:
        decided = self.wins + self.losses
        return self.wins / decided if decided else None

    def to_json(self) -> dict[str, Any]:
        """A plain row, as `charts.votes_chart` takes it; low and high: the share's 95 % interval (Wilson)."""
        low, high = wilson(self.wins, self.wins + self.losses)
        return {
            "threshold": self.threshold,
            "votes": self.votes,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "speed_up": self.speed_up,
            "tokens_per_forward": self.tokens_per_forward,
            "win_rate": self.win_rate,
            "share": self.share,
            "low": low,
            "high": high,
        }


class VoteBook:
    """The votes of one folder, which is made with the first vote. Safe from threads and processes.

    What goes wrong with the file is one sentence that a visitor may read, an OSError, or a ValueError where
    the file is not ours; the log has its path and SQLite's own words.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / VOTES_FILE

    def add(
        self,
        *,
        model: str,
        options: Mapping[str, Any],
        speed_up: float | None,
        tokens_per_forward: float,
        outcome: str,
        id: str | None = None,
    ) -> None:
        """Keeps the answer to one "which is better?" for good.

        options: the duel's settings, "threshold" among them: numbers, switches, and the name of the
        "opponent"; "bits" where the model was quantised; speed_up: DynaMo's tokens per second over the base's
        in this very duel, None where it was too short to tell; outcome: "dynamo", "base" or "tie"; id: the
        duel's own, so that it counts once.
        Raises ValueError for anything else, and for a duel that was voted on before.
        """
        if not all(isinstance(each, str) and each.isprintable() for each in (model, id or "")):
            raise ValueError(f"model, id: expected words, got {model!r:.80} and {id!r:.80}")
        _check(options, speed_up, tokens_per_forward, outcome)
        row = (
            id or uuid4().hex,
            datetime.now(UTC).isoformat(timespec="seconds"),
            model,
            round(float(options["threshold"]), 4),
            json.dumps(dict(options), sort_keys=True),
            None if speed_up is None else float(speed_up),
            float(tokens_per_forward),
            outcome,
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.error("votes: cannot make %s: %s", self.path.parent, error)
            raise OSError("votes: their folder cannot be made") from error
        with self._opened("rwc") as connection:
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection) == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
            try:
                connection.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise ValueError("votes: this pair of answers has been voted on already") from None
            connection.execute("COMMIT")

    def summary(self, model: str | None = None, bits: int | None = None) -> list[Standing]:
        """By threshold, lowest first; of one model, or of all; of one whose weights have so many bits, 0 for
        as they are, or of all; without duels in exact mode, which has no threshold to vary. Empty before the
        first vote."""
        if not self.path.exists():
            return []
        with self._opened("rw") as connection:
            if _version(connection) == 0:
                return []
            rows = connection.execute(
                "SELECT threshold, SUM(outcome = 'dynamo'), SUM(outcome = 'tie'), SUM(outcome = 'base'),"
                " AVG(speed_up), AVG(tokens_per_forward) FROM votes"
                " WHERE (:model IS NULL OR model = :model)"
                " AND (:bits IS NULL OR COALESCE(json_extract(options, '$.bits'), 0) = :bits)"
                " AND NOT COALESCE(json_extract(options, '$.exact'), 0)"
                " GROUP BY threshold ORDER BY threshold",
                {"model": model, "bits": bits},
            )
            standings = [Standing(*row) for row in rows]
        numbers = ((each.threshold, each.tokens_per_forward, each.speed_up or 0) for each in standings)
        if not all(_is_number(number) for row in numbers for number in row):
            raise _damaged()
        return standings

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(
                sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
            ) as connection:
                # EXTRA is FULL that also writes the folder down, without which a power cut could bring the
                # journal back and undo a vote.
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
        except UnicodeDecodeError:  # the library's own error about a damaged file may not be text
            raise _damaged() from None
        except sqlite3.Error as error:
            log.error("votes: %s: %s", self.path, error)
            raise _in_words(error) from error


def _version(connection: sqlite3.Connection) -> int:
    """The schema's version, 0 for a new file. Raises ValueError for a file that is not ours, or newer."""
    version, application = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
    )
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (version or application or tables):
        raise ValueError(f"votes: {VOTES_FILE} belongs to another program; name another folder for votes")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"votes: {VOTES_FILE} has version {version} and this program reads {SCHEMA_VERSION}; update it"
        )
    return version


def _check(
    options: Mapping[str, Any], speed_up: float | None, tokens_per_forward: float, outcome: str
) -> None:
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome: expected one of {', '.join(OUTCOMES)}, got {outcome!r:.80}")
    if speed_up is not None and not (_is_number(speed_up) and speed_up > 0):
        raise ValueError(f"speed_up: expected a positive number or none, got {speed_up!r:.80}")
    if not (_is_number(tokens_per_forward) and tokens_per_forward >= 1):
        raise ValueError(f"tokens_per_forward: expected 1 or more, got {tokens_per_forward!r:.80}")
    for name, value in options.items():
        # Other words could be a visitor's: what was asked and answered is never kept.
        named = name == "opponent" and isinstance(value, str) and _OPPONENT.fullmatch(value)
        if not (value is None or _is_number(value) or named or value in _WORDS.get(name, ())):
            raise ValueError(f"options: {name} must be a number or a switch, got {type(value).__name__}")
    threshold = options.get("threshold")
    if threshold is None or not 0 <= threshold <= 1:
        raise ValueError(f"options: threshold must be within 0 and 1, got {threshold!r:.80}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _in_words(error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    # Extended codes carry the kind of error in their lowest byte.
    kind = None if code is None else code & 0xFF
    if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return _damaged()
    reason = {
        sqlite3.SQLITE_FULL: "their disk is full",
        sqlite3.SQLITE_READONLY: "their folder cannot be written to",
        sqlite3.SQLITE_CANTOPEN: "their file cannot be opened",
        sqlite3.SQLITE_BUSY: f"their file was locked for {LOCK_SECONDS:g} seconds",
    }.get(kind, "their file cannot be read or written")
    return OSError(f"votes: {reason}")


def _damaged() -> ValueError:
    return ValueError(f"votes: {VOTES_FILE} is no votes file, or damaged; move it away")
