"""What a training run is: its options, the paper's values where it names them.

`TrainingOptions` steers the optimiser; `TrainingRun` and `FinetuningRun` add what `train` and `finetune`
start from, read and write. The flags of both commands are these fields, and a run can be written as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamo.common.options import check_types, from_values, option, required, to_arguments
from dynamo.common.validation import short_repr
from dynamo.data.reading import DATA_HELP, STRICT_HELP
from dynamo.training.recipes import RECIPES


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
    mixed_precision: str = option("no", "precision of the forward pass", ("no", "bf16"))
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


def accept_one_name(run: Any) -> None:
    """A run's `data` may be given as one name."""
    if isinstance(run.data, str):
        object.__setattr__(run, "data", (run.data,))


# May differ when a run continues from a checkpoint, as the weights do not depend on them.
FREE_OPTIONS = ("checkpoint_every", "evaluate_every", "accumulation", "activation_checkpointing", "compile")


def learning_rate_scale(step: int, options: TrainingOptions) -> float:
    """Share of the full learning rate at `step` (0-based): linear warm-up, then a cosine to `final_lr`."""
    rising = max(1, round(options.steps * options.warmup))
    if step < rising:
        return (step + 1) / rising
    cosine = 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, options.steps - rising)))
    return options.final_lr + (1.0 - options.final_lr) * cosine


@dataclass(frozen=True)
class TrainingRun:
    """One training of token heads (or of a base) into a folder; `training_run` fills in a recipe's values."""

    data: tuple[str, ...] = required(DATA_HELP)
    output: Path = required("folder of the run; the result is OUTPUT/model")
    model: str | None = option(None, "base or DynaMo model to start from: folder, GGUF file or hub id")
    new: str | None = option(None, "instead: a new GPT-NeoX of LAYERSxHIDDENxHEADS, such as 8x256x4")
    recipe: str | None = option(
        None,
        "base, block size and options of one of the paper's seven models, or ours for its heads alone "
        "(-quick); flags that are given go first",
        RECIPES,
    )
    tokenizer: str | None = option(None, "folder of the tokenizer, for --new")
    validation: str | None = option(None, "the same, held out: one of these")
    heads: int | None = option(
        None, "token heads, 1 to 5, of a model that has none yet (default: 3); a DynaMo model keeps its own"
    )
    head_layers: int | None = option(None, "decoder layers per extra head (default: 1)")
    head_init: str | None = option(None, "of the extra heads (default: random)", ("random", "copy"))
    head_source: str | None = option(None, "where they start (default: penultimate)", ("penultimate", "last"))
    own_output_embedding: bool | None = option(None, "an output embedding per extra head")
    correlator_rank: int | None = option(
        None, "inner width of a correlator per extra head, such as 256 (ours; default: 0, none)"
    )
    correlator_kind: str | None = option(
        None,
        "what it sees: the head's state and all tokens before, or the last token alone",
        ("mlp", "markov"),
    )
    distill: float | None = option(
        None,
        "with --heads-only, on conversations: the base's own distribution as this share of the heads' loss, "
        "0 to 1, on answers only (ours); the base runs once per token, and --batch-size counts conversations",
    )
    states: Path | None = option(None, "folder of what --distill keeps of the base (default: OUTPUT/states)")
    position_share: float = option(0.25, "of the answer tokens, how many --distill learns from at each step")
    overlap_weight: float = option(
        0.0,
        "weight in --distill's loss of the share of drafts that the base would reject (ours): exact mode "
        "then keeps more of them",
    )
    block_size: int = option(512, "tokens per block, unless a recipe says otherwise")
    max_length: int = option(1024, "positions of a --new model")
    tokens: Path | None = option(None, "folder of the tokenised data (default: OUTPUT/tokens)")
    workers: int = option(1, "data files tokenised at once")
    strict: bool = option(False, STRICT_HELP)
    options: TrainingOptions = TrainingOptions()

    def __post_init__(self):
        accept_one_name(self)
        check_types(self)
        if not 0 < self.position_share <= 1:
            raise ValueError(f"position_share: expected above 0, up to 1, got {self.position_share}")
        if not 0 <= self.overlap_weight < float("inf"):
            raise ValueError(f"overlap_weight: expected 0 or more, got {self.overlap_weight}")
        if self.distill is None:
            if self.overlap_weight:
                raise ValueError("overlap_weight: it is part of --distill's loss; add --distill 0.5")
            return
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill: expected a share, 0 to 1, got {self.distill}")
        if not self.options.heads_only:
            raise ValueError("distill: it learns from a base that stays as it is; add --heads-only")
        unused = ("accumulation", "activation_checkpointing", "compile")
        for name in unused:
            if getattr(self.options, name) != getattr(TrainingOptions(), name):
                raise ValueError(f"{name}: not for --distill, which runs the heads alone; leave it out")

    def arguments(self) -> list[str]:
        """The command line of this run, without `python -m dynamo`."""
        usual = training_run(data=self.data, output=self.output, recipe=self.recipe)
        return ["train", *to_arguments(self, replace(usual, recipe=None))]


def training_run(**values: Any) -> TrainingRun:
    """A run from values by name, those of `TrainingOptions` among them; what is not given is the recipe's."""
    recipe = RECIPES.get(values.get("recipe"))
    if recipe is None:
        return from_values(TrainingRun, values)
    base = {} if values.get("new") else {"model": recipe.base}
    return from_values(TrainingRun, {**base, "block_size": recipe.block_size, **recipe.options, **values})


@dataclass(frozen=True)
class FinetuningRun:
    """One finetuning on instructions. Rates, batch and warm-up are ours: the paper names none for it."""

    model: str = required("base or DynaMo model: folder, GGUF file or hub id")
    data: tuple[str, ...] = required(DATA_HELP)
    output: Path = required("folder of the run; the result is OUTPUT/model")
    validation: str | None = option(None, "the same, held out: one of these")
    min_rating: float | None = option(None, "leave out what is rated lower, such as 4.5")
    ratings: str | None = option(
        None, "JSON or JSON lines, one for each example that is read (default: in the rows)"
    )
    epochs: float = option(3.0, "times the data is read")
    steps: int | None = option(None, "optimiser steps, instead of --epochs")
    max_length: int = option(512, "tokens to cut at")
    strict: bool = option(False, STRICT_HELP)
    options: TrainingOptions = TrainingOptions(
        base_lr=2e-5, head_lr=2e-4, warmup=0.03, evaluate_every=0, checkpoint_every=50
    )

    def __post_init__(self):
        accept_one_name(self)
        check_types(self)

    def arguments(self) -> list[str]:
        """The command line of this run, without `python -m dynamo`."""
        usual = FinetuningRun(self.model, self.data, self.output)
        return ["finetune", *to_arguments(self, usual)]
