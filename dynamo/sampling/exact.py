"""Exact mode: the extra heads propose, the first head decides (ours, not the paper's).

A pass ends with one token drawn as at order 1, which is always kept, and with drafts of the tokens after it:
each is drawn from the joint's conditional given the tokens before it, over the cells that survive exact
mode's own threshold. (Draft i comes from the joint of order i + 1. The sum over a higher one agrees less with
the first head: 61 % instead of 66 % for the embedded pair's first draft.) The next pass reads them all, has
the first head's distribution p at each of them, and verifies: a draft that was drawn from q is kept with
probability min(1, p / q); the first that is not is replaced by a draw from the normalised (p - q)+, and what
follows it is forgotten. The text then has exactly the distribution of this model's first head under the same
temperature, top-k and repetition penalty (speculative sampling, arXiv 2211.17192).

The rule of length: whether there is a draft at a place is settled by the joint and by the tokens before that
place, earlier drafts included, never by the draft that would stand there. Else the drafts that are made would
not be distributed as q, and tokens that are drafted for being likely would be over-represented in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynamo import kernels
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import joint
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import Joint
from dynamo.sampling.sampler import Context, choose_one, penalised_next, sample_index, try_order

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

    heads = top_candidates(logits, options)
    for accepted in range(len(logits)):
        head = Candidates(heads.ids[accepted : accepted + 1], heads.f[accepted : accepted + 1])
        p = _first_head(head, context, options)
        if accepted < len(drafts):
            draft = drafts[accepted]
            if uniform() * _at(draft.token, draft.ids, draft.q) < _at(draft.token, head.ids[0], p):
                settle(draft.token, head)
                if draft.token in ends:
                    return Verdict(accepted + 1, tuple(tokens), tuple(probabilities), None)
                continue
            p = _residual(p, head.ids[0], draft)
        settle(int(head.ids[0][sample_index(p, options, uniform())]), head)
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
    place = (ids == token).nonzero()[0]  # ids are distinct
    return float(p[place[0]]) if len(place) else 0.0


def _residual(p: NDArray[np.float64], ids: NDArray[np.int64], draft: Draft) -> NDArray[np.float64]:
    """(p - q)+ on the first head's candidates; p itself where rounding leaves nothing of it."""
    q = dict(zip(draft.ids.tolist(), draft.q.tolist(), strict=True))
    rest = np.maximum(p - [q.get(token, 0.0) for token in ids.tolist()], 0.0)
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
) -> tuple[Draft, ...]:
    """At most `most` drafts of what follows `token`, one of the first head's candidates.

    Draft i is drawn from the joint of order i + 1, given `token` and the drafts before it; there is none
    where no surviving cell begins with these, and none after an end. Takes one uniform for each draft.
    """
    chunk: list[int] = [token]
    drafts: list[Draft] = []
    for order in range(2, min(options.highest_order, len(candidates.ids), most + 1) + 1):
        if chunk[-1] in ends:
            break
        ids, weights = _following(chunk, candidates, order, table, context, options)
        if not len(weights):
            break
        q = _point(weights) if options.temperature == 0 else weights / weights.sum()
        chunk.append(int(ids[sample_index(q, options, uniform())]))
        drafts.append(Draft(chunk[-1], ids, q))
    return tuple(drafts)


def _following(
    chunk: list[int],
    candidates: Candidates,
    order: int,
    table: CooccurrenceTable | None,
    context: Context,
    options: SamplingOptions,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Last tokens of the surviving cells that begin with `chunk`, and their weights after the penalty."""
    ids, f = candidates.ids[order - 1], candidates.f[order - 1]
    if options.exact_threshold > 0:
        attempt = try_order(candidates, order, context, table, drafting(options))
        if attempt.backoff is not None:
            return _NOTHING
        tokens = candidates.ids[np.arange(order), attempt.ranks]
        here = (tokens[:, :-1] == chunk).all(axis=1)
        return tokens[here, -1], attempt.weights[here]
    # Every cell that the mask left survives: the rest of the grid need not be built.
    loops = kernels.loops()
    if table is not None and options.mask_strength > 0 and loops is not None:
        strength = float(options.mask_strength)
        ids, f = loops.next_candidates(np.array(chunk), ids, f, *table.trie(order), strength)
    elif table is not None and options.mask_strength > 0:
        ranks, ratios = table.candidates([*np.array(chunk)[:, None], ids])
        ids, f = ids[ranks[:, -1]], f[ranks[:, -1]]
        f = joint.masked(f, ratios, options.mask_strength)[0]
    possible = f > 0
    ids, f = ids[possible], f[possible]
    return ids, penalised_next(f, ids, chunk, context, options)


_NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0)


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
