"""Exact mode: the extra heads propose, the first head decides (ours, not the paper's).

A pass ends with one token drawn as at order 1, which is always kept, and with drafts of the tokens after it:
the joint's conditional given that token, over the cells that survive exact mode's own threshold. The next
pass reads them all, has the first head's distribution p at each of them, and verifies: a draft that was drawn
from q is kept with probability min(1, p / q); the first that is not is replaced by a draw from the normalised
(p - q)+, and what follows it is forgotten. The text then has exactly the distribution of this model's first
head under the same temperature, top-k and repetition penalty (speculative sampling, arXiv 2211.17192).

The rule of length: whether there is a draft at a place is settled by the joint and by the tokens before that
place, never by the draft that would stand there. Else the drafts that are made would not be distributed as q:
the lucky ones would be over-represented in the text. So the order is chosen before anything is drawn from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynamo import joint
from dynamo.cooccurrence import CooccurrenceTable
from dynamo.sampler import (
    Candidates,
    Context,
    SamplingOptions,
    choose_joint,
    choose_one,
    penalised,
    require_few_cells,
    top_candidates,
)
from dynamo.trace import Joint

Uniform = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Draft:
    """A proposed token and the distribution it was drawn from: q (k,) over the ids (k,)."""

    token: int
    ids: NDArray[np.int64]
    q: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a pass made final: the `accepted` drafts and, unless the last of them is an end, a token drawn.

    probabilities: of each final token under the first head, after top-k and temperature; last: the first
    head's candidates where the token was drawn, None where none was.
    """

    accepted: int
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    last: Candidates | None


def verify(
    logits: Tensor | NDArray[np.floating],
    drafts: tuple[Draft, ...],
    context: Context,
    options: SamplingOptions,
    uniform: Uniform,
    ends: frozenset[int] = frozenset(),
) -> Verdict:
    """Speculative sampling. logits (drafts + 1, vocab): the first head's before each draft and after all.

    Final tokens join `context`, so that the penalty at each place knows those before it. Takes one uniform
    for each draft that it examines and one for the token drawn.
    """
    tokens: list[int] = []
    probabilities: list[float] = []

    def settle(token: int, head: Candidates) -> None:
        context.add(token)
        tokens.append(token)
        probabilities.append(_at(token, head.ids[0], head.f[0]))

    for accepted, row in enumerate(logits):
        head = top_candidates(row[None], options)
        p = _first_head(head, context, options)
        if accepted < len(drafts):
            draft = drafts[accepted]
            if uniform() * _at(draft.token, draft.ids, draft.q) < _at(draft.token, head.ids[0], p):
                settle(draft.token, head)
                if draft.token in ends:
                    return Verdict(accepted + 1, tuple(tokens), tuple(probabilities), None)
                continue
            p = _residual(p, head.ids[0], draft)
        settle(int(head.ids[0][joint.draw(p, uniform())]), head)
        return Verdict(accepted, tuple(tokens), tuple(probabilities), head)
    raise AssertionError(f"{len(logits)} rows of logits for {len(drafts)} drafts")


def _first_head(head: Candidates, context: Context, options: SamplingOptions) -> NDArray[np.float64]:
    """What order 1 draws from, normalised; all of it on the largest at temperature 0."""
    _, weights = choose_one(head, context, options)
    return _point(weights) if options.temperature == 0 else weights / weights.sum()


