"""Choosing tokens from the heads' logits: Algorithm 1 of the paper, one step at a time.

`choose` tries the highest order first: the product of the heads' top k, the co-occurrence mask or another
correction (`dynamo.sampling.corrections`), the static and the adaptive threshold, the repetition penalty. It
draws one cell if any is left above the threshold, otherwise it backs off to the order below; order 1 draws
from the first head alone. Every refusal is recorded with its reason.

The compiled loops do the work where they can (`dynamo.kernels`), numpy where they cannot, with the same
result. This module knows no clock, cache or model; randomness comes in as one uniform per step. How gaps in
the paper are read is documented with the options' defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamo import kernels
from dynamo.common.laps import lap
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import joint
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.corrections import correction_of
from dynamo.sampling.options import MAX_ORDER, SamplingOptions
from dynamo.sampling.records import BackOff, Joint

HEADS = np.arange(MAX_ORDER)
OK, MASK, KEPT_MASS, THRESHOLD, PENALTY, CROWDED = range(6)  # outcomes of an order, numbered as in the loops
REASONS = ("", "mask", "kept_mass", "threshold", "penalty")
ROUNDING = 1e-12  # a mask that keeps everything may seem to keep less by this much


class Context:
    """Which tokens a text holds so far, for the repetition penalty. special_ids: never penalised."""

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
    """The outcome of one order: either `backoff`, or the surviving cells.

    kept_mass: share of the plain product that the mask kept; ranks (cells, m), in rank order, and weights
    (cells,) are those of the survivors after thresholds and penalty.
    """

    joint: Joint
    kept_mass: float
    backoff: BackOff | None = None
    ranks: NDArray[np.intp] | None = None
    weights: NDArray[np.float64] | None = None


class Decision(NamedTuple):
    """One step's outcome: tokens, why higher orders were refused, and the cells it could have drawn.

    ranks (cells, order) and weights (cells,), in rank order, are those of the emitted order after thresholds
    and penalty; ids (heads, k) are the candidates; probabilities: of each token under its own head;
    kept_mass and joint are those of the last order of 2 or more that was tried, None where none was.
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
        """Token ids of the cells that could have been drawn: (cells, order)."""
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
        last = try_order(candidates, order, context, table, options)
        lap("joint and mask")
        if last.backoff is None:
            ranks, weights = last.ranks, last.weights
            break
        backoffs.append(last.backoff)
    else:
        ranks, weights = choose_one(candidates, context, options)
    cell = ranks[sample_index(weights, options, uniform)].tolist()  # one rank per token
    # Lists, not generators: this runs once a pass, and `tuple` is faster on a list.
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


def choose_one(
    candidates: Candidates, context: Context, options: SamplingOptions
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Order 1: ranks (k, 1) and weights (k,) of the first head after the penalty, no mask, no threshold."""
    ids, f = candidates.ids[0], candidates.f[0]  # (k,)
    return np.arange(len(ids))[:, None], penalised_next(f, ids, (), context, options)


def try_order(
    candidates: Candidates,
    order: int,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> OrderResult:
    """Order m of 2 or more, on the first m heads: the cells that may be drawn, or the reason to back off."""
    limit = float(options.threshold) ** (order - 1)  # eps_b^(m-1)
    # The adaptive threshold sees the whole grid where it comes first; otherwise cells below are not needed.
    above = 0.0 if options.adaptive_first else limit
    correction = correction_of(candidates, order, table, options)
    ids, k = correction.ids, correction.ids.shape[1]  # (m, k)
    cells, values, kept_mass = correction.cells(above)  # flat indices into the grid of k^m, in any order
    loops = kernels.loops() if k <= kernels.MOST_CANDIDATES else None
    decided = None
    if loops is not None:
        # numba compiles once for each combination of types: plain floats and bools keep that to one.
        decided = loops.survivors(
            cells,
            values,
            ids,
            kept_mass,
            (limit, float(options.min_kept_mass - ROUNDING)),
            (bool(options.adaptive), bool(options.adaptive_first), int(options.blur)),
            (context.seen, context.special, float(options.repetition_penalty)),
        )
    if decided is None or decided[0] == CROWDED:  # so many cells that numpy blurs the whole grid faster
        ranked = joint.in_rank_order(cells, values, order, k)
        decided = _survivors(*ranked, kept_mass, ids, limit, context, options)
    outcome, best, ranks, weights = decided
    seen = correction.recorded_joint(limit)
    if outcome == MASK and correction.bounded:  # nothing is above the threshold, so no cell was made
        outcome = THRESHOLD
    if outcome != OK:
        at_most = outcome == THRESHOLD and correction.bound > best
        best = max(best, correction.bound) if at_most else best
        return OrderResult(seen, kept_mass, BackOff(order, REASONS[outcome], best, limit, at_most))
    return OrderResult(seen, kept_mass, None, ranks, weights)


def _survivors(
    ranks: NDArray[np.intp],
    values: NDArray[np.float64],
    kept_mass: float,
    ids: NDArray[np.int64],
    limit: float,
    context: Context,
    options: SamplingOptions,
) -> tuple[int, float, NDArray[np.intp] | None, NDArray[np.float64] | None]:
    """`kernels.thresholds.survivors` in numpy: outcome, best value, and the surviving ranks and weights."""
    best = float(values.max(initial=0.0))
    if best <= 0.0:
        return MASK, 0.0, None, None
    if kept_mass < options.min_kept_mass - ROUNDING:
        return KEPT_MASS, best, None, None
    ranks, left = _above_thresholds(ranks, values, ids.shape[1], limit, options)
    if not len(left):
        return THRESHOLD, best, None, None
    tokens = ids[HEADS[: len(ids)], ranks]  # (cells, m)
    weights = _penalised(left, tokens, context, options)
    heaviest = float(weights.max())
    # Cells that the penalty pushes below the threshold stay, as long as one is left above it.
    return (OK, best, ranks, weights) if heaviest > limit else (PENALTY, heaviest, None, None)


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


def _penalised(
    values: NDArray[np.float64], tokens: NDArray[np.integer], context: Context, options: SamplingOptions
) -> NDArray[np.float64]:
    """Values (cells,) divided by the penalty once for each repeating token of the cell, (cells, m)."""
    if options.repetition_penalty == 1.0:
        return values
    return values / options.repetition_penalty ** joint.repetitions(tokens, context.seen, context.special)


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


def sample_index(weights: NDArray[np.float64], options: SamplingOptions, uniform: float) -> int:
    """Which of the cells is drawn: in proportion to the weights, the heaviest at temperature 0."""
    if options.temperature == 0:
        return int(weights.argmax())
    if len(weights) == 1:
        return 0
    loops = kernels.loops()
    return joint.draw(weights, uniform) if loops is None else loops.drawn(weights, uniform)


def warm_up(heads: int, vocab_size: int, table: CooccurrenceTable | None = None) -> None:
    """Compile or load the loops that steps of such a model run, before a step is timed.

    About twenty seconds in a new installation, half a second in every later process (numba caches on disk).
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
                try_order(candidates, 2, context, each, options)
            if table is not None:
                chunk, head = candidates.ids[0, :1], (candidates.ids[1], candidates.f[1])
                loops.next_candidates(chunk, *head, *table.trie(2), 1.0)
