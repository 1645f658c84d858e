"""Rotary embedding in place, for queries and keys that nothing else holds."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first rotary_dim of each head, in place; what is behind them stays as it is.

    states (.., head_dim), queries and keys by position; cos, sin (new, 1, 1, rotary_dim).
    """
    rotated = states[..., : cos.shape[-1]]  # a view, (.., rotary_dim): Pythia rotates a quarter of a head
    # Pairs lie half a rotary_dim apart, as checkpoints of transformers have them, and not side by side.
    first, second = rotated.chunk(2, dim=-1)
    rotated.copy_(rotated * cos + torch.cat((-second, first), dim=-1) * sin)
