"""Exact mode: the extra heads propose, the first head decides (ours, not the paper's).

A pass ends with one token drawn as at order 1, which is always kept, and with drafts of the tokens after it.
Each draft is drawn from the joint's conditional given the tokens before it. (Draft i comes from the joint of
order i + 1. The sum over a higher one agrees less with the first head: 61 % instead of 66 % for the embedded
pair's first draft.) The next pass reads them all, computes the first head's distribution p at each of them,
and verifies: a draft that was drawn from q is kept with probability min(1, p / q); the first that is rejected
is replaced by a draw from the normalised (p - q)+, and the drafts after it are dropped. The text then has
exactly the distribution of this model's first head under the same temperature, top-k and repetition penalty
(speculative sampling, arXiv 2211.17192).

A rejected draft has cost a row of its pass, so drafting stops where the next one is not likely enough: where
the product of the drafts' probabilities and the largest at the next place is below exact mode's threshold.

Whether a position gets a draft may depend on the joint and on the tokens before it, earlier drafts included,
but never on the draft itself. Otherwise drafts would not be distributed as q, and tokens that are drafted
because they are likely would be over-represented in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.common.laps import lap
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.corrections import correction_of
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import Joint
from dynamo.sampling.sampler import Context, penalised_next, sample_index

Uniform = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Draft:
    """A proposed token and the distribution it was drawn from: q (k,) over the ids (k,)."""

    token: int
    ids: NDArray[np.int64]
    q: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a pass made final: the `accepted` drafts and, unless the last one ends the text, a drawn token.

    probabilities: of each final token under the first head, after top-k and temperature; last: the first
    head's candidates for the drawn token, None if none was drawn; refused: p and q of the draft that was
    rejected, None if none was: those behind it were not examined.
    """

    accepted: int
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    last: Candidates | None
    refused: tuple[float, float] | None = None


def verify(
    logits: Any,
    drafts: tuple[Draft, ...],
    context: Context,
    options: SamplingOptions,
    uniform: Uniform,
    ends: frozenset[int] = frozenset(),
) -> Verdict:
    """Speculative sampling. logits[i]: (vocab,) of the first head where draft i is to be verified, or behind
    the last; further heads' below it are ignored, (heads, vocab). Positions behind a rejected draft are not
    asked for.

    Final tokens are added to `context`, so that the penalty at each position includes those before it. Takes
    one uniform for each draft that it examines and one for the drawn token.
    """
    tokens: list[int] = []
    probabilities: list[float] = []

    def settle(token: int, head: Candidates) -> None:
        context.add(token)
        tokens.append(token)
        probabilities.append(_at(token, head.ids[0], head.f[0]))

    refused = None
    for accepted in range(len(drafts) + 1):
        # One by one: the tokens accepted before are part of the penalty's context.
        head = top_candidates(torch.atleast_2d(torch.as_tensor(logits[accepted]))[:1], options)  # (1, k)
        lap("top-k")
        p = _first_head(head, context, options)
        if accepted < len(drafts):
            draft = drafts[accepted]
            q_draft, p_draft = _at(draft.token, draft.ids, draft.q), _at(draft.token, head.ids[0], p)
            if uniform() * q_draft < p_draft:  # u < p / q without dividing: q may be tiny
                settle(draft.token, head)
                if draft.token in ends:
                    return Verdict(accepted + 1, tuple(tokens), tuple(probabilities), None)
                continue
            refused = p_draft, q_draft
            p = _residual(p, head.ids[0], draft)  # weights: `sample_index` needs no sum of 1
        settle(int(head.ids[0][sample_index(p, options, uniform())]), head)
        return Verdict(accepted, tuple(tokens), tuple(probabilities), head, refused)
    raise AssertionError("the last position draws")


def _first_head(head: Candidates, context: Context, options: SamplingOptions) -> NDArray[np.float64]:
    """The distribution that order 1 draws from: (k,)."""
    return _normalised(penalised_next(head.f[0], head.ids[0], (), context, options), options)


def _normalised(weights: NDArray[np.float64], options: SamplingOptions) -> NDArray[np.float64]:
    """Weights (k,) that sum to 1; at temperature 0 all of it on the largest."""
    if options.temperature > 0:
        return weights / weights.sum()
    point = np.zeros(len(weights))
    point[np.argmax(weights)] = 1.0
    return point


def _at(token: int, ids: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    rank = (ids == token).nonzero()[0]  # ids are distinct
    return float(p[rank[0]]) if len(rank) else 0.0


def _residual(p: NDArray[np.float64], ids: NDArray[np.int64], draft: Draft) -> NDArray[np.float64]:
    """(p - q)+ on the first head's candidates, (k,); p itself where rounding leaves nothing of it."""
    # Drafts come from other candidates than the first head's: a token that cannot be drafted has q = 0.
    q = (ids[:, None] == draft.ids) @ draft.q  # (k,): ids are distinct
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
) -> tuple[Draft, ...]:
    """At most `most` drafts of the tokens after `token`, one of the first head's candidates.

    Draft i is drawn from the joint of order i + 1, given `token` and the drafts before it. Drafting stops
    where no cell begins with these, at exact mode's threshold, and after an end. Takes one uniform for each
    draft.
    """
    chunk: list[int] = [token]
    drafts: list[Draft] = []
    chance = 1.0  # of all drafts so far, as the heads see it
    for order in range(2, min(options.highest_order, len(candidates.ids), most + 1) + 1):
        if chunk[-1] in ends:
            break
        # Every cell of the joint survives, so only those that begin with `chunk` are built.
        ids, p, _ = correction_of(candidates, order, table, options).conditional(chunk)
        if not len(ids):
            break
        weights = penalised_next(p, ids, chunk, context, options)
        if chance * weights.max() < options.exact_threshold * weights.sum():
            break
        q = _normalised(weights, options)
        place = sample_index(q, options, uniform())
        chance *= float(weights[place] / weights.sum())
        chunk.append(int(ids[place]))
        drafts.append(Draft(chunk[-1], ids, q))
    return tuple(drafts)


def recorded_joint(
    candidates: Candidates, order: int, table: CooccurrenceTable | None, options: SamplingOptions
) -> Joint:
    """The whole joint that drafts come from, built on first access."""
    return correction_of(candidates, order, table, options).recorded_joint()