def _point(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    point = np.zeros(len(weights))
    point[np.argmax(weights)] = 1.0
    return point


def _at(token: int, ids: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    return float(p[ids == token].sum())


def _residual(p: NDArray[np.float64], ids: NDArray[np.int64], draft: Draft) -> NDArray[np.float64]:
    """(p - q)+ on the first head's candidates; p itself where rounding leaves nothing of it."""
    order = np.argsort(draft.ids)
    place = order[np.searchsorted(draft.ids, ids, sorter=order).clip(max=len(order) - 1)]
    q = np.where(draft.ids[place] == ids, draft.q[place], 0.0)
    rest = np.maximum(p - q, 0.0)
    return rest if rest.any() else p


def propose(
    candidates: Candidates,
    token: int,
    table: CooccurrenceTable | None,
    context: Context,
    options: SamplingOptions,
    uniform: Uniform,
    most: int,
    ends: frozenset[int] = frozenset(),
) -> tuple[tuple[Draft, ...], int]:
    """At most `most` (1 or more) drafts of what follows `token`, one of the first head's candidates; and the
    order of the joint that was tried last.

    The highest order that has a surviving cell with `token` is drafted from, all its places; a drafted end is
    the last. Takes one uniform if there is a draft.
    """
    for order in range(min(options.highest_order, len(candidates.ids), most + 1), 1, -1):
        ranks, weights = _cells_given(token, candidates, order, table, context, options)
        if len(weights):
            break
    else:
        return (), 2
    greedy = options.temperature == 0
    cell = ranks[int(np.argmax(weights)) if greedy else joint.draw(weights, uniform())]
    drafts: list[Draft] = []
    for head in range(1, order):
        q = np.bincount(ranks[:, head], weights, minlength=candidates.ids.shape[1])
        if greedy:
            q = np.bincount(cell[head, None], minlength=len(q)).astype(float)
        ids, drafted = candidates.ids[head], int(candidates.ids[head, cell[head]])
        drafts.append(Draft(drafted, ids, q / q.sum()))
        if drafted in ends:
            break
        here = ranks[:, head] == cell[head]
        ranks, weights = ranks[here], weights[here]
    return tuple(drafts), order


def _cells_given(
    token: int,
    candidates: Candidates,
    order: int,
    table: CooccurrenceTable | None,
    context: Context,
    options: SamplingOptions,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Surviving cells that begin with `token`, and their weights after the penalty."""
    rank = int(np.flatnonzero(candidates.ids[0] == token)[0])
    if options.exact_threshold > 0:
        attempt = choose_joint(candidates, order, context, table, drafting(options))
        if attempt.backoff is not None:
            return _NO_CELLS
        here = attempt.ranks[:, 0] == rank
        return attempt.ranks[here], attempt.weights[here]
    # Every cell that the mask left survives: the rest of the grid need not be built.
    ids, f = candidates.ids[:order], candidates.f[:order]
    if table is not None and options.mask_strength > 0:
        ranks, ratios = table.candidates([ids[0, rank : rank + 1], *ids[1:]])
        values, _ = joint.masked(joint.product(f[1:], ranks[:, 1:]), ratios, options.mask_strength)
    else:
        require_few_cells(ids.shape[1], order - 1, 0.0)
        rest = joint.product_cells(f[1:], 0.0)
        ranks = np.column_stack([np.zeros(len(rest), dtype=rest.dtype), rest])
        values = joint.product(f[1:], rest)
    ranks[:, 0] = rank
    positive = values > 0
    ranks, values = ranks[positive], values[positive]
    return ranks, penalised(values, ids[np.arange(order), ranks], context, options)


_NO_CELLS = np.zeros((0, 1), dtype=np.intp), np.zeros(0)


def drafting(options: SamplingOptions) -> SamplingOptions:
    """The options under which a joint is drafted from: a threshold of its own, nothing adaptive."""
    return replace(options, exact=False, threshold=options.exact_threshold, adaptive=False, min_kept_mass=0.0)


def shown_joint(
    candidates: Candidates, order: int, table: CooccurrenceTable | None, options: SamplingOptions
) -> Joint:
    """The whole joint that drafts come from, built when it is looked at."""
    ids, f = candidates.ids[:order], candidates.f[:order]
    if table is None or options.mask_strength == 0:
        return Joint(ids, f)

    def cells() -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        ranks, ratios = table.candidates(list(ids))
        return ranks, joint.masked(joint.product(f, ranks), ratios, options.mask_strength)[0]

    return Joint.deferred(ids, f, cells)
