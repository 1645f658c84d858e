"""One order of a joint, from candidates to the cells that may be drawn: mask, thresholds, penalty.

The compiled loops do it where they can (`dynamo.kernels`), numpy where they cannot, with the same result. Why
an order is given up is part of that result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamo import kernels
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import joint
from dynamo.sampling.options import MAX_ORDER, SamplingOptions
from dynamo.sampling.records import BackOff, Joint

MAX_CELLS = 2**22
HEADS = np.arange(MAX_ORDER)
OK, MASK, KEPT_MASS, THRESHOLD, PENALTY, CROWDED = range(6)  # as the loops number what becomes of an order
REFUSALS = ("", "mask", "kept_mass", "threshold", "penalty")
ROUNDING = 1e-12  # by so much a mask that keeps everything may seem to keep less


class Context:
    """Which tokens a lane has seen, for the repetition penalty."""

    def __init__(self, vocab_size: int, special_ids: NDArray[np.integer] | tuple[int, ...] = ()):
        self.seen = np.zeros(vocab_size, dtype=bool)
        self.special = np.zeros(vocab_size, dtype=bool)
        self.special[[i for i in special_ids if 0 <= i < vocab_size]] = True

    def add(self, tokens: Any) -> None:
        self.seen[tokens] = True

    def repeating(self, ids: NDArray[np.integer], chunk: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Which of these tokens (n,) would repeat one of the context or of the chunk before them."""
        repeats = self.seen.take(ids)
        for token in chunk:
            repeats |= ids == token
        return repeats & ~self.special.take(ids)


class OrderResult(NamedTuple):
    """What one order came to: either cells to draw from or the reason there are none."""

    joint: Joint
    kept_mass: float
    backoff: BackOff | None = None
    ranks: NDArray[np.intp] | None = None
    weights: NDArray[np.float64] | None = None


def try_order(
    ids: NDArray[np.int64],
    f: NDArray[np.float64],
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> OrderResult:
    """Try the order m of 2 or more that candidates ids (m, k) with probabilities f (m, k) are of."""
    order, k = ids.shape
    limit = float(options.threshold) ** (order - 1)
    above = 0.0 if options.adaptive_first else limit
    if options.mask_strength == 0:
        table = None
    if table is None:
        _require_few_cells(k, order, above)
    loops = kernels.loops() if k <= kernels.MOST_CANDIDATES else None
    if loops is None:
        cells, values, kept_mass = _found(ids, f, table, above, options)
        in_rank_order = partial(tuple, (cells, values))
        decided = _survivors(cells, values, kept_mass, ids, limit, context, options)
    else:
        if table is None:
            (cells, values), kept_mass = loops.product_above(f, above), 1.0
        else:
            cells, values, kept_mass = loops.masked_joint(
                ids, f, *table.trie(order), float(options.mask_strength)
            )
        in_rank_order = partial(joint.in_rank_order, cells, values, order, k)
        decided = loops.survivors(
            cells,
            values,
            ids,
            kept_mass,
            (limit, float(options.min_kept_mass - ROUNDING)),
            (bool(options.adaptive), bool(options.adaptive_first), int(options.blur)),
            (context.seen, context.special, float(options.repetition_penalty)),
        )
        if decided[0] == CROWDED:
            decided = _survivors(*in_rank_order(), kept_mass, ids, limit, context, options)
    outcome, best, ranks, weights = decided
    seen = Joint(ids, f) if table is None else Joint.deferred(ids, f, in_rank_order)
    if outcome != OK:
        return OrderResult(seen, kept_mass, BackOff(order, REFUSALS[outcome], best, limit))
    return OrderResult(seen, kept_mass, None, ranks, weights)


def _found(
    ids: NDArray[np.int64],
    f: NDArray[np.float64],
    table: CooccurrenceTable | None,
    above: float,
    options: SamplingOptions,
) -> tuple[NDArray[np.intp], NDArray[np.float64], float]:
    """Cells that the mask leaves, or of the plain product above a value: ranks (cells, m) in their order,
    values (cells,), and the mass that was kept.
    """
    if table is None:
        ranks = joint.product_cells(f, above)
        return ranks, joint.product(f, ranks), 1.0
    ranks, ratios = table.candidates(list(ids))
    return ranks, *joint.masked(joint.product(f, ranks), ratios, options.mask_strength)


def _survivors(
    ranks: NDArray[np.intp],
    values: NDArray[np.float64],
    kept_mass: float,
    ids: NDArray[np.int64],
    limit: float,
    context: Context,
    options: SamplingOptions,
) -> tuple[int, float, NDArray[np.intp] | None, NDArray[np.float64] | None]:
    """What thresholds and penalty leave of an order's cells in rank order, as `kernels.thresholds.survivors`:
    outcome, best value, ranks and weights.
    """
    best = float(values.max(initial=0.0))
    if best <= 0.0:
        return MASK, 0.0, None, None
    if kept_mass < options.min_kept_mass - ROUNDING:
        return KEPT_MASS, best, None, None
    ranks, left = _above_thresholds(ranks, values, ids.shape[1], limit, options)
    if not len(left):
        return THRESHOLD, best, None, None
    weights = penalised(left, ids[HEADS[: len(ids)], ranks], context, options)
    heaviest = float(weights.max())
    return (OK, best, ranks, weights) if heaviest > limit else (PENALTY, heaviest, None, None)


def _require_few_cells(k: int, order: int, above: float) -> None:
    cells = k**order
    if above == 0 and cells > MAX_CELLS:
        raise ValueError(
            f"top_k: {k} candidates for each of {order} tokens make a grid of {int(cells):,} cells; without "
            f"a mask and a threshold at most {MAX_CELLS:,} are computed: lower top_k or max_order, or raise "
            "threshold"
        )


def _above_thresholds(
    ranks: NDArray[np.intp],
    values: NDArray[np.float64],
    k: int,
    limit: float,
    options: SamplingOptions,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which of the cells survive: ranks (cells, m) and values (cells,)."""
    keep = values > limit
    if options.adaptive and options.adaptive_first:
        keep &= joint.adaptive_keep(ranks, values, k, options.blur)
    ranks, values = ranks[keep], values[keep]
    if options.adaptive and not options.adaptive_first:
        keep = joint.adaptive_keep(ranks, values, k, options.blur)
        ranks, values = ranks[keep], values[keep]
    return ranks, values


def penalised(
    values: NDArray[np.float64], tokens: NDArray[np.integer], context: Context, options: SamplingOptions
) -> NDArray[np.float64]:
    """Values (cells,) divided by the penalty once for each repeating token of the cell, (cells, order)."""
    penalty = options.repetition_penalty
    if penalty == 1.0:
        return values
    return values / penalty ** joint.repetitions(tokens, context.seen, context.special)


def penalised_next(
    values: NDArray[np.float64],
    ids: NDArray[np.integer],
    chunk: Sequence[int],
    context: Context,
    options: SamplingOptions,
) -> NDArray[np.float64]:
    """Values (n,) of tokens (n,) that may follow the chunk, divided by the penalty where they repeat."""
    penalty, loops = options.repetition_penalty, kernels.loops()
    if loops is not None:
        before = np.array(chunk, np.int64)
        return loops.next_token(values, ids, before, context.seen, context.special, float(penalty))
    return values if penalty == 1.0 else values / np.where(context.repeating(ids, chunk), penalty, 1.0)
