"""Choosing tokens from the heads' logits: Algorithm 1 of the paper, one step at a time.

`choose` tries the highest order first: top-k of each head, their product, the co-occurrence mask, the static
and the adaptive threshold, the repetition penalty; it draws one cell if any is left above the threshold, else
backs off to the order below, and at order 1 draws from the first head alone. Every refusal is recorded with
its reason.

The readings of the paper's gaps are the fields' documented defaults. No clock, no cache and no model is known
here; randomness comes in as one uniform per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo import joint
from dynamo.cooccurrence import CooccurrenceTable
from dynamo.options import check_types, option
from dynamo.trace import BackOff, Joint
from dynamo.tuples import counted

MAX_ORDER = 5
MAX_CELLS = 2**22
HEADS = np.arange(MAX_ORDER)
FEW = 8  # so many cells are worked through faster one by one


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen. Defaults are the paper's; names in parentheses are its symbols.

    Raises ValueError naming the option, its range and the value received.
    """

    threshold: float = option(
        0.5, "back-off threshold (eps_b), 0 to 1: 0 always emits all tokens, 1 always one"
    )
    top_k: int = option(50, "candidates of each head (k), 1 or more")
    temperature: float = option(0.7, "softmax temperature, 0 or more; 0 takes the largest cell")
    repetition_penalty: float = option(
        1.1, "divides the probability of repeated tokens, 1 or more; 1 is none"
    )
    mask_strength: float = option(
        1.0, "exponent of the co-occurrence mask (alpha_c), 0 or more; 0 is no mask"
    )
    adaptive: bool = option(True, "adaptive threshold by Otsu's method (AT)")
    blur: int = option(3, "width of the Gaussian blur before Otsu, 3 or 1; 1 is none")
    max_order: int = option(3, f"most tokens of one pass (n), 1 to {MAX_ORDER}")
    min_kept_mass: float = option(0.0, "back off where the mask keeps less of the product than this, 0 to 1")
    adaptive_first: bool = option(False, "adaptive before static threshold (ablation)")
    exact: bool = option(False, "exact mode: verify, so that the text is distributed as the first head's")
    exact_threshold: float = option(
        0.0, "exact mode's threshold for drafts, 0 to 1: 0 drafts freely, 1 drafts nothing"
    )

    def __post_init__(self):
        check_types(self, leave_out=("top_k", "max_order"))
        self._require(
            "threshold",
            0 <= self.threshold <= 1,
            "0 to 1",
            "0.5 is the default; 1 never emits more than one token",
        )
        self._require(
            "top_k", _whole(self.top_k) and self.top_k >= 1, "a whole number, 1 or more", "50 is the default"
        )
        self._require("temperature", 0 <= self.temperature < float("inf"), "0 or more", "0 is greedy")
        penalty = 1 <= self.repetition_penalty < float("inf")
        self._require("repetition_penalty", penalty, "1 or more", "1 is no penalty")
        self._require("mask_strength", 0 <= self.mask_strength < float("inf"), "0 or more", "0 is no mask")
        self._require("blur", self.blur in joint.BLUR, "1 or 3", "1 is no blur")
        orders = _whole(self.max_order) and 1 <= self.max_order <= MAX_ORDER
        self._require("max_order", orders, f"1 to {MAX_ORDER}", "1 emits single tokens")
        self._require("min_kept_mass", 0 <= self.min_kept_mass <= 1, "0 to 1", "0 is the paper's")
        self._require("exact_threshold", 0 <= self.exact_threshold <= 1, "0 to 1", "0 drafts freely")

    def _require(self, name: str, holds: bool, allowed: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {allowed}, got {getattr(self, name)!r} ({remedy})")

    @property
    def highest_order(self) -> int:
        """The largest order that can be drawn: at threshold 1 no joint value is above the threshold."""
        threshold = self.exact_threshold if self.exact else self.threshold
        return 1 if threshold >= 1 else self.max_order


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class Candidates(NamedTuple):
    """The top k of each head: ids (heads, k) and probabilities f (heads, k), by falling probability."""

    ids: NDArray[np.int64]
    f: NDArray[np.float64]


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
    survivors: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def order(self) -> int:
        return len(self.tokens)


class _Attempt(NamedTuple):
    """What one order came to: either cells to draw from or the reason there are none."""

    joint: Joint
    kept_mass: float
    backoff: BackOff | None = None
    ranks: NDArray[np.intp] | None = None
    weights: NDArray[np.float64] | None = None


def top_candidates(logits: Tensor | NDArray[np.floating], options: SamplingOptions) -> Candidates:
    """Top-k of each head and the softmax over the survivors; ties go to the lower id. logits: (heads, vocab).

    Raises ValueError if a head's largest logit is not a finite number.
    """
    logits = logits if isinstance(logits, Tensor) else torch.from_numpy(logits)
    k = min(options.top_k, logits.shape[1])
    # One more than asked for: a tie with the first that is left out must be seen.
    values, indices = torch.topk(logits, min(k + 1, logits.shape[1]))
    best, ids = _on_host(values), _on_host(indices)
    rows = best.tolist()
    if not all(math.isfinite(row[0]) for row in rows):  # NaN counts as the largest
        raise ValueError(
            f"the model's logits are not finite (largest of each head: {[row[0] for row in rows]}); "
            "load it in float32 or bfloat16"
        )
    if any(len(set(row)) < len(row) for row in rows):
        whole = _on_host(logits)
        ids = np.stack([_top_k_of_ties(row, k) for row in whole])
        best = np.take_along_axis(whole, ids, axis=1)
    return Candidates(ids[:, :k], joint.survivors_of_top_k(best[:, :k], options.temperature or 1.0))


def _on_host(values: Tensor) -> NDArray[Any]:
    half = values.is_floating_point() and values.itemsize < 4
    return (values.float() if half else values).numpy(force=True)


def _top_k_of_ties(row: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    kth = np.partition(row, len(row) - k)[len(row) - k]
    # Rising ids, so that the stable sort and the cut leave ties to the lower id.
    ids = np.flatnonzero(row >= kth)
    return ids[np.argsort(-row[ids], kind="stable")[:k]]


def choose(
    candidates: Candidates,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
    uniform: float,
) -> Decision:
    """One step of Algorithm 1. `uniform` in [0, 1) is the step's only randomness; no table means no mask."""
    backoffs: list[BackOff] = []
    last: _Attempt | None = None
    for order in range(min(options.highest_order, len(candidates.ids)), 1, -1):
        last = choose_joint(candidates, order, context, table, options)
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
    return counted(len(ids))[:, None], penalised_next(f, ids, (), context, options)


def choose_joint(
    candidates: Candidates,
    order: int,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
) -> _Attempt:
    """Try one order of 2 or more: cells to draw from, or the reason to back off."""
    ids, f = candidates.ids[:order], candidates.f[:order]
    k = ids.shape[1]
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

    def refused(reason: str, best: float) -> _Attempt:
        return _Attempt(seen, kept_mass, BackOff(order, reason, best, limit))

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
    return _Attempt(seen, kept_mass, None, ranks, weights)


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
    penalty = options.repetition_penalty
    return values if penalty == 1.0 else values / np.where(context.repeating(ids, chunk), penalty, 1.0)


def _drawn(
    candidates: Candidates,
    ranks: NDArray[np.intp],
    weights: NDArray[np.float64],
    options: SamplingOptions,
    uniform: float,
    backoffs: list[BackOff],
    last: _Attempt | None,
) -> Decision:
    heads = HEADS[: ranks.shape[1]]
    cell = ranks[int(weights.argmax()) if options.temperature == 0 else joint.draw(weights, uniform)]
    return Decision(
        tokens=tuple(candidates.ids[heads, cell].tolist()),
        probabilities=tuple(candidates.f[heads, cell].tolist()),
        backoffs=tuple(backoffs),
        kept_mass=None if last is None else last.kept_mass,
        joint=None if last is None else last.joint,
        survivors=candidates.ids[heads, ranks],
        weights=weights,
    )
