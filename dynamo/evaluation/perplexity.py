"""Perplexity of every token head on held-out documents (paper, section 4.2 and Table 2).

PPL_n = exp(mean nats of head n); PPL_1:n is the geometric mean of PPL_1 .. PPL_n. Bits per byte relate head 1
to the text itself: all tokens are paid for, markers too, and only the text's UTF-8 bytes are divided by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamo.heldout import document_losses
from dynamo.model import DynamoForCausalLM


@dataclass(frozen=True)
class Perplexity:
    """nats: sum per head; targets: tokens that each head was scored on; text_bytes: of what was read."""

    nats: tuple[float, ...]
    targets: tuple[int, ...]
    text_bytes: int

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
        }


def measure(
    model: DynamoForCausalLM,
    documents: Sequence[np.ndarray],
    bytes_per_token: np.ndarray,
    cut: int = 512,
    batch_size: int = 16,
) -> Perplexity:
    """Every document alone from its first token, cut at `cut` tokens; bytes_per_token: (vocab,)."""
    nats, targets = document_losses(model, documents, cut, batch_size)
    text_bytes = int(sum(bytes_per_token[document[:cut]].sum() for document in documents))
    return Perplexity(tuple(nats.tolist()), tuple(targets.tolist()), text_bytes)
