"""Smoothed counts: co-occurrence ratios that no missing tuple makes zero (an extension, not in the paper).

The paper's mask removes whatever its corpus never showed, and a rare tuple that it did show looks certain.
Here each conditional leans on the one with a shorter context:

    p(x | context) = (max(c - d, 0) + (k + d N) p(x | context without its first token)) / (C + k)

c counts the tuple, C the tuples with this context and N how many different ones there are; k is the strength
of the shorter context in tokens, d the discount taken off every count (absolute discounting, interpolated,
with a Dirichlet prior). The last resort is p(x) = (c(x) + 1) / (tokens + vocabulary). With much evidence the
ratios are those of the table, without any they are 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamo.common.validation import number, parse_json, short_repr
from dynamo.cooccurrence.counting import count_tuples
from dynamo.cooccurrence.trie import Level, require

STRENGTH, DISCOUNT = 30.0, 0.75  # of a table that was never fitted
STRENGTHS = np.geomspace(0.1, 1e4, 31)
DISCOUNTS = np.linspace(0.0, 0.95, 20)
CHUNK_TOKENS = 2**21


@dataclass(frozen=True)
class Smoothing:
    """Strengths k (0 or more) and discounts d (0 to 1), one for each order from 2 on."""

    strengths: tuple[float, ...]
    discounts: tuple[float, ...]

    @classmethod
    def default(cls, order: int) -> Smoothing:
        return cls((STRENGTH,) * (order - 1), (DISCOUNT,) * (order - 1))

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str, order: int) -> Smoothing:
        """Raises ValueError for anything that `to_text` does not write for tables of this order."""
        fields = parse_json(text)
        require(isinstance(fields, dict), "smoothing is not an object")
        own = []
        for name, most in (("strengths", 1e12), ("discounts", 1.0)):
            values = fields.get(name)
            holds = isinstance(values, list) and len(values) == order - 1
            require(holds, f"smoothing: {name} for order {order}: {short_repr(values)}")
            own.append(tuple(number(name, value, 0, most) for value in values))
        return cls(*own)


class SmoothedCounts:
    """Ratios p(x | tokens before) / p(x) over a table's counts. Threads may share one."""

    def __init__(self, unigrams: np.ndarray, levels: Sequence[Level], smoothing: Smoothing):
        self._p = (unigrams + 1.0) / (unigrams.sum() + len(unigrams))
        self._levels, self._smoothing = levels, smoothing
        self._sums = [_sums(level) for level in levels]

    def ratios(self, before: np.ndarray, head: np.ndarray) -> np.ndarray:
        """before (n, j) tokens, j from 1 to the table's order - 1; head (k,) distinct tokens: (n, k)."""
        n, j = before.shape
        if j == 0:
            return np.ones((n, len(head)))
        shorter, inverse = np.unique(before[:, 1:], axis=0, return_inverse=True)
        ratios = self.ratios(shorter, head)[inverse.ravel()]  # (n, k)
        places = _find(self._levels, before)
        total, fans = _context(self._levels[j - 1], self._sums[j - 1], places)
        known = np.flatnonzero(total)
        if not len(known):
            return ratios
        strength, discount = self._smoothing.strengths[j - 1], self._smoothing.discounts[j - 1]
        ratios[known] *= ((strength + discount * fans[known]) / (total[known] + strength))[:, None]
        inside = np.flatnonzero((head >= 0) & (head < len(self._p)))
        rows, ranks, children = self._levels[j - 1].extend(places[known], head[inside])
        rows, ranks = known[rows], inside[ranks]
        evidence = (self._levels[j - 1].counts[children] - discount) / (total[rows] + strength)
        ratios[rows, ranks] += evidence / self._p[head[ranks]]
        return ratios


def fit(unigrams: np.ndarray, levels: Sequence[Level], blocks: Iterable[Any]) -> Smoothing:
    """Strengths and discounts with the largest likelihood of held-out blocks, each a document of token ids.

    Order by order, the shorter contexts' first. Raises ValueError where the blocks hold no tuple of an order,
    and for ids outside the table's vocabulary.
    """
    vocab, order = len(unigrams), len(levels) + 1
    p = (unigrams + 1.0) / (unigrams.sum() + vocab)
    sums = [_sums(level) for level in levels]
    _, held_out = count_tuples(blocks, order, 1, vocab, False, CHUNK_TOKENS)
    strengths: list[float] = []
    discounts: list[float] = []

    def parts(ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of tuples (n, m): their counts, their contexts' and the probability without the first token."""
        j = ids.shape[1] - 1
        places = _find(levels, ids[:, :-1])
        total, fans = _context(levels[j - 1], sums[j - 1], places)
        found = levels[j - 1].find(places, ids[:, -1])
        counts = np.zeros(len(ids))
        counts[found >= 0] = levels[j - 1].counts[found[found >= 0]]
        return counts, total, fans, p[ids[:, 1]] if j == 1 else conditional(ids[:, 1:])

    def conditional(ids: np.ndarray) -> np.ndarray:
        m = ids.shape[1] - 2
        return _smoothed(*parts(ids), strengths[m], discounts[m])

    ids = np.arange(vocab)[:, None]
    for m, level in enumerate(held_out, start=2):
        ids = np.column_stack([ids.repeat(level.fans, axis=0), level.last]).astype(np.int64)
        if not len(ids):
            raise ValueError(f"held-out blocks: none has {m} tokens; give more text")
        own = parts(ids)
        grid = [(float(k), float(d)) for k in STRENGTHS for d in DISCOUNTS]
        best = max(grid, key=lambda pair: float(level.counts @ np.log(_smoothed(*own, *pair))))
        strengths.append(best[0])
        discounts.append(best[1])
    return Smoothing(tuple(strengths), tuple(discounts))


def _smoothed(
    counts: np.ndarray, total: np.ndarray, fans: np.ndarray, shorter: np.ndarray, k: float, d: float
) -> np.ndarray:
    return (np.maximum(counts - d, 0.0) + (k + d * fans) * shorter) / (total + k)


def _sums(level: Level) -> np.ndarray:
    """Counts of all children of each parent: (parents,)."""
    upto = np.append(0.0, level.counts.cumsum(dtype=np.float64))
    return upto[level.starts[1:]] - upto[level.starts[:-1]]


def _find(levels: Sequence[Level], tokens: np.ndarray) -> np.ndarray:
    """Where tuples (n, j) stand in their order, -1 where they are not in the table: (n,)."""
    places = np.where((tokens[:, 0] >= 0) & (tokens[:, 0] < levels[0].vocab_size), tokens[:, 0], -1)
    for level, column in zip(levels, tokens.T[1:], strict=False):
        places = level.find(places, column)
    return places


def _context(level: Level, sums: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of contexts by place: how often something follows them, and how many different tokens; 0 at -1."""
    total, fans = np.zeros(len(places)), np.zeros(len(places))
    known = places[places >= 0]
    total[places >= 0] = sums[known]
    fans[places >= 0] = level.starts[known + 1] - level.starts[known]
    return total, fans
