"""What a training run is: its options, its learning rate at every step, and the paper's seven recipes.

The recipes are the paper's table of learning rates with the schedule that all seven share. The batch is 64
sequences of 2,048 tokens over all processes, whatever the number of GPUs; `accumulation` divides it to fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dynamo.common.options import check_types, option
from dynamo.common.validation import short_repr


@dataclass(frozen=True)
class TrainingOptions:
    """Options of one training run: the paper's values, or ours (marked) where it names none."""

    steps: int = option(75_782, "optimiser steps")
    batch_size: int = option(64, "rows per step, over all processes")
    accumulation: int = option(1, "forward passes per step and process, each over its part of the batch")
    base_lr: float = option(1e-5, "LR_B: learning rate of the base model")
    head_lr: float = option(1e-3, "LR_M: learning rate of the extra heads")
    warmup: float = option(0.01, "share of the steps with rising learning rate")
    final_lr: float = option(0.0, "learning rate at the end of the cosine, as a share; 1 keeps it constant")
    weight_decay: float = option(
        0.0, "AdamW's, not on norms, biases and embeddings (ours: the paper names none)"
    )
    clip: float = option(1.0, "largest gradient norm, 0 for none (ours: the paper names none)")
    heads_only: bool = option(False, "train the extra heads only (the paper's variant H)")
    seed: int = option(0, "seed of data order, new layers and dropout")
    evaluate_every: int = option(5_000, "steps between validations, 0 for none before the end")
    checkpoint_every: int = option(500, "steps between checkpoints, 0 for none")
    mixed_precision: str = option("no", "no or bf16")
    activation_checkpointing: bool = option(
        False, "compute each layer twice instead of keeping its activations"
    )
    compile: bool = option(False, "torch.compile the model (needs a compiler)")

    def __post_init__(self):
        check_types(self)
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {short_repr(getattr(self, name))}")
        for name in ("base_lr", "head_lr", "weight_decay", "clip", "evaluate_every", "checkpoint_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {short_repr(self.seed)}")
        for name in ("warmup", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share, 0 to 1, got {getattr(self, name)}")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision: expected no or bf16, got {self.mixed_precision!r:.80}")


# What may change when a run goes on from a checkpoint: its weights do not depend on them.
FREE_OPTIONS = ("checkpoint_every", "evaluate_every", "accumulation", "activation_checkpointing", "compile")


def learning_rate_scale(step: int, options: TrainingOptions) -> float:
    """Share of the full learning rate at `step` (0-based): linear warm-up, then a cosine to `final_lr`."""
    rising = max(1, round(options.steps * options.warmup))
    if step < rising:
        return (step + 1) / rising
    cosine = 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, options.steps - rising)))
    return options.final_lr + (1.0 - options.final_lr) * cosine


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
