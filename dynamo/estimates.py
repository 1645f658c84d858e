"""How long a training run will take and what memory it needs, before it starts: rough, and said to be.

Time is the run's multiplications over what this machine multiplies in a short trial, at the share of it that
training reaches. Memory is weights, gradients and AdamW's two moments in float32, and the logits of one
forward pass.
"""

from __future__ import annotations

import time

import torch

EFFICIENCY = 0.4  # of the trial's speed; a round guess, not a measurement
TRIAL = 1024
ADAM_BYTES = 16  # weight, gradient, two moments
SLICE_LOGITS = 2**26  # bytes of logits held at once, at least


def multiplications_per_second(seconds: float = 0.3) -> float:
    """Multiply-adds a second of this machine's first GPU, or of its CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
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
    """Memory of one process that holds everything, without activations."""
    trained = extra if heads_only else parameters + extra
    return 4 * (parameters + extra - trained) + ADAM_BYTES * trained + SLICE_LOGITS


def duration(seconds: float) -> str:
    """In words, as roughly as it is known."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds) if seconds < 20 else round(seconds, -1)):.0f} seconds"
