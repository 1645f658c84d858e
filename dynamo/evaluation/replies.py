"""A lane's replies to fixed prompts: how many tokens a pass, and what the base model thinks of them.

Everything is pooled over all replies: tokens over passes, not a mean of ratios. Nothing is timed here, so the
numbers are the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynamo.decoding.engine import Engine
from dynamo.evaluation.audit import Audit, audit
from dynamo.evaluation.runs import BATCH, together
from dynamo.sampling.sampler import SamplingOptions


@dataclass
class Replies:
    """Counts over all replies; `texts` are the replies' ids."""

    texts: list[list[int]] = field(default_factory=list)
    orders: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    audits: list[Audit] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        """Emitted tokens over forward passes, the prompt's pass included on both sides."""
        return sum(map(len, self.texts)) / max(1, self.orders.total())

    def summary(self) -> dict[str, Any]:
        pooled = Audit(
            tuple(p for each in self.audits for p in each.log_probabilities),
            tuple(rank for each in self.audits for rank in each.ranks),
        )
        passes = self.orders.total()
        return {
            "replies": len(self.texts),
            "tokens": sum(map(len, self.texts)),
            "passes": passes,
            "tokens_per_forward": self.tokens_per_forward,
            "share_by_order": {str(m): self.orders[m] / max(1, passes) for m in sorted(self.orders)},
            "backoffs": dict(self.reasons),
            "nats_per_token_under_base": pooled.nats_per_token,
            "share_below_1_percent": pooled.unlikely_share,
        }


def measure(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    base: torch.nn.Module,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch: int = BATCH,
) -> Replies:
    """Reply once to every prompt (ids), with seed, seed + 1, ..; natural stops; `batch` replies at once."""
    replies = Replies()
    seeds = range(seed, seed + len(prompts))
    records = together(engine, prompts, seeds, options, max_new_tokens, batch)
    for prompt, steps in zip(prompts, records, strict=True):
        reply = [token for step in steps for token in step.tokens]
        for step in steps:
            replies.orders[step.order] += 1
            replies.reasons.update(f"{b.order}:{b.reason}" for b in step.backoffs)
        replies.texts.append(reply)
        replies.audits.append(audit(base, prompt, reply))
    return replies
