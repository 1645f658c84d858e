"""Perplexity of every token head on held-out documents (paper, section 4.2 and Table 2).

PPL_n = exp(mean nats of head n); PPL_1:n is the geometric mean of PPL_1 .. PPL_n. Bits per byte relate head 1
to the text itself: all tokens are paid for, markers too, and only the text's UTF-8 bytes are divided by.
Intervals are over documents, as tokens of one document belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dynamo.common.statistics import Estimate, bootstrap, ratio
from dynamo.model import DynamoForCausalLM
from dynamo.training.heldout import held_out_nats


@dataclass(frozen=True)
class Perplexity:
    """nats: sum per head; targets: tokens that each head was scored on; text_bytes: of what was read;
    intervals: PPL_1 .. PPL_n and PPL_1:2 .. PPL_1:n with 95 % intervals, by name."""

    nats: tuple[float, ...]
    targets: tuple[int, ...]
    text_bytes: int
    intervals: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def mean_nats(self) -> list[float]:
        return [nats / max(1, targets) for nats, targets in zip(self.nats, self.targets, strict=True)]

    @property
    def ppl(self) -> list[float]:
        """PPL_1 .. PPL_n."""
        return [math.exp(nats) for nats in self.mean_nats]

    @property
    def joint_ppl(self) -> list[float]:
        """PPL_1:1 .. PPL_1:n."""
        means = self.mean_nats
        return [math.exp(sum(means[:n]) / n) for n in range(1, len(means) + 1)]

    @property
    def bits_per_byte(self) -> float:
        return self.nats[0] / math.log(2) / max(1, self.text_bytes)

    def summary(self) -> dict:
        return {
            "mean_nats": self.mean_nats,
            "ppl": self.ppl,
            "joint_ppl": self.joint_ppl,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.targets[0],
            "text_bytes": self.text_bytes,
            "intervals": {name: [each.low, each.high] for name, each in self.intervals.items()},
        }


def measure(
    model: DynamoForCausalLM,
    documents: Sequence[np.ndarray],
    bytes_per_token: np.ndarray,
    cut: int = 512,
) -> Perplexity:
    """Every document alone from its first token, cut at `cut` tokens; bytes_per_token: (vocab,)."""
    sums = document_sums(model, documents, cut)
    text_bytes = int(sum(bytes_per_token[document[:cut]].sum() for document in documents))
    nats, targets = sums.sum(axis=0)
    return Perplexity(tuple(nats.tolist()), tuple(map(int, targets)), text_bytes, head_estimates(sums))


def document_sums(
    model: DynamoForCausalLM, documents: Sequence[np.ndarray], cut: int = 512
) -> NDArray[np.float64]:
    """(documents, 2, heads): nats and targets of every head in every document, cut at `cut` tokens."""
    return np.stack(held_out_nats(model, documents, cut), axis=1)


def head_estimates(sums: NDArray[np.float64]) -> dict[str, Estimate]:
    """PPL_1 .. PPL_n and PPL_1:2 .. PPL_1:n of (documents, 2, heads), with 95 % intervals over documents."""
    heads = sums.shape[2]
    flat = sums.reshape(len(sums), 2 * heads)

    def of(first: int, last: int) -> Estimate:
        return bootstrap(flat, lambda pooled: np.exp(_means(pooled, heads)[:, first:last].mean(axis=1)))

    single = {f"PPL_{n + 1}": of(n, n + 1) for n in range(heads)}
    return {**single, **{f"PPL_1:{n}": of(0, n) for n in range(2, heads + 1)}}


def _means(pooled: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    return ratio(np.ascontiguousarray(pooled[:, :heads]), np.ascontiguousarray(pooled[:, heads:]))
