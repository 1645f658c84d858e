"""What weights in fewer bits change: every head's distributions and losses on held-out documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynamo.common.statistics import Estimate, bootstrap_ratio
from dynamo.decoding.decoder import Decoder

PIECE = 8  # positions of a pass: as many as go through the loops that decode


@dataclass(frozen=True)
class Difference:
    """Of one head, with 95 % intervals over documents: divergence of its distribution in fewer bits from its
    own, KL(own | few), in nats a token; rise: of its loss, over its own loss."""

    weights: str
    head: int
    divergence: Estimate
    rise: Estimate

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Difference:
        divergence, rise = (Estimate(**fields[name]) for name in ("divergence", "rise"))
        return cls(fields["weights"], fields["head"], divergence, rise)


def read_few_bits(path: Path) -> list[Difference]:
    """What `python -m dynamo perplexity --weights` printed, kept in a file."""
    return [Difference.from_json(each) for each in json.loads(path.read_text("utf-8"))["few_bits"]]


@torch.inference_mode()
def measure_few_bits(
    model: PreTrainedModel, documents: Sequence[np.ndarray], weights: str, cut: int = 512
) -> list[Difference]:
    """By head, every document alone from its first token, cut at `cut` tokens, temperature 1."""
    decoders = Decoder(model), Decoder(model, weights=weights)
    sums = np.array([_sums(*decoders, document[:cut].tolist()) for document in documents])
    # sums (documents, heads, 4): divergence, tokens, rise, own loss
    return [
        Difference(weights, head + 1, bootstrap_ratio(*of_head.T[:2]), bootstrap_ratio(*of_head.T[2:]))
        for head, of_head in enumerate(sums.transpose(1, 0, 2))
    ]


def _sums(own: Decoder, few: Decoder, tokens: list[int]) -> np.ndarray:
    states, sums = [each.new_cache(len(tokens)) for each in (own, few)], np.zeros((own.heads, 4))
    for begin in range(0, len(tokens), PIECE):
        piece = tokens[begin : begin + PIECE]
        log_p, log_q = (
            each.forward(state, piece, queries=len(piece)).log_softmax(dim=-1)  # (heads, queries, vocab)
            for each, state in zip((own, few), states, strict=True)
        )
        for head in range(own.heads):
            # Where a head has no target, neither is its distribution counted.
            targets = torch.tensor(tokens[begin + head + 1 :][: len(piece)])
            p, q = log_p[head, : len(targets)], log_q[head, : len(targets)]
            loss, rise = -_at(p, targets), _at(p, targets) - _at(q, targets)
            divergence = (p.exp() * (p - q)).sum(dim=-1)
            sums[head] += [divergence.sum(), len(targets), rise.sum(), loss.sum()]
    return sums


def _at(log_p: Tensor, targets: Tensor) -> Tensor:
    return log_p.gather(1, targets[:, None])[:, 0]
