"""Token tuples as a trie of arrays: the tuples of order m are sorted children of those of order m - 1.

A tuple's position in its order is the handle to its own children, so finding the tuples of a grid of
candidate tokens is a gather. For small vocabularies the pairs have a bit matrix besides, as their grid is
asked for in every pass. Positions and counts only: no ratios, no files, no streams.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

SEARCH_COST = 32  # looking up one cell of a grid takes as long as reading this many children
ONE, HALF_WORD = np.uint64(1), np.uint64(32)
CACHE_LINE, LARGE_PAGE = 64, 2**21  # bytes
COUNT = np.arange(2**15)  # a range of any usual length is a piece of this one

Cells = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, rank in the head, position in the level


@dataclass(frozen=True, eq=False)
class Level:
    """The tuples of one order, sorted: each is a child of the tuple one token shorter that it begins with.

    starts: (parents + 1,) int64, where a parent's children begin; last: (tuples,) their last tokens,
    ascending within a parent; counts: (tuples,); total: tuples in the stream, dropped ones included.
    """

    starts: np.ndarray
    last: np.ndarray
    counts: np.ndarray
    total: int
    vocab_size: int

    @property
    def fans(self) -> np.ndarray:
        """(parents,) how many children each parent has."""
        return np.diff(self.starts)

    @cached_property
    def _no_ranks(self) -> np.ndarray:
        return np.full(self.vocab_size, -1, np.int8)

    def find(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Positions (n,) of the children `tokens` of `parents`; -1 for no such child, or a parent of -1."""
        if len(self.last) == 0:
            return np.full(len(parents), -1)
        low = self.starts.take(parents, mode="clip")
        end = high = self.starts.take(parents + 1)  # a parent of -1 has the empty range from 0 to 0
        for _ in range(int((end - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            smaller = self.last.take(middle, mode="clip") < tokens
            low, high = np.where(smaller, middle + 1, low), np.where(smaller, high, middle)
        found = (low < end) & (self.last.take(low, mode="clip") == tokens)
        return np.where(found, low, -1)

    def extend(self, parents: np.ndarray, head: np.ndarray) -> Cells:
        """The cells of the grid parents (n,) x head (k,) that are tuples of this level, by row."""
        stops = self.starts[1:].take(parents)
        fans = stops - self.starts.take(parents)
        ends = fans.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        if total > SEARCH_COST * len(parents) * len(head):
            return self._search(parents, head)
        rank_of = self._no_ranks.copy() if len(head) < 128 else self._no_ranks.astype(np.intp)
        rank_of[head] = counted(len(head))
        row = counted(len(parents)).repeat(fans)
        children = (stops - ends).take(row)
        children += counted(total)
        rank = rank_of.take(self.last.take(children))
        kept = (rank >= 0).nonzero()[0]
        return row.take(kept), rank.take(kept), children.take(kept)

    def _search(self, parents: np.ndarray, head: np.ndarray) -> Cells:
        positions = self.find(parents.repeat(len(head)), np.tile(head, len(parents)))
        cells = (positions >= 0).nonzero()[0]
        return *np.divmod(cells, len(head)), positions.take(cells)

    def validate(self, parents: int, min_count: int) -> None:
        """Raise ValueError where this cannot be the level under that many parents."""
        size, counted = len(self.last), int(self.counts.sum(dtype=np.int64))
        require(len(self.starts) == parents + 1, f"children of {len(self.starts) - 1} tuples, not {parents}")
        require(self.starts[-1] == size == len(self.counts), f"{self.starts[-1]} children, {size} tokens")
        largest = int(self.last.max(initial=0))
        require(self.last.dtype.kind == "u" and largest < self.vocab_size, f"a token id of {largest}")
        begins = np.zeros(size + 1, bool)
        begins[self.starts] = True
        require((begins[1:-1] | (self.last[1:] > self.last[:-1])).all(), "tuples out of order")
        require(self.counts.min(initial=min_count) >= min_count, f"a count below {min_count}")
        complete = counted == self.total if min_count == 1 else counted <= self.total
        require(complete, f"counts of {counted} tuples, not {self.total}")


@dataclass(frozen=True, eq=False)
class PairBitmap:
    """A bit for every pair of a small vocabulary: a grid of pairs is found without reading any children.

    words: (vocab * width,) uint64, a bit for each of 32 second tokens and, above these, how many pairs are
    ahead of the word. A pair's position in its level is the number of bits set before its own. word_of,
    bit_of: (vocab,) where a second token stands.
    """

    width: int
    words: np.ndarray
    word_of: np.ndarray
    bit_of: np.ndarray

    @staticmethod
    def bytes_for(vocab_size: int) -> int:
        return vocab_size * (vocab_size // 32 + 1) * 8

    @classmethod
    def of(cls, pairs: Level) -> PairBitmap:
        width = pairs.vocab_size // 32 + 1
        ids = np.arange(pairs.vocab_size)
        word_of, bit_of = ids >> 5, ONE << (ids & 31).astype(np.uint64)
        words = np.zeros(pairs.vocab_size * width, np.uint64)
        at = ids.repeat(pairs.fans) * width + word_of[pairs.last]
        np.bitwise_or.at(words, at, bit_of[pairs.last])
        inside = np.bitwise_count(words).astype(np.uint64)
        words |= inside.cumsum() - inside << HALF_WORD
        return cls(width, words, word_of, bit_of)

    def extend(self, first: np.ndarray, second: np.ndarray) -> Cells:
        """The cells of the grid first (k_1,) x second (k_2,) that are pairs, row-major."""
        at = (first * self.width)[:, None] + self.word_of.take(second)  # (k_1, k_2)
        bits = self.bit_of.take(second)
        words = self.words.take(at)
        cells = (words & bits > 0).ravel().nonzero()[0]
        positions = (words >> HALF_WORD) + np.bitwise_count(words & bits - ONE)
        row = cells // max(len(second), 1)
        return row, cells - row * len(second), positions.take(cells).astype(np.intp)


def nodes_of(levels: Sequence[Level]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels end to end, for who walks them in one loop: (first, last, counts).

    Node t is token t, from node `vocab_size` on come the pairs, then the triples .. A node's children are the
    nodes first[node] to first[node + 1]; last and counts are a tuple's last token and its count, without the
    single tokens.
    """
    ends = levels[0].vocab_size + np.cumsum([0, *(len(level.last) for level in levels)])
    first = [level.starts[:-1] + end for level, end in zip(levels, ends[:-1], strict=True)]
    first = np.concatenate([*first, ends[-1:]])
    fits = ends[-1] <= np.iinfo(np.int32).max
    last = np.concatenate([level.last for level in levels])
    return (
        first.astype(np.int32 if fits else np.int64),
        last,
        np.concatenate([level.counts for level in levels]),
    )


def side_by_side(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Copies of arrays in one piece of memory that begins a large page.

    numpy asks the system for large pages where a piece has some megabytes. Whoever reads here and there in
    small ones waits for the processor to find each.
    """
    sizes = [-(-array.nbytes // CACHE_LINE) * CACHE_LINE for array in arrays]
    piece = np.empty(sum(sizes) + LARGE_PAGE, np.uint8)
    at, copies = -piece.ctypes.data % LARGE_PAGE, []
    for array, size in zip(arrays, sizes, strict=True):
        copies.append(piece[at : at + array.nbytes].view(array.dtype))
        copies[-1][:] = array
        at += size
    return tuple(copies)


def counted(length: int) -> np.ndarray:
    """0 .. length - 1, not to be written to."""
    return COUNT[:length] if length <= len(COUNT) else np.arange(length)


def starts_of(fans: np.ndarray) -> np.ndarray:
    return np.append(0, fans.cumsum(dtype=np.int64))


def smallest(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(counts.max(initial=0)))


def require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where torch was never imported nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)
