"""Losses of every head on held-out documents, each read alone from its first token.

What validation in training and perplexity afterwards have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynamo.data.documents import padded
from dynamo.model import DynamoForCausalLM, count_targets


@torch.no_grad()
def document_losses(
    model: DynamoForCausalLM,
    documents: Sequence[np.ndarray],
    cut: int = 512,
    batch_size: int = 16,
    labels: Sequence[np.ndarray] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of nats and number of targets, (heads,) each, over documents cut at `cut` tokens.

    labels: what is scored of each document (-100: not), by default all of it. Sorted by length and padded;
    padding is no target. The model's mode is kept.
    """
    training = model.training
    model.eval()
    nats = torch.zeros(model.config.num_token_heads, dtype=torch.float64)
    targets = torch.zeros(model.config.num_token_heads, dtype=torch.int64)
    rows = sorted(zip(documents, documents if labels is None else labels, strict=True), key=_length)
    for start in range(0, len(rows), batch_size):
        ids, wanted = padded([(ids[:cut], wanted[:cut]) for ids, wanted in rows[start : start + batch_size]])
        ids, wanted = torch.from_numpy(ids), torch.from_numpy(wanted)
        output = model(ids.to(model.device), labels=wanted.to(model.device), return_logits=False)
        counts = count_targets(wanted, len(nats))
        nats += output.head_losses.double().cpu() * counts
        targets += counts
    model.train(training)
    return nats, targets


def _length(row: tuple[np.ndarray, np.ndarray]) -> int:
    return len(row[0])
