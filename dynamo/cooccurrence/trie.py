"""Token tuples as a trie of arrays: the tuples of order m are sorted children of those of order m - 1.

A tuple's position in its order is the handle to its own children, so finding the tuples of a grid of
candidate tokens is a gather. Positions and counts only: no ratios, files or streams.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CACHE_LINE, LARGE_PAGE = 64, 2**21  # bytes

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
        """How many children each parent has: (parents,)."""
        return np.diff(self.starts)

    def find(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Positions (n,) of the children `tokens` (n,) of `parents` (n,); -1 where there is none."""
        if len(self.last) == 0:
            return np.full(len(parents), -1)
        low = self.starts.take(parents, mode="clip")
        end = high = self.starts.take(parents + 1)  # a parent of -1 has the empty range from 0 to 0
        # Binary search for all at once, as many rounds as the largest family needs.
        for _ in range(int((end - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            smaller = self.last.take(middle, mode="clip") < tokens
            low, high = np.where(smaller, middle + 1, low), np.where(smaller, high, middle)
        found = (low < end) & (self.last.take(low, mode="clip") == tokens)
        return np.where(found, low, -1)

    def extend(self, parents: np.ndarray, head: np.ndarray) -> Cells:
        """The cells of the grid parents (n,) x head (k,) that are tuples of this level, ordered by row."""
        fans = self.starts.take(parents + 1) - self.starts.take(parents)
        rows = np.arange(len(parents)).repeat(fans)  # (children,), of all parents
        ahead = fans.cumsum() - fans
        children = self.starts.take(parents).repeat(fans) + np.arange(len(rows)) - ahead.repeat(fans)
        rank_of = np.full(self.vocab_size, -1)
        rank_of[head] = np.arange(len(head))
        ranks = rank_of.take(self.last.take(children))
        kept = ranks >= 0
        return rows[kept], ranks[kept], children[kept]

    def validate(self, parents: int, min_count: int) -> None:
        """Raise ValueError unless this can be the level below that many parents."""
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


def nodes_of(levels: Sequence[Level]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels end to end, for loops that walk the whole trie: (first, last, counts).

    Node t is token t; pairs follow from node `vocab_size` on, then triples, and so on. A node's children are
    the nodes first[node] to first[node + 1]. last and counts hold the last token and the count of each pair
    and longer tuple; single tokens have no entry.
    """
    ends = levels[0].vocab_size + np.cumsum([0, *(len(level.last) for level in levels)])
    first = [level.starts[:-1] + end for level, end in zip(levels, ends[:-1], strict=True)]
    first = np.concatenate([*first, ends[-1:]])
    fits = ends[-1] <= np.iinfo(np.int32).max
    last, counts = ([getattr(level, name) for level in levels] for name in ("last", "counts"))
    return first.astype(np.int32 if fits else np.int64), _end_to_end(last), _end_to_end(counts)


def _end_to_end(parts: Sequence[np.ndarray]) -> np.ndarray:
    """In as few bits as hold all numbers, but 16 at least: each type of number is another loop to compile."""
    whole = np.concatenate(parts)
    kind = np.promote_types(np.min_scalar_type(whole.max(initial=0)), np.uint16)
    return whole.astype(kind, copy=False)


def in_large_pages(count: int) -> np.ndarray:
    """So many bytes of memory, aligned to a large page.

    numpy asks the system for large pages for pieces of some megabytes. Random access in small pages would
    wait for the processor to look each page up.
    """
    piece = np.empty(count + LARGE_PAGE, np.uint8)
    at = -piece.ctypes.data % LARGE_PAGE
    return piece[at : at + count]


def side_by_side(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Copies of arrays in one piece of memory (`in_large_pages`)."""
    sizes = [-(-array.nbytes // CACHE_LINE) * CACHE_LINE for array in arrays]
    piece, at, copies = in_large_pages(sum(sizes)), 0, []
    for array, size in zip(arrays, sizes, strict=True):
        copies.append(piece[at : at + array.nbytes].view(array.dtype).reshape(array.shape))
        copies[-1][:] = array
        at += size
    return tuple(copies)


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
