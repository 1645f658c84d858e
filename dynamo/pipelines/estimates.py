"""How long a training run will take and what memory it needs, before it starts: rough, and said to be.

Time is the run's multiplications over what this machine multiplies in a short trial, at the share of it that
training reaches. Memory is weights, gradients and AdamW's two moments in float32, and what one pass keeps for
its way back, which is why a batch is divided into passes that fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dynamo.model.loss import PIECE_LOGITS

EFFICIENCY = 0.4  # of the trial's speed; a round guess, not a measurement
TRIAL = 1024
ADAM_BYTES = 16  # weight, gradient, two moments
# Bytes that a pass keeps for each token and hidden unit, as counted with torch's hooks for saved tensors.
LAYER_BYTES = {"no": 72, "bf16": 44}  # of a layer, by mixed precision
AGAIN_BYTES = 4  # of a layer that is computed twice
HEAD_BYTES, ENDS_BYTES = 8, 12  # of an extra head beside its layer; of the embedding and the first head
LOGIT_BYTES = 12  # of a logit of the loss's piece: itself, its softmax, its gradient


def multiplications_per_second(seconds: float = 0.3) -> float:
    """Multiply-adds a second of this machine's first GPU, or of its CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _fast_dtype() if device.type == "cuda" else torch.float32
    size = 4 * TRIAL if device.type == "cuda" else TRIAL
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    _finish(device)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        _finish(device)
        count += 1
    return count * size**3 / (time.perf_counter() - started)


def _fast_dtype() -> torch.dtype:
    """Of a GPU: one that has no bfloat16 of its own would be measured at imitating it."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def training_seconds(parameters: int, extra: int, tokens: int, heads_only: bool, speed: float) -> float:
    """Of `tokens` through a base of `parameters` with `extra` in its heads.

    A forward pass multiplies every parameter once per token, a backward pass twice where gradients go.
    """
    trained = extra if heads_only else parameters + extra
    return tokens * (parameters + extra + 2 * trained) / (EFFICIENCY * speed)


def training_bytes(parameters: int, extra: int, heads_only: bool) -> int:
    """Memory of one process that holds everything, without what a pass keeps."""
    trained = extra if heads_only else parameters + extra
    return 4 * (parameters + extra - trained) + ADAM_BYTES * trained


def pass_bytes(
    tokens: int,
    layers: int,
    hidden: int,
    vocabulary: int,
    extra_heads: int,
    heads_only: bool,
    mixed_precision: str = "no",
    again: bool = False,
) -> int:
    """Memory of one forward and backward pass of so many tokens at once, heads of one layer each.

    again: whether layers are computed twice (`activation_checkpointing`).
    """
    layer, trained = LAYER_BYTES[mixed_precision], extra_heads + (0 if heads_only else layers)
    kept = AGAIN_BYTES * (layers + extra_heads) + layer if again else layer * trained
    kept += HEAD_BYTES * extra_heads + ENDS_BYTES
    logits = LOGIT_BYTES * min(tokens * vocabulary, PIECE_LOGITS)
    embedding = 0 if heads_only else vocabulary * hidden
    gradients = 4 * embedding * (1 + extra_heads)  # the embedding's own, of each head
    halves = 2 * (12 * trained * hidden**2 + embedding) if mixed_precision == "bf16" else 0
    return tokens * hidden * kept + logits + gradients + halves


def passes(rows: int, fits: Callable[[int], bool], least: int = 1) -> int | None:
    """Into how many equal passes, `least` or more, so many rows must be divided for each to fit; None if one
    row alone does not.
    """
    return next((n for n in range(least, rows + 1) if rows % n == 0 and fits(rows // n)), None)


def duration(seconds: float) -> str:
    """In words, as roughly as it is known."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds) if seconds < 20 else round(seconds, -1)):.0f} seconds"
