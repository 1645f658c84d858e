"""Instructions with their replies as training rows: the loss is on the replies' tokens only.

Conversations (`dynamo.data.rows`) become turns of the template that the chat page uses (`dynamo.data.text`),
and labels are those of the answers that it finds. A batch is a function of its number, as in
`dynamo.data.blocks`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamo.data import text
from dynamo.data.documents import padded
from dynamo.data.readers import read_values
from dynamo.data.reading import Names, Reading
from dynamo.data.rows import RATINGS, Row, conversations, first_given, number
from dynamo.data.sources import read_all
from dynamo.model.loss import IGNORED_LABEL


def read_examples(names: Names, reading: Reading | None = None) -> list[Row]:
    """The conversations of data that have a reply.

    Raises ValueError if there is none, and as `dynamo.data.rows.rows` does.
    """
    reading = reading or Reading()
    examples = []
    for row in conversations(read_all(names, reading), reading):
        if any(turn["role"] == "assistant" for turn in row.content):
            examples.append(row)
        else:
            reading.leave_out("no reply to learn", row.where, was_read=list)
    reading.check(names)
    return examples


def read_ratings(path: str | Path) -> list[float]:
    """Ratings from a JSON list or JSON lines: numbers, or objects with `rating` or `score`."""
    ratings = []
    for value, where in read_values(path, Reading(strict=True)):
        rating = number(first_given(value, RATINGS) if isinstance(value, dict) else value)
        if rating is None:
            raise ValueError(f"{where}: expected a number, or an object with {' or '.join(RATINGS)}")
        ratings.append(rating)
    return ratings


def rated(examples: Sequence[Row], min_rating: float, ratings: Sequence[float] | None = None) -> list[Row]:
    """Examples rated `min_rating` or better, by `ratings` in the same order, or by their own rows.

    Raises ValueError if ratings are missing or too many, or if none is good enough.
    """
    if ratings is None:
        ratings = [example.rating for example in examples]
        if None in ratings:
            raise ValueError(
                f"min_rating: row {ratings.index(None) + 1} of the data has no 'rating' that is a number; "
                "give a ratings file"
            )
    if len(ratings) != len(examples):
        raise ValueError(
            f"ratings: {len(ratings)} ratings for {len(examples)} examples; give one for each that is read"
        )
    kept = [example for example, rating in zip(examples, ratings, strict=True) if rating >= min_rating]
    if not kept:
        raise ValueError(f"min_rating: no example is rated {min_rating} or better (best: {max(ratings)})")
    return kept


def encode(examples: Sequence[Row], tokenizer: Any, max_length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and labels (int32) of each example, cut at `max_length`; labels outside replies are -100.

    An example whose replies are cut away is left out.
    """
    rows = []
    for chat in text.encode_many(tokenizer, [example.content for example in examples]):
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
