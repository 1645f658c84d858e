"""Drift audit: what the base model thinks of a text that another model wrote.

One pass of the base model over prompt and reply gives each reply token's probability and rank under the base,
at temperature 1 over the full vocabulary. Low nats alone are not a sign of quality: thresholds cut the tail,
and a dull text scores well. So the share of tokens that the base would not have sampled, and repetition, are
reported with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynamo.common.device_map import execution_device
from dynamo.common.memory import enough_memory, run_out
from dynamo.evaluation.text_measures import repeated
from dynamo.model.architectures import max_positions

UNLIKELY = 0.01
TOP_K = 50


@dataclass(frozen=True)
class Audit:
    """Per reply token: log-probability (nats) and rank (0 is the likeliest) under the base model.

    tokens: the reply's ids; top_k: candidates that the base would have drawn from.
    """

    log_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    top_k: int = TOP_K

    @property
    def nats_per_token(self) -> float:
        return -sum(self.log_probabilities) / max(1, len(self.log_probabilities))

    @property
    def unlikely(self) -> tuple[bool, ...]:
        """Which tokens the base gives less than 1 %."""
        limit = math.log(UNLIKELY)
        return tuple(p < limit for p in self.log_probabilities)

    @property
    def outside(self) -> tuple[bool, ...]:
        """Which tokens are not among the base's top k: it would never have sampled them."""
        return tuple(rank >= self.top_k for rank in self.ranks)

    @property
    def unlikely_share(self) -> float:
        """Share of the tokens that the base gives less than 1 %."""
        return sum(self.unlikely) / max(1, len(self.ranks))

    @property
    def outside_share(self) -> float:
        """Share of the tokens outside the base's top k."""
        return sum(self.outside) / max(1, len(self.ranks))

    @property
    def repetition(self) -> float:
        """seq-rep-4: share of the reply's 4-grams that occurred in it before."""
        again, grams = repeated(self.tokens)
        return again / max(1, grams)

    def summary(self) -> dict[str, Any]:
        return {
            "tokens": len(self.ranks),
            "nats_per_token": self.nats_per_token,
            "share_below_1_percent": self.unlikely_share,
            "top_k": self.top_k,
            "share_outside_top_k": self.outside_share,
            "repetition": self.repetition,
        }

    def to_json(self) -> dict[str, Any]:
        """The summary, and per token its probability (four digits) and rank."""
        probabilities = [float(f"{math.exp(p):.4g}") for p in self.log_probabilities]
        return {**self.summary(), "p": probabilities, "rank": list(self.ranks)}


@torch.inference_mode()
def audit(base: torch.nn.Module, prompt: Sequence[int], reply: Sequence[int], top_k: int = TOP_K) -> Audit:
    """Score a reply (ids) after a prompt (ids, one or more) under a base model; an empty reply has no scores.

    If both together exceed the model's positions, the oldest are left out: every token still sees at least
    half of the positions before it. Raises ValueError for an empty prompt, since nothing predicts the first
    token then, and for ids that the base does not know.
    """
    if not reply:
        return Audit((), (), (), top_k)
    if not len(prompt):
        raise ValueError(
            "prompt: it is empty, so nothing predicts the reply's first token; give at least one token"
        )
    ids = torch.tensor([*prompt, *reply], device=execution_device(base))
    if not 0 <= int(ids.min()) <= int(ids.max()) < base.config.vocab_size:
        raise ValueError(
            f"reply: the base knows ids from 0 to {base.config.vocab_size - 1}, got {int(ids.max())}; "
            "was the reply written by another model?"
        )
    with enough_memory(lambda: run_out(ids.device)):
        log_p, ranks = _scores(base, ids, len(prompt))
    return Audit(tuple(log_p), tuple(ranks), tuple(int(token) for token in reply), top_k)


def _scores(base: Any, ids: torch.Tensor, prompt: int) -> tuple[list[float], list[int]]:
    log_p, ranks = [], []
    for start, first, stop in _windows(prompt, len(ids), max_positions(base)):
        scored = ids[first:stop, None]
        window = ids[None, start:stop]
        logits = base(window, use_cache=False, logits_to_keep=len(scored) + 1).logits[0, :-1].float()
        log_p += logits.log_softmax(-1).gather(1, scored)[:, 0].tolist()
        ranks += (logits > logits.gather(1, scored)).sum(dim=1).tolist()
    return log_p, ranks


def _windows(scored: int, total: int, positions: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, stop) of windows of at most `positions` that score each id from `scored` once."""
    while scored < total:
        stop = min(total, max(positions, scored + positions // 2))
        yield max(0, stop - positions), scored, stop
        scored = stop
