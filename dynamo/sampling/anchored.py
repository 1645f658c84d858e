"""The anchored draw: the first token as the base draws it, the rest of the chunk grown from there (ours, not
the paper's).

Algorithm 1 draws whole chunks from what the thresholds leave of the joint, which makes sampling nearly
greedy. Here the first token comes from the first head alone, as at order 1. The chunk then grows, order by
order: with c_m the conditional of the m-th token given those drawn before it, and B the product of the
largest values of c_2 .. c_m-1, a token is left if B c_m > eps_b ** (m - 1). Tokens that repeat are penalised,
and one of those left is drawn. The chunk ends where none is above the threshold, before or after the penalty.
There is no adaptive threshold: what it separates are the cells of a whole grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling.candidates import Candidates
from dynamo.sampling.corrections import correction_of
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import BackOff
from dynamo.sampling.sampler import ROUNDING, Context, Decision, choose_one, penalised_next, sample_index


def choose_anchored(
    candidates: Candidates,
    context: Context,
    table: CooccurrenceTable | None,
    options: SamplingOptions,
    uniform: Callable[[], float],
) -> Decision:
    """One step. Takes one uniform in [0, 1) for the first token and one for each that the chunk grows by.

    The decision's cells are those of the last token drawn, after the tokens before it; its joint is that of
    the last order tried, and so is kept_mass: the share of that head's own mass which the mask kept.
    """
    ranks, weights = choose_one(candidates, context, options)
    chosen = [int(ranks[sample_index(weights, options, uniform())][0])]
    tokens = [int(candidates.ids[0, chosen[0]])]
    backoffs: tuple[BackOff, ...] = ()
    best_values, kept_mass, seen = 1.0, None, None
    for order in range(2, min(options.highest_order, len(candidates.ids)) + 1):
        limit = float(options.threshold) ** (order - 1)
        correction = correction_of(candidates, order, table, options)
        seen = correction.recorded_joint()
        ids, p, kept_mass = correction.conditional(tokens)
        best = best_values * float(p.max(initial=0.0))
        left = best_values * p > limit
        ids, penalised = ids[left], penalised_next(p[left], ids[left], tokens, context, options)
        heaviest = best_values * float(penalised.max(initial=0.0))
        refusals = {
            "mask": not best > 0,
            "kept_mass": kept_mass < options.min_kept_mass - ROUNDING,
            "threshold": not left.any(),
            "penalty": not heaviest > limit,
        }
        reason = next((name for name, holds in refusals.items() if holds), "")
        if reason:
            backoffs = (BackOff(order, reason, heaviest if reason == "penalty" else best, limit),)
            break
        best_values, weights = best, penalised
        token = int(ids[sample_index(weights, options, uniform())])
        last = np.array([int(np.flatnonzero(candidates.ids[order - 1] == each)[0]) for each in ids.tolist()])
        ranks = np.column_stack([np.tile(chosen, (len(last), 1)), last])
        chosen.append(int(np.flatnonzero(candidates.ids[order - 1] == token)[0]))
        tokens.append(token)
    return Decision(
        tokens=tuple(tokens),
        probabilities=tuple(float(candidates.f[head, rank]) for head, rank in enumerate(chosen)),
        backoffs=backoffs,
        kept_mass=kept_mass,
        joint=seen,
        ids=candidates.ids,
        ranks=ranks,
        weights=weights,
    )
