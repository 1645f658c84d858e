"""What a recipe's training stages will take here, and into how many passes their batches must be divided.

A batch of the paper's is far too large for one pass of one GPU. How it is divided changes no result, so where
nothing is said about it the fewest passes that fit into the memory that is free are taken, with layers
computed twice where nothing else fits. Rough, as `dynamo.pipelines.estimates` is, and said to be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamo.commands import finetune, train
from dynamo.common.options import from_arguments
from dynamo.loading import available_memory, default_device
from dynamo.loading.sizes import PYTHIA, RESERVE, Shape, gigabytes, layer_parameters
from dynamo.pipelines import estimates
from dynamo.pipelines.stages import Stage
from dynamo.training.recipes import RECIPES, TrainingOptions

TRAINERS = {"train": train, "finetune": finetune}
FILLED = 0.9  # of the free memory, as an estimate may be off
TOKEN_BYTES = 4  # of text


@dataclass(frozen=True)
class CostEstimate:
    """Of one stage. again: whether its layers are computed twice; free: bytes, None where that is unknown."""

    seconds: float
    bytes: int
    free: int | None
    tokens: int
    passes: int
    again: bool

    def in_words(self) -> str:
        there = "" if self.free is None else f" ({gigabytes(self.free)} are free)"
        more = " and computes layers twice" if self.again else ""
        divided = f", each step is {self.passes} passes{more}" if self.passes > 1 or self.again else ""
        time = estimates.duration(self.seconds)
        return f"about {time}, {gigabytes(self.bytes)} of memory{there}{divided}, {self.tokens:,} tokens"


def prospects(
    stages: Sequence[Stage], recipe: str, base: str, heads: int
) -> tuple[list[Stage], dict[str, CostEstimate]]:
    """The stages, those that train with batches divided to fit, and what each of these takes.

    base: the folder or hub id to start from, "" for the recipe's own; heads: of the model in the making.
    """
    shape, speed = _shape(recipe, base), estimates.multiplications_per_second()
    free = available_memory(default_device())
    fitted, told = [], {}
    for stage in stages:
        if stage.arguments and stage.arguments[0] in TRAINERS:
            own = 1 if stage.name == "chat-base" else heads
            stage, told[stage.name] = _fitted(stage, recipe, shape, own, speed, free)
        fitted.append(stage)
    return fitted, told


def _fitted(
    stage: Stage, recipe: str, shape: Shape, heads: int, speed: float, free: int | None
) -> tuple[Stage, CostEstimate]:
    options, length, tokens = _asked(stage, recipe)
    parameters = shape.layers * layer_parameters(shape.hidden) + 2 * shape.vocabulary * shape.hidden
    extra = (heads - 1) * layer_parameters(shape.hidden)
    held = RESERVE + estimates.training_bytes(parameters, extra, options.heads_only)

    def needed(rows: int, again: bool) -> int:
        return held + estimates.pass_bytes(
            rows * length, shape.layers, shape.hidden, shape.vocabulary, heads - 1,
            options.heads_only, options.mixed_precision, again,
        )  # fmt: skip

    def fewest(again: bool) -> int | None:
        return estimates.passes(
            options.batch_size,
            lambda rows: free is None or needed(rows, again) <= FILLED * free,
            options.accumulation,
        )

    passes, again, flags = options.accumulation, options.activation_checkpointing, []
    if not any(argument.startswith("--accumulation") for argument in stage.arguments):
        again = again or fewest(False) is None
        passes = fewest(again) or options.batch_size
        flags = ["--accumulation", str(passes)] if passes != options.accumulation else []
        flags += ["--activation-checkpointing"] if again != options.activation_checkpointing else []
    seconds = estimates.training_seconds(parameters, extra, tokens, options.heads_only, speed)
    prospect = CostEstimate(seconds, needed(options.batch_size // passes, again), free, tokens, passes, again)
    return replace(stage, arguments=[*stage.arguments, *flags]), prospect


def _asked(stage: Stage, recipe: str) -> tuple[TrainingOptions, int, int]:
    """A stage's options, the tokens of a row at most, and those that it reads in all."""
    verb, *flags = stage.arguments
    parser = argparse.ArgumentParser(prog=f"python -m dynamo {verb}")
    TRAINERS[verb].configure(parser)
    asked = parser.parse_args(flags)
    if verb == "train":
        options = from_arguments(TrainingOptions, asked, **RECIPES[recipe].options)
        length = asked.block_size or RECIPES[recipe].block_size
        return options, length, options.steps * options.batch_size * length
    read = asked.epochs * Path(asked.data).stat().st_size / TOKEN_BYTES
    if asked.steps is None:
        asked.steps = 1  # as epochs say how many, which is found out when the data is encoded
    else:
        read = min(read, asked.steps * asked.batch_size * asked.max_length)
    return from_arguments(TrainingOptions, asked), asked.max_length, round(read)


def _shape(recipe: str, base: str) -> Shape:
    """Of the base: a local one's by its own configuration, else the suite's."""
    if base and (Path(base) / "config.json").is_file():
        from transformers import GPTNeoXConfig

        config: Any = GPTNeoXConfig.from_pretrained(base)
        return Shape(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.vocab_size
        )
    return PYTHIA[recipe.removeprefix("pythia-").removesuffix("-quick")]
