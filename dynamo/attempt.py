"""One order of a joint, from candidates to the cells that may be drawn: mask, thresholds, penalty.

The compiled loops do it where they can (`dynamo.kernels`), numpy where they cannot, with the same result. Why
an order is given up is part of that result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamo import joint, kernels
from dynamo.cooccurrence import CooccurrenceTable
from dynamo.sampling_options import MAX_ORDER, SamplingOptions
from dynamo.trace import BackOff, Joint

MAX_CELLS = 2**22
HEADS = np.arange(MAX_ORDER)
REFUSALS = ("", "mask", "kept_mass", "threshold", "penalty")  # by the loops' numbers
CROWDED = len(REFUSALS)  # the blur is left to numpy
FEW = 8  # so many cells are worked through faster one by one


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

    def repeats(self, cell: Sequence[int]) -> int:
        """How many tokens of a cell repeat (`joint.repetitions`, for one cell)."""
        seen, special = self.seen.item, self.special.item
        return sum(
            (seen(token) or token in cell[:place]) and not special(token) for place, token in enumerate(cell)
        )


class Attempt(NamedTuple):
    """What one order came to: either cells to draw from or the reason there are none."""

    joint: Joint
    kept_mass: float
    backoff: BackOff | None = None
    ranks: NDArray[np.intp] | None = None
    weights: NDArray[np.float64] | None = None


def attempt(
    ids: NDArray[np.int64],
    f: NDArray[np.float64],
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> Attempt:
    """Try the order m of 2 or more that candidates ids (m, k) with probabilities f (m, k) are of."""
    loops = kernels.loops() if ids.shape[1] <= kernels.MOST_CANDIDATES else None
    if loops is not None and (table is None or hasattr(table, "trie")):
        return _in_loops(loops, ids, f, context, table, options)
    return _in_numpy(ids, f, context, table, options)


def _in_loops(
    loops: kernels.Loops,
    ids: NDArray[np.int64],
    f: NDArray[np.float64],
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> Attempt:
    order, k = ids.shape
    limit = float(options.threshold) ** (order - 1)
    if table is not None and options.mask_strength > 0:
        cells, values, kept_mass = loops.masked_joint(
            ids, f, *table.trie(order), float(options.mask_strength)
        )
        seen = Joint.deferred(
            ids, f, lambda: joint.in_rank_order(joint.ranks_of(cells, order, k).T, values, k)
        )
    else:
        above = 0.0 if options.adaptive_first else limit
        _require_few_cells(k, order, above)
        cells, values = loops.product_above(f, above)
        kept_mass, seen = 1.0, Joint(ids, f)
    refusal, best, ranks, weights = loops.survivors(
        cells,
        values,
        ids,
        kept_mass,
        limit,
        float(options.min_kept_mass),
        bool(options.adaptive),
        bool(options.adaptive_first),
        int(options.blur),
        context.seen,
        context.special,
        float(options.repetition_penalty),
    )
    if refusal == CROWDED:
        return _decided(
            seen, joint.ranks_of(cells, order, k).T, values, kept_mass, ids, limit, context, options
        )
    if refusal:
        return Attempt(seen, kept_mass, BackOff(order, REFUSALS[refusal], best, limit))
    return Attempt(seen, kept_mass, None, ranks, weights)


def _in_numpy(
    ids: NDArray[np.int64],
    f: NDArray[np.float64],
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> Attempt:
    order, k = ids.shape
    limit = options.threshold ** (order - 1)
    if table is not None and options.mask_strength > 0:
        columns, ratios = _seen_cells(table, ids)
        values, kept_mass = joint.masked(joint.product_of_columns(f, columns), ratios, options.mask_strength)
        seen = Joint.deferred(ids, f, lambda: joint.in_rank_order(columns, values, k))
    else:
        above = 0.0 if options.adaptive_first else limit
        _require_few_cells(k, order, above)
        columns = joint.product_cells(f, above).T
        values, kept_mass = joint.product_of_columns(f, columns), 1.0
        seen = Joint(ids, f)
    return _decided(seen, columns, values, kept_mass, ids, limit, context, options)


def _decided(
    seen: Joint,
    columns: Sequence[NDArray[np.integer]],
    values: NDArray[np.float64],
    kept_mass: float,
    ids: NDArray[np.int64],
    limit: float,
    context: Context,
    options: SamplingOptions,
) -> Attempt:
    """What thresholds and penalty leave of an order's cells."""
    order, k = ids.shape

    def refused(reason: str, best: float) -> Attempt:
        return Attempt(seen, kept_mass, BackOff(order, reason, best, limit))

    best = float(np.maximum.reduce(values)) if len(values) else 0.0
    if best <= 0.0:
        return refused("mask", 0.0)
    if kept_mass < options.min_kept_mass:
        return refused("kept_mass", best)
    ranks, left = _above_thresholds(columns, values, k, limit, options)
    if not len(left):
        return refused("threshold", best)
    weights = penalised(left, ids[HEADS[:order], ranks], context, options)
    heaviest = float(np.maximum.reduce(weights))
    if not heaviest > limit:
        return refused("penalty", heaviest)
    return Attempt(seen, kept_mass, None, ranks, weights)


def _seen_cells(
    table: CooccurrenceTable, ids: NDArray[np.integer]
) -> tuple[Sequence[NDArray[np.integer]], NDArray[np.float64]]:
    """Columns of ranks and ratios, in any order: a table may know a cheaper one than that of the ranks."""
    if hasattr(table, "cells"):
        return table.cells(ids)
    ranks, ratios = table.candidates(list(ids))
    return ranks.T, ratios


def _require_few_cells(k: int, order: int, above: float) -> None:
    cells = k**order
    if above == 0 and cells > MAX_CELLS:
        raise ValueError(
            f"top_k: {k} candidates for each of {order} tokens make a grid of {int(cells):,} cells; without "
            f"a mask and a threshold at most {MAX_CELLS:,} are computed: lower top_k or max_order, or raise "
            "threshold"
        )


def _above_thresholds(
    columns: Sequence[NDArray[np.integer]],
    values: NDArray[np.float64],
    k: int,
    limit: float,
    options: SamplingOptions,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Surviving cells in rank order, ranks (cells, m), and their values (cells,)."""
    if options.adaptive and options.adaptive_first:
        ranks, values = joint.in_rank_order(columns, values, k)
        keep = joint.adaptive_keep(ranks, values, k, options.blur)
        columns, values = ranks[keep].T, values[keep]
    keep = (values > limit).nonzero()[0]
    if len(keep) == 1:  # nothing to order, and the adaptive stage keeps a lone cell
        return np.array([[column.item(keep[0]) for column in columns]], dtype=np.intp), values.take(keep)
    ranks, values = joint.in_rank_order([column.take(keep) for column in columns], values.take(keep), k)
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
    if len(values) <= FEW:
        return values / [penalty ** context.repeats(cell) for cell in tokens.tolist()]
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
