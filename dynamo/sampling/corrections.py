"""What corrects the independence of the heads: a joint's factors beyond the first head's probabilities.

    J(x_1 .. x_m) = f_1(x_1) g_2(x_2 | x_1) .. g_m(x_m | x_1 .. x_m-1)

A correction gives the factors g, and only for candidates. The paper's mask is one; the others are ours:

    none         g_n = f_n: the plain product
    table        g_n = f_n M(x_1 .. x_n)^a / M(x_1 .. x_n-1)^a: the co-occurrence mask, the joint normalised
    smoothed     g_n = f_n (p(x_n | x_1 .. x_n-1) / p(x_n))^a of smoothed counts, the joint normalised
    correlator   g_n = p(x_n | text, x_1 .. x_n-1) of the checkpoint's correlator: rows are distributions

Thresholds, back-off, draw, exact mode's drafts and records know this interface and nothing behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from dynamo import kernels
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import joint
from dynamo.sampling.candidates import Candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import Cell, Joint

MAX_CELLS = 2**22
SHOWN = 1e-3  # of a joint whose cells are found by branch and bound, larger ones are recorded


class Correction(ABC):
    """A pass's candidates of m heads and how likely each is after those of the heads before it.

    name: as in `SamplingOptions.correction`; bounded: factors are conditional probabilities, at most 1, so
    that branches of the joint can be cut; otherwise the joint is normalised to sum 1. bound: the largest
    value that a cell can have which `cells` did not look at.
    """

    name: str
    bounded: bool
    bound = 0.0

    def __init__(self, candidates: Candidates, order: int):
        self.ids, self.f = candidates.ids[:order], candidates.f[:order]  # (m, k)

    @abstractmethod
    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """g of the next head's candidates after `tokens` (n, j), 1 <= j < m: (n, k)."""

    def cells(self, above: float) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        """Cells that may exceed `above`, all of them where it is 0: flat indices into the grid of k^m, in any
        order, values, and the share of the plain product's mass that was kept.
        """
        if self.bounded:
            return *self._branches(above), 1.0
        cells, values = self._branches(0.0)
        total = values.sum()
        values = values / total if total > 0 else values
        kept = values >= min(above, values.max(initial=0.0))
        return cells[kept], values[kept], 1.0

    def conditional(self, tokens: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        """What may follow `tokens`: ids (n,), their probabilities (n,), and the share of the head's own mass
        that they kept. They sum to 1, or where factors are bounded to what the candidates hold.
        """
        ids, g = self.ids[len(tokens)], self.factors(np.array([tokens]))[0]
        possible = g > 0
        ids, g = ids[possible], g[possible]
        return ids, g if self.bounded else g / g.sum(), 1.0

    def recorded_joint(self, above: float = 0.0) -> Joint:
        """The joint as it is recorded, its cells computed on first access; those larger than `above` are sure
        to be there.
        """

        def made() -> tuple[NDArray[np.intp], NDArray[np.float64], None]:
            cells, values, _ = self.cells(0.0)
            return *joint.in_rank_order(cells, values, *self.ids.shape), None

        return Joint.deferred(self.ids, self.f, made, self.name)

    def largest(self) -> Cell | None:
        """The cell of the largest value, the first by rank on ties; None where there is no cell."""
        cells, values, _ = self.cells(0.0)
        if not values.any():
            return None
        ranks = joint.ranks_of(cells[values == values.max()].min(keepdims=True), *self.ids.shape)[0]
        tokens = self.ids[np.arange(len(ranks)), ranks]
        return Cell(tuple(tokens.tolist()), float(values.max()))

    def _branches(self, above: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Flat cells above `above`, found by extending only the beginnings above it: a factor is at most 1.

        `bound` is then the largest value that any other cell can have.
        """
        order, k = self.ids.shape
        require_few_cells(k, order, above)
        cells, values, self.bound = np.arange(k), self.f[0], 0.0
        for head in range(1, order + 1):
            kept = values > above
            self.bound = max(self.bound, values[~kept].max(initial=0.0))
            cells, values = cells[kept], values[kept]
            if head < order:
                g = self.factors(self.ids[np.arange(head), joint.ranks_of(cells, head, k)])  # (n, k)
                values = (values[:, None] * g).ravel()
                cells = (cells[:, None] * k + np.arange(k)).ravel()
        return cells, values


class Independent(Correction):
    """The plain product of the heads."""

    name, bounded = "none", True

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.broadcast_to(self.f[tokens.shape[1]], (len(tokens), self.f.shape[1]))

    def cells(self, above: float) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        order, k = self.ids.shape
        require_few_cells(k, order, above)
        loops = _loops(k)
        if loops is not None:
            return *loops.product_above(self.f, above), 1.0
        ranks = joint.product_cells(self.f, above)
        return joint.cells_of(ranks, k), joint.product(self.f, ranks), 1.0

    def recorded_joint(self, above: float = 0.0) -> Joint:
        return Joint(self.ids, self.f, correction=self.name)


class Counted(Correction):
    """The paper's mask: ratios of the co-occurrence table to the power `strength`; 0 for an unseen tuple."""

    name, bounded = "table", False

    def __init__(self, candidates: Candidates, order: int, table: CooccurrenceTable, strength: float):
        super().__init__(candidates, order)
        self._table, self._strength = table, strength

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        n, j = tokens.shape
        head = self.ids[j]
        ids = np.empty((n, len(head), j + 1), np.int64)
        ids[..., :j], ids[..., j] = tokens[:, None], head
        before = self._table.ratio(tokens) if j > 1 else np.ones(n)
        ratios = self._table.ratio(ids)
        ratios = np.divide(ratios, before[:, None], out=np.zeros_like(ratios), where=before[:, None] > 0)
        return self.f[j] * ratios**self._strength

    def cells(self, above: float) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        """All that the mask left, whatever `above` is."""
        order, k = self.ids.shape
        loops = _loops(k)
        if loops is not None:
            return loops.masked_joint(self.ids, self.f, *self._table.trie(order), self._strength)
        ranks, ratios = self._table.candidates(list(self.ids))
        values, kept_mass = joint.masked(joint.product(self.f, ranks), ratios, self._strength)
        return joint.cells_of(ranks, k), values, kept_mass

    def conditional(self, tokens: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
        head, f = self.ids[len(tokens)], self.f[len(tokens)]
        loops = kernels.loops()
        if loops is not None:
            trie = self._table.trie(len(tokens) + 1)
            ids, g = loops.next_candidates(np.array(tokens), head, f, *trie, self._strength)
        else:
            ranks, ratios = self._table.candidates([*np.array(tokens)[:, None], head])
            ids, g = head[ranks[:, -1]], joint.masked(f[ranks[:, -1]], ratios, self._strength)[0]
            ids, g = ids[g > 0], g[g > 0]
        return ids, g, float(f[np.isin(head, ids)].sum())


class Smoothed(Correction):
    """Smoothed counts (`dynamo.cooccurrence.smoothing`): the mask's ratios, none of them zero."""

    name, bounded = "smoothed", False

    def __init__(self, candidates: Candidates, order: int, table: CooccurrenceTable, strength: float):
        super().__init__(candidates, order)
        self._counts, self._strength = table.smoothed, strength

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        j = tokens.shape[1]
        return self.f[j] * self._counts.ratios(tokens, self.ids[j]) ** self._strength


class Correlated(Correction):
    """The checkpoint's correlator (`dynamo.sampling.correlated`)."""

    name, bounded = "correlator", True

    def __init__(self, candidates: Candidates, order: int):
        super().__init__(candidates, order)
        self._given = candidates.given
        assert self._given is not None, "the correlator was not attached to these candidates"

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._given.factors(tokens)

    def recorded_joint(self, above: float = 0.0) -> Joint:
        """Its largest cells alone: all of them would take longer than the pass did."""
        order, floor = len(self.ids), min(above or SHOWN, SHOWN)

        def made() -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
            cells, values, _ = self.cells(floor)
            ranked = joint.in_rank_order(cells, values, *self.ids.shape)
            return *ranked, self.factors(self.ids[0, :, None])

        later = self._given.later(order)
        return Joint.deferred(self.ids, self.f, made, self.name, later=later, floor=floor)


def correction_of(
    candidates: Candidates, order: int, table: CooccurrenceTable | None, options: SamplingOptions
) -> Correction:
    """What `options` ask for on the first `order` heads; without a table, "table" means no mask."""
    if table is not None and options.mask_strength > 0 and options.correction in ("table", "smoothed"):
        kind = Counted if options.correction == "table" else Smoothed
        return kind(candidates, order, table, float(options.mask_strength))
    return (
        Correlated(candidates, order)
        if options.correction == "correlator"
        else Independent(candidates, order)
    )


def require_few_cells(k: int, order: int, above: float) -> None:
    cells = k**order
    if above == 0 and cells > MAX_CELLS:
        raise ValueError(
            f"top_k: {k} candidates for each of {order} tokens make a grid of {int(cells):,} cells; without "
            f"a mask and a threshold at most {MAX_CELLS:,} are computed: lower top_k or max_order, or raise "
            "threshold"
        )


def _loops(k: int) -> kernels.Loops | None:
    return kernels.loops() if k <= kernels.MOST_CANDIDATES else None
