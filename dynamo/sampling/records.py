"""What one forward pass did, as a value.

The engine yields one `StepRecord` per forward pass; text, panes, charts, benchmarks and files are folds over
that stream (`dynamo.trace`). A record keeps the joint distribution of its decision in sparse form, so that
looking at it (the 64 largest cells, a heatmap) costs nothing during decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dynamo.sampling.joint import product, ranks_within

RECORDED_CELLS = 64


class BackOff(NamedTuple):
    """One order that was tried and given up.

    order: the order m; reason: "mask" (no candidate tuple occurs in the table), "kept_mass" (too little of
    the product survived the mask), "threshold" (no cell above it) or "penalty" (none left above it after the
    repetition penalty); best: the largest joint value; threshold: eps_b ** (m - 1); at_most: `best` is only
    a bound, as a correlator looks at no cell that cannot exceed the threshold.
    """

    order: int
    reason: str
    best: float
    threshold: float
    at_most: bool = False


class Cell(NamedTuple):
    """One candidate chunk: its token ids and its normalised joint value before thresholds."""

    tokens: tuple[int, ...]
    value: float


class Joint:
    """The joint distribution of the last order tried, after the mask and before the thresholds.

    candidates: (m, k) token ids of each head, by falling probability; probabilities: (m, k) of the same;
    ranks: (cells, m) positions in `candidates` of the cells that the mask left; values: (cells,) their
    normalised values. `ranks` is None without a mask: the joint is then the plain product. correction: what
    made it other than that, as `SamplingOptions` names it.

    Of a correlator's joint only cells above `floor` are listed; given: (k, k) the probability of each second
    token after each first, later: the share that the candidates hold of all tokens after these two.
    """

    def __init__(
        self,
        candidates: np.ndarray,
        probabilities: np.ndarray,
        ranks: np.ndarray | None = None,
        values: np.ndarray | None = None,
        given: np.ndarray | None = None,
        correction: str = "table",
        later: float = 1.0,
        floor: float = 0.0,
    ):
        self.candidates = candidates
        self.probabilities = probabilities
        self.correction = correction
        self.later = later
        self.floor = floor
        self._cells = lambda: (ranks, values, given)

    @classmethod
    def deferred(
        cls,
        candidates: np.ndarray,
        probabilities: np.ndarray,
        cells: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray | None]],
        correction: str = "table",
        **named: float,
    ) -> Joint:
        """A joint whose ranks, values and `given` are computed on first use."""
        joint = cls(candidates, probabilities, correction=correction, **named)
        joint._cells = cells
        return joint

    def __reduce__(self) -> tuple:
        """Pickled with its values, as a worker process sends it to the page's."""
        parts = self.candidates, self.probabilities, *self._made
        return Joint, (*parts, self.correction, self.later, self.floor)

    @cached_property
    def _made(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self._cells()

    @property
    def ranks(self) -> np.ndarray | None:
        return self._made[0]

    @property
    def values(self) -> np.ndarray | None:
        return self._made[1]

    @property
    def given(self) -> np.ndarray | None:
        return self._made[2]

    @property
    def order(self) -> int:
        return len(self.candidates)

    @property
    def best(self) -> float:
        """The largest joint value; 0 if the mask left none, or none above `floor`."""
        if self.ranks is None:
            return float(self.probabilities[:, 0].prod())
        return float(self.values.max()) if len(self.values) else 0.0

    def grid(self, size: int) -> np.ndarray:
        """Joint value of the first two tokens, later ones summed out: (size, size), a row per first token."""
        size = min(size, self.candidates.shape[1])
        if self.ranks is None:
            return np.outer(self.probabilities[0, :size], self.probabilities[1, :size])
        if self.given is not None:
            return self.probabilities[0, :size, None] * self.given[:size, :size] * self.later
        shown = (self.ranks[:, :2] < size).all(axis=1)
        grid = np.zeros((size, size))
        np.add.at(grid, tuple(self.ranks[shown, :2].T), self.values[shown])
        return grid

    def third(self, first: int, second: int, count: int = 5) -> list[tuple[int, float]]:
        """The likeliest third tokens given the ranks of the first two: (token id, share), largest first."""
        if self.order < 3:
            return []
        if self.ranks is None:
            ids, weights = self.candidates[2], self.probabilities[2]
        else:
            here = (self.ranks[:, 0] == first) & (self.ranks[:, 1] == second)
            ids, weights = self.candidates[2][self.ranks[here, 2]], self.values[here]
        total = float(weights.sum()) or 1.0
        if self.given is not None:  # the cells that are not listed count, too
            total = float(self.probabilities[0, first] * self.given[first, second]) * self.later or 1.0
        best = np.argsort(-weights, kind="stable")[:count]
        return [(int(ids[i]), float(weights[i]) / total) for i in best]

    def top(self, count: int = RECORDED_CELLS) -> tuple[Cell, ...]:
        """The `count` largest cells, ties in rank order."""
        ranks, values = self.ranks, self.values
        if ranks is None:
            ranks, values = largest_of_product(self.probabilities, count)
        best = np.argsort(-values, kind="stable")[:count]
        heads = np.arange(self.order)
        return tuple(Cell(tuple(self.candidates[heads, ranks[i]].tolist()), float(values[i])) for i in best)


def largest_of_product(probabilities: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells among which the `count` largest of a product of sorted distributions must lie, row-major.

    A cell of ranks (r1 .. rm) has at least (r1 + 1) .. (rm + 1) - 1 cells that are as large or larger.
    """
    order, size = probabilities.shape
    ranks = ranks_within(size, order, count)
    return ranks, product(probabilities, ranks)


@dataclass(frozen=True, eq=False)
class StepRecord:
    """One forward pass.

    tokens: what it emitted, at least one, an end-of-text token included; order: how many tokens it decided
    on (`len(tokens)` unless an end cut the chunk); probabilities: of each emitted token under its own head,
    after top-k and temperature; backoffs: orders given up on the way; kept_mass: share of the plain product
    that survived the mask at the last joint order tried, None if no joint was built; seconds: forward pass,
    sampler and copying the tokens to the host; prefill: whether the pass read the prompt.

    In exact mode `tokens` are the previous pass's drafts that this pass accepted and the token that it drew
    itself; rejected: the other drafts of the previous pass; refused: probability of the first of these under
    the first head and as a draft, p and q of `verify`; drafted: what this pass proposes after its last token,
    for the next pass to verify; joint: what the drafts were drawn from. There are no back-offs.

    anchored: the first token was drawn as a base draws it and the chunk grown from there; joint is then of
    the last order tried, and `backoffs` holds the order at which growing ended.
    """

    tokens: tuple[int, ...]
    order: int
    seconds: float
    prefill: bool = False
    probabilities: tuple[float, ...] = ()
    backoffs: tuple[BackOff, ...] = ()
    kept_mass: float | None = None
    joint: Joint | None = field(default=None, repr=False)
    drafted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    refused: tuple[float, float] | None = None
    exact: bool = False
    anchored: bool = False

    @property
    def drawn(self) -> tuple[int, ...]:
        """The tokens drawn from `joint` that were kept, or its rows; empty if its order was given up."""
        if self.exact:
            return (self.tokens[-1], *self.drafted) if self.drafted else ()
        if self.joint is None:
            return ()
        return self.tokens if self.anchored or self.order == self.joint.order else ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The 64 largest cells of the last order tried, before thresholds."""
        return self.joint.top(RECORDED_CELLS) if self.joint is not None else ()
