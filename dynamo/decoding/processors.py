"""How transformers' `generate` is given our distribution: top-k, temperature, penalty on probabilities.

Either the processor draws, with the uniforms that `dynamo.Engine` would use, and leaves `generate` one token
to take; or it leaves `generate` the whole distribution. Order 1 only: nothing here knows heads or joints.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation import LogitsProcessor

from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.joint import draw
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose_one


class ChooseOne(LogitsProcessor):
    """Draws as the sampler does at order 1, and leaves `generate` one token to take.

    lookup: whether prompt lookup shows it rows of ones, to learn which drafts are forbidden.
    """

    def __init__(self, options: SamplingOptions, special_ids: Sequence[int], seed: int, lookup: bool):
        self._options = options
        self._special_ids = special_ids
        self._lookup = lookup
        self._uniforms = random.Random(seed)
        self.probabilities: list[float] = []  # of the tokens drawn since the last record

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._lookup and bool((scores == 1).all()):
            return scores
        ids, weights, f = self.distribution(input_ids, scores)
        uniform = self._uniforms.random()
        best = int(weights.argmax()) if self._options.temperature == 0 else draw(weights, uniform)
        self.probabilities.append(float(f[best]))
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, int(ids[best])] = 0.0
        return chosen

    def distribution(self, input_ids: torch.Tensor, scores: torch.Tensor) -> tuple[Any, Any, Any]:
        """Ids that survive top-k, their weights after the penalty, and their probabilities before: (k,)."""
        candidates = top_candidates(scores.float().cpu().numpy(), self._options)
        context = Context(scores.shape[-1], self._special_ids)
        context.add(input_ids[0].tolist())
        ranks, weights = choose_one(candidates, context, self._options)
        return candidates.ids[0][ranks[:, 0]], weights, candidates.f[0][ranks[:, 0]]


class Weigh(ChooseOne):
    """Leaves `generate` the distribution, to draw from."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids, weights, _ = self.distribution(input_ids, scores)
        if self._options.temperature == 0:
            ids, weights = ids[[weights.argmax()]], weights[[weights.argmax()]]
        left = torch.full_like(scores, -torch.inf)
        left[0, torch.from_numpy(ids.astype("int64")).to(scores.device)] = (
            torch.from_numpy(weights).log().to(scores)
        )
        return left
