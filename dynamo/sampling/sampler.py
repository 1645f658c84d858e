"""Choosing tokens from the heads' logits: Algorithm 1 of the paper, one step at a time.

`choose` tries the highest order first: top-k of each head, their product, the co-occurrence mask, the static
and the adaptive threshold, the repetition penalty; it draws one cell if any is left above the threshold, else
backs off to the order below, and at order 1 draws from the first head alone. Every refusal is recorded with
its reason.

The readings of the paper's gaps are the fields' documented defaults. No clock, no cache and no model is known
here; randomness comes in as one uniform per step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamo import kernels
from dynamo.common.laps import lap
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import joint
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.options import MAX_ORDER, SamplingOptions
from dynamo.sampling.order import HEADS, Context, OrderResult, penalised_next, try_order
from dynamo.sampling.records import BackOff, Joint

__all__ = [
    "MAX_ORDER",
    "Candidates",
    "Context",
    "Decision",
    "SamplingOptions",
    "choose",
    "choose_joint",
    "choose_one",
    "penalised_next",
    "sample_index",
    "top_candidates",
    "warm_up",
]


class Decision(NamedTuple):
    """One step's outcome: tokens, why higher orders were refused, and the cells it could have drawn.

    survivors (cells, order) token ids and weights (cells,), in rank order, are those of the emitted order
    after thresholds and penalty; `joint` is that of the last order tried, None where none was.
    """

    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    backoffs: tuple[BackOff, ...]
    kept_mass: float | None
    joint: Joint | None
    ids: NDArray[np.int64]
    ranks: NDArray[np.intp]
    weights: NDArray[np.float64]

    @property
    def order(self) -> int:
        return len(self.tokens)

    @property
    def survivors(self) -> NDArray[np.int64]:
        return self.ids[HEADS[: self.order], self.ranks]


def choose(
    candidates: Candidates,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
    uniform: float,
) -> Decision:
    """One step of Algorithm 1. `uniform` in [0, 1) is the step's only randomness; no table means no mask."""
    backoffs: list[BackOff] = []
    last: OrderResult | None = None
    for order in range(min(options.highest_order, len(candidates.ids)), 1, -1):
        last = choose_joint(candidates, order, context, table, options)
        lap("joint and mask")
        if last.backoff is None:
            return _drawn(candidates, last.ranks, last.weights, options, uniform, backoffs, last)
        backoffs.append(last.backoff)
    ranks, weights = choose_one(candidates, context, options)
    return _drawn(candidates, ranks, weights, options, uniform, backoffs, last)


def choose_one(
    candidates: Candidates, context: Context, options: SamplingOptions
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Order 1: the first head's survivors after the penalty, without mask or threshold."""
    ids, f = candidates.ids[0], candidates.f[0]
    return np.arange(len(ids))[:, None], penalised_next(f, ids, (), context, options)


def choose_joint(
    candidates: Candidates,
    order: int,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> OrderResult:
    """Try one order of 2 or more: cells to draw from, or the reason to back off."""
    return try_order(candidates.ids[:order], candidates.f[:order], context, table, options)


def _drawn(
    candidates: Candidates,
    ranks: NDArray[np.intp],
    weights: NDArray[np.float64],
    options: SamplingOptions,
    uniform: float,
    backoffs: list[BackOff],
    last: OrderResult | None,
) -> Decision:
    cell = ranks[sample_index(weights, options, uniform)].tolist()
    return Decision(
        tokens=tuple([candidates.ids.item(head, rank) for head, rank in enumerate(cell)]),
        probabilities=tuple([candidates.f.item(head, rank) for head, rank in enumerate(cell)]),
        backoffs=tuple(backoffs),
        kept_mass=None if last is None else last.kept_mass,
        joint=None if last is None else last.joint,
        ids=candidates.ids,
        ranks=ranks,
        weights=weights,
    )


def sample_index(weights: NDArray[np.float64], options: SamplingOptions, uniform: float) -> int:
    """Which of the cells is drawn: in proportion to the weights, the heaviest at temperature 0."""
    if options.temperature == 0:
        return int(weights.argmax())
    if len(weights) == 1:
        return 0
    loops = kernels.loops()
    return joint.draw(weights, uniform) if loops is None else loops.drawn(weights, uniform)


def warm_up(heads: int, vocab_size: int, table: CooccurrenceTable | None = None) -> None:
    """Have compiled, or read from where numba keeps it, what steps of such a model run, before one is timed.

    Some twenty seconds of a processor in a new installation, half of one in every later process.
    """
    loops = kernels.loops()
    if loops is None:
        return
    with kernels.tried():
        options, context = SamplingOptions(threshold=0.0, top_k=2), Context(vocab_size)
        candidates = top_candidates(np.zeros((heads, vocab_size), np.float32), options)
        _, weights = choose_one(candidates, context, options)
        loops.drawn(weights, 0.0)
        if heads > 1:
            for each in {id(table): table, id(None): None}.values():
                choose_joint(candidates, 2, context, each, options)
            if table is not None:
                chunk, head = candidates.ids[0, :1], Candidates(*(each[1] for each in candidates))
                loops.next_candidates(chunk, *head, *table.trie(2), 1.0)
