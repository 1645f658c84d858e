"""Prompts and weights that tests of engines share."""

from __future__ import annotations

import torch

PROMPT = [5, 100, 42, 17, 250]


def tokens_of(steps):
    return [token for step in steps for token in step.tokens]


def saved_in_half(model, dtype=torch.float16):
    """Weights as a checkpoint in 16 bits gives them back: float32, each exactly such a number."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype).float())
    return model
