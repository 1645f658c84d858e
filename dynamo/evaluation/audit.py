"""Drift audit: what the base model thinks of a text that another lane wrote.

One base-model pass over prompt and reply gives each reply token's probability under the base, at temperature
1 over the full vocabulary. Low nats alone are no praise: thresholds cut the tail, and a dull text scores
well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

UNLIKELY = 0.01


@dataclass(frozen=True)
class Audit:
    """Per reply token: log-probability (nats) and rank (0 is the likeliest) under the base model."""

    log_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]

    @property
    def nats_per_token(self) -> float:
        return -sum(self.log_probabilities) / max(1, len(self.log_probabilities))

    @property
    def unlikely_share(self) -> float:
        """Share of the tokens that the base gives less than 1 %."""
        limit = math.log(UNLIKELY)
        return sum(p < limit for p in self.log_probabilities) / max(1, len(self.log_probabilities))


@torch.inference_mode()
def audit(base: torch.nn.Module, prompt: Sequence[int], reply: Sequence[int]) -> Audit:
    """Score a reply (ids) after a prompt (ids) under a stock GPT-NeoX; an empty reply scores nothing."""
    if not reply:
        return Audit((), ())
    ids = torch.tensor([[*prompt, *reply]], device=base.device)
    logits = base(ids, use_cache=False, logits_to_keep=len(reply) + 1).logits[0, :-1].float()
    targets = ids[0, len(prompt) :, None]
    log_p = logits.log_softmax(-1).gather(1, targets)
    ranks = (logits > logits.gather(1, targets)).sum(dim=1)
    return Audit(tuple(log_p[:, 0].tolist()), tuple(ranks.tolist()))
