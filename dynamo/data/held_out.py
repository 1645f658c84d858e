"""Losses of every head on held-out documents, each read alone from its first token.

Validation in training, perplexities and the comparisons of trained models are all taken from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.data.documents import padded
from dynamo.model import DynamoForCausalLM, count_targets


@torch.no_grad()
def held_out_nats(
    model: DynamoForCausalLM,
    documents: Sequence[np.ndarray],
    cut: int = 512,
    batch_size: int = 1,
    labels: Sequence[np.ndarray] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of nats and numbers of targets of every head, (batches, heads) each.

    documents: ids, cut at `cut` tokens; labels: what is scored of each (-100: not), by default all of it.
    With a batch size of 1, row i belongs to document i. Larger batches are faster on a GPU and serve for the
    total: documents are sorted by length and padded, and padding is no target. The model's mode is kept.
    """
    training = model.training
    model.eval()
    rows = list(zip(documents, documents if labels is None else labels, strict=True))
    if batch_size > 1:
        rows.sort(key=lambda row: len(row[0]))
    starts, heads = range(0, len(rows), batch_size), model.config.num_token_heads
    nats, targets = np.zeros((len(starts), heads)), np.zeros((len(starts), heads), np.int64)
    for number, start in enumerate(starts):
        batch = [(ids[:cut], scored[:cut]) for ids, scored in rows[start : start + batch_size]]
        ids, scored = map(torch.from_numpy, padded(batch))
        # By the model's own forward pass: mixed precision and sharding are hooked there.
        output = model(ids.to(model.device), labels=scored.to(model.device), return_logits=False)
        targets[number] = count_targets(scored, heads).numpy()
        nats[number] = output.head_losses.double().cpu().numpy() * targets[number]
    model.train(training)
    return nats, targets
