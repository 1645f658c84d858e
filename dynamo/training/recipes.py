"""The paper's seven training recipes, and ours for the heads alone.

They are the paper's table of learning rates with the schedule that all seven share. The batch is 64 sequences
of 2,048 tokens over all processes, whatever the number of GPUs; `accumulation` divides it to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A base on the hub, tokens per row, and the options that differ from `TrainingOptions`' defaults."""

    base: str
    block_size: int
    options: dict[str, Any]


# LR_B of the paper's table; LR_M is 100 times and LR_MB (the heads' gradient scale of 0.1) a tenth of it.
BASE_LR = {"70m": 1e-5, "160m": 6e-6, "410m": 3e-6, "1b": 2e-6, "1.4b": 2e-6, "2.8b": 1.6e-6, "6.9b": 1.2e-6}


def _paper(size: str) -> Recipe:
    rates = {"base_lr": BASE_LR[size], "head_lr": 100 * BASE_LR[size]}
    return Recipe(f"EleutherAI/pythia-{size}", 2048, {**rates, "mixed_precision": "bf16"})


def _quick(size: str) -> Recipe:
    """Ours, for one consumer GPU: the heads alone, a tenth of the tokens in shorter rows."""
    options = {"heads_only": True, "steps": 7_578, "batch_size": 128, "accumulation": 8}
    return Recipe(f"EleutherAI/pythia-{size}", 1024, {**_paper(size).options, **options})


RECIPES = {f"pythia-{size}": _paper(size) for size in BASE_LR} | {
    f"pythia-{size}-quick": _quick(size) for size in ("70m", "160m", "410m", "1b", "1.4b")
}
