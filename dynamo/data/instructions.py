"""Instructions with their replies as training rows: the loss is on the replies' tokens only.

Rows are Alpaca's (`instruction`, `input`, `output`) or conversations, from JSON lines or one JSON list.
Both become turns of the template that the chat page uses (`dynamo.data.text`), and labels are those of the
answers that it finds. A batch is a function of its number, as in `dynamo.data.blocks`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynamo.common.validation import parse_json, short_repr
from dynamo.data import text
from dynamo.data.documents import padded
from dynamo.data.readers import Turns, conversation, parse_line, read_lines
from dynamo.model.loss import IGNORED_LABEL

RATINGS = ("rating", "score")


@dataclass(frozen=True)
class Example:
    """A conversation with at least one reply; rating: its row's, None if it has none."""

    turns: Turns
    rating: float | None = None


def read_examples(path: str | Path) -> list[Example]:
    """Examples of a JSON list or of JSON lines (also .gz).

    Raises ValueError naming file and line (in a list: row) of one that is no example.
    """
    examples = [_example(row, where) for row, where in _rows(path)]
    if not examples:
        raise ValueError(f"{path}: holds no instruction and no conversation")
    return examples


def _rows(path: str | Path) -> Iterator[tuple[Any, str]]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if not first[0].lstrip().startswith("["):
        yield parse_line(*first), first[1]
        for line, where in lines:
            yield parse_line(line, where), where
        return
    numbered = [first, *lines]
    try:
        rows = parse_json("".join(line for line, _ in numbered), finite=False)
    except json.JSONDecodeError as error:
        where = numbered[min(error.lineno, len(numbered)) - 1][1]
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, row {number}"


def _example(row: Any, where: str) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {short_repr(row)}")
    turns = conversation(row, where)
    if turns is None:
        turns = _alpaca(row, where)
    if all(turn["role"] != "assistant" for turn in turns):
        raise ValueError(f"{where}: no turn of the assistant, so there is no reply to learn")
    return Example(turns, _rating(row, where))


def _alpaca(row: dict[str, Any], where: str) -> Turns:
    instruction, given, output = (row.get(name, "") for name in ("instruction", "input", "output"))
    if not all(isinstance(part, str) for part in (instruction, given, output)):
        raise ValueError(f"{where}: 'instruction', 'input' and 'output' must be strings")
    if not instruction.strip() or not output.strip():
        raise ValueError(
            f"{where}: expected 'instruction' and 'output', or 'turns' or 'messages', "
            f"got {short_repr(', '.join(row))}"
        )
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    return [{"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _rating(row: Any, where: str) -> float | None:
    value = next((row[name] for name in RATINGS if name in row), None) if isinstance(row, dict) else row
    if value is None:
        return None
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        rating = math.nan
    if not math.isfinite(rating):
        raise ValueError(f"{where}: expected a number as rating, got {short_repr(value)}")
    return rating


def read_ratings(path: str | Path) -> list[float]:
    """Ratings from a JSON list or JSON lines: numbers, or objects with `rating` or `score`."""
    ratings = []
    for row, where in _rows(path):
        rating = _rating(row, where)
        if rating is None:
            raise ValueError(f"{where}: expected a number, or an object with {' or '.join(RATINGS)}")
        ratings.append(rating)
    return ratings


def rated(
    examples: Sequence[Example], min_rating: float, ratings: Sequence[float] | None = None
) -> list[Example]:
    """Examples rated `min_rating` or better, by `ratings` in the same order, or by their own rows.

    Raises ValueError if ratings are missing or too many, or if none is good enough.
    """
    if ratings is None:
        ratings = [example.rating for example in examples]
        if None in ratings:
            raise ValueError(
                f"min_rating: row {ratings.index(None) + 1} of the data has no 'rating'; give a ratings file"
            )
    if len(ratings) != len(examples):
        raise ValueError(f"ratings: {len(ratings)} ratings for {len(examples)} examples; give one for each")
    kept = [example for example, rating in zip(examples, ratings, strict=True) if rating >= min_rating]
    if not kept:
        raise ValueError(f"min_rating: no example is rated {min_rating} or better (best: {max(ratings)})")
    return kept


def encode(
    examples: Sequence[Example], tokenizer: Any, max_length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and labels (int32) of each example, cut at `max_length`; labels outside replies are -100.

    An example whose replies are cut away is left out.
    """
    rows = []
    for chat in text.encode_many(tokenizer, [example.turns for example in examples]):
        ids = np.asarray(chat.ids[:max_length], dtype=np.int32)
        labels = np.full(len(ids), IGNORED_LABEL, np.int32)
        for answer in chat.answers:
            labels[answer.start : answer.stop] = ids[answer.start : answer.stop]
        if (labels[1:] != IGNORED_LABEL).any():
            rows.append((ids, labels))
    return rows


class InstructionRows:
    """An endless, seekable sequence of encoded examples, reshuffled every epoch."""

    def __init__(self, rows: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0):
        if not rows:
            raise ValueError("data: no example has a reply within the length; raise max_length")
        self._rows = rows
        self._seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def fingerprint(self) -> str:
        """A hash of the sequence: of seed, examples and labels."""
        crc = zlib.crc32(repr(self._seed).encode())
        for ids, labels in self._rows:
            crc = zlib.crc32(labels.tobytes(), zlib.crc32(ids.tobytes(), crc))
        return f"{crc:08x}"

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows start .. start + count of the sequence: ids and labels (count, longest), int64."""
        return padded([self._row(index) for index in range(start, start + count)])

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, position = divmod(index, len(self._rows))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
            self._epoch = (epoch, order)
        return self._rows[self._epoch[1][position]]
