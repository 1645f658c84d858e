"""Counting adjacent token tuples in a stream, in bounded memory.

A tuple is packed into one integer; a chunk of the stream is sorted and summed, and sorted runs are merged as
they grow. The result are the levels of a trie (`dynamo.cooccurrence.trie`), one per order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dynamo.cooccurrence.trie import Level, is_tensor, smallest, starts_of

KEY_BITS = 63  # a tuple is counted as one int64
MAX_VOCAB = 2**24


def count_tuples(
    blocks: Iterable[Any],
    order: int,
    min_count: int,
    vocab_size: int | None,
    progress: bool,
    chunk_tokens: int,
) -> tuple[np.ndarray, list[Level]]:
    """Counts of single tokens (vocab,) and the levels of orders 2 .. `order` of a stream of token blocks.

    Arguments and errors are those of `CooccurrenceTable.count`.
    """
    base = largest_vocab(order)
    if vocab_size is not None and vocab_size > base:
        raise ValueError(_too_large(f"a vocabulary of {vocab_size}", order))
    unigrams = np.zeros(vocab_size or 0, np.int64)
    runs = [_SortedCounts() for _ in range(2, order + 1)]
    with tqdm(desc="counting", unit=" tokens", unit_scale=True, disable=not progress) as bar:
        for tokens, room in chunks(blocks, order, chunk_tokens):
            check_ids(tokens, vocab_size, order)
            singles = np.bincount(tokens[room > 0], minlength=len(unigrams))
            singles[: len(unigrams)] += unigrams
            unigrams = singles
            for run, keys in zip(runs, tuple_keys(tokens, room, order, base), strict=True):
                run.add(keys)
            bar.update(np.count_nonzero(room))
    return unigrams, levels_of(runs, min_count, len(unigrams), base)


def tuple_keys(tokens: np.ndarray, room: np.ndarray, order: int, base: int) -> Iterator[np.ndarray]:
    """The packed tuples of orders 2 .. `order` that begin in a chunk (`chunks`), unsorted."""
    keys = tokens
    for m in range(2, order + 1):
        keys = keys[:-1] * base + tokens[m - 1 :]
        yield keys[room[: len(keys)] >= m]


class Counts(Protocol):
    """total: tuples counted, dropped ones included."""

    total: int

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Packed tuples, sorted and each once, and their counts."""
        ...


class _SortedCounts:
    """How often each key of a stream occurs, as sorted runs each at most half as long as the one before it.

    This keeps the runs few, and merges a key only a logarithmic number of times.
    """

    def __init__(self):
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []
        self.total = 0

    def add(self, keys: np.ndarray) -> None:
        self.total += len(keys)
        self.runs.append(sum_equal(np.sort(keys), np.ones(len(keys), np.int64)))
        while len(self.runs) > 1 and 2 * len(self.runs[-1][0]) > len(self.runs[-2][0]):
            self._merge_last_two()

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, sorted, and their counts."""
        while len(self.runs) > 1:
            self._merge_last_two()
        return self.runs[0] if self.runs else (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _merge_last_two(self) -> None:
        keys, counts = map(np.concatenate, zip(self.runs.pop(), self.runs.pop(), strict=True))
        order = keys.argsort(kind="stable")  # linear: the two halves are sorted
        self.runs.append(sum_equal(keys[order], counts[order]))


def sum_equal(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys, each once, and the sums of their counts."""
    if len(keys) == 0:
        return keys, counts
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(counts, first)


def chunks(blocks: Iterable[Any], order: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield tokens (n,) and room (n,), the length of the longest tuple that may begin at each token.

    A chunk has `size` to twice `size` tokens. A block longer than `size` is cut; each piece is followed by
    the `order - 1` tokens that its last tuples extend into. Their own room is 0, as the next piece begins
    with them.
    """
    tokens, room, held = [], [], 0
    for block in blocks:
        ids = _token_ids(block)
        for begin in range(0, len(ids), size):
            piece = ids[begin : begin + size + order - 1].astype(np.int64)
            reach = np.arange(len(piece), 0, -1)
            reach[size:] = 0
            tokens.append(piece)
            room.append(reach)
            held += len(piece)
            if held >= size:
                yield np.concatenate(tokens), np.concatenate(room)
                tokens, room, held = [], [], 0
    if held:
        yield np.concatenate(tokens), np.concatenate(room)


def _token_ids(block: Any) -> np.ndarray:
    ids = np.asarray(block.cpu() if is_tensor(block) else block)
    if ids.ndim == 1 and len(ids) == 0:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"each block must be 1-D integer token ids, got {ids.dtype} of shape {ids.shape}")
    return ids


def levels_of(runs: Sequence[Counts], min_count: int, vocab_size: int, base: int) -> list[Level]:
    """The levels of orders 2, 3 .. from the counts of their packed tuples."""
    levels, parents = [], np.arange(vocab_size)
    for run in runs:
        keys, counts = run.merged()
        kept = counts >= min_count
        keys, counts = keys[kept], counts[kept]
        leading, last = np.divmod(keys, base)
        parent = parents.searchsorted(leading)
        # A tuple's prefix occurs at least as often as the tuple, so it was kept too.
        assert np.array_equal(parents.take(parent), leading), "a tuple was kept without its prefix"
        starts = starts_of(np.bincount(parent, minlength=len(parents)))
        last = last.astype(np.min_scalar_type(vocab_size))
        levels.append(Level(starts, last, smallest(counts), run.total, vocab_size))
        parents = keys
    return levels


def largest_vocab(order: int) -> int:
    """The largest base whose numbers of `order` digits fit a key."""
    root = round(2 ** (KEY_BITS / order))
    return min(root - (root**order > 2**KEY_BITS), MAX_VOCAB)


def check_ids(tokens: np.ndarray, vocab_size: int | None, order: int) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0:
        raise ValueError(f"token ids must not be negative, got {low}: leave padding and masked labels out")
    if vocab_size is not None and high >= vocab_size:
        raise ValueError(
            f"token ids must be below vocab_size {vocab_size}, got {high}: is it this tokenizer's?"
        )
    if high >= largest_vocab(order):
        raise ValueError(_too_large(f"token id {high}", order))


def _too_large(what: str, order: int) -> str:
    return (
        f"{what} is too large for order {order}: a tuple is packed into {KEY_BITS} bits, so ids must be "
        f"below {largest_vocab(order)}: count a lower order"
    )
