"""Replies to fixed prompts, decoded several at a time: how many tokens a pass, and what the base model thinks
of them.

Everything is pooled over all replies: tokens over passes, not a mean of ratios. Nothing is timed here, so the
numbers are the same on every machine, up to the rounding of sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynamo.decoding.engine import Engine
from dynamo.evaluation.audit import Audit, audit
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

BATCH = 16  # rows; throughput still grows there: bench --rows 1 2 4 8 16


def check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch: expected 1 or more replies at once, got {batch}")


def decode_together(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int,
    batch: int = BATCH,
) -> Iterator[RunCounts]:
    """A reply to every prompt (ids) with its seed, in order, up to `batch` decoded at once.

    Their seconds are shares of common passes, so they are no lane's own speed. Raises ValueError for a batch
    below 1.
    """
    check_batch(batch)
    for start in range(0, len(prompts), batch):
        group, own = prompts[start : start + batch], seeds[start : start + batch]
        if len(group) == 1:
            yield RunCounts.fold(engine.stream(group[0], options, max_new_tokens, own[0]))
            continue
        runs = [RunCounts() for _ in group]
        for row, record in engine.stream_batch(group, options, max_new_tokens, own):
            runs[row].add(record)
        yield from runs


@dataclass(frozen=True)
class Replies:
    """One lane's replies and, reply by reply, what the base model thinks of them."""

    runs: list[RunCounts]
    audits: list[Audit]

    @property
    def tokens(self) -> int:
        return sum(len(run.tokens) for run in self.runs)

    @property
    def passes(self) -> int:
        return sum(run.passes for run in self.runs)

    @property
    def tokens_per_forward(self) -> float:
        """Emitted tokens over forward passes, the prompts' passes included on both sides."""
        return self.tokens / self.passes

    def summary(self) -> dict[str, Any]:
        orders = Counter(order for run in self.runs for order in run.orders)
        pooled = Audit(
            tuple(p for each in self.audits for p in each.log_probabilities),
            tuple(rank for each in self.audits for rank in each.ranks),
        )
        return {
            "replies": len(self.runs),
            "tokens": self.tokens,
            "passes": self.passes,
            "tokens_per_forward": self.tokens_per_forward,
            "share_by_order": {str(m): orders[m] / self.passes for m in sorted(orders)},
            "backoffs": dict(Counter(each for run in self.runs for each in run.backoffs)),
            "nats_per_token_under_base": pooled.nats_per_token,
            "share_below_1_percent": pooled.unlikely_share,
        }


def audited_replies(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    base: torch.nn.Module,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch: int = BATCH,
) -> Replies:
    """Reply once to every prompt (ids), with seed, seed + 1, ..; natural stops; `batch` replies at once."""
    seeds = range(seed, seed + len(prompts))
    runs = list(decode_together(engine, prompts, seeds, options, max_new_tokens, batch))
    audits = [audit(base, prompt, run.tokens) for prompt, run in zip(prompts, runs, strict=True)]
    return Replies(runs, audits)
