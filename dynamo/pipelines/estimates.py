"""How long a training will take and what memory it needs, before it starts: a rough estimate.

Time is the run's multiplications over what this machine multiplies in a short trial, at the share of it that
training reaches. Memory is weights, gradients and AdamW's two moments in float32, and what one pass keeps for
its way back. A batch of the paper's is far too large for one pass of one GPU; how it is divided changes no
result, so unless options say how, it is divided into the fewest passes that fit into the free memory, with
layers computed twice where nothing else fits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from dynamo.data.sources import local_files
from dynamo.loading import available_memory, default_device, default_dtype
from dynamo.loading.sizes import RESERVE, gigabytes, pythia_shape
from dynamo.model.architectures import model_shape
from dynamo.model.loss import PIECE_LOGITS
from dynamo.model.shape import ModelShape
from dynamo.pipelines.recipe import RecipeRun
from dynamo.pipelines.stages import Stage
from dynamo.training.options import FinetuningRun, TrainingOptions, TrainingRun

EFFICIENCY = 0.4  # of the trial's speed; a round guess, not a measurement
TRIAL = 1024
FILLED = 0.9  # of the free memory, as an estimate may be off
TOKEN_BYTES = 4  # of text
WEIGHT_BYTES, ADAM_BYTES = 4, 16  # of a frozen weight; of one with its gradient and two moments
# Bytes that a pass keeps for each token and hidden unit, as counted with torch's hooks for saved tensors.
LAYER_BYTES = {"no": 72, "bf16": 44}  # of a layer, by mixed precision
AGAIN_BYTES = 4  # of a layer that is computed twice
HEAD_BYTES, ENDS_BYTES = 8, 12  # of an extra head beside its layer; of the embedding and the first head
LOGIT_BYTES = 12  # of a logit of the loss's piece: itself, its softmax, its gradient
RANGES = (  # in words, below so many seconds
    (60, "about a minute"),
    (300, "a few minutes"),
    (900, "5 to 15 minutes"),
    (2700, "15 to 45 minutes"),
    (5400, "about an hour"),
    (86400, "several hours"),
)


@dataclass(frozen=True)
class CostEstimate:
    """Of one training. tokens, seconds: None before the data is fetched; bytes: of the process that trains,
    libraries included; free: bytes of this machine, None where the system does not say."""

    options: TrainingOptions
    tokens: int | None
    seconds: float | None
    bytes: int
    free: int | None

    def in_words(self) -> str:
        options = self.options
        passes = ""
        if options.accumulation > 1 or options.activation_checkpointing:
            passes = f", each step is {options.accumulation} passes"
        if options.activation_checkpointing:
            passes += " and computes layers twice"
        if self.tokens is None:
            return f"time unknown before the data is fetched, {self.memory()}{passes}"
        return f"about {duration(self.seconds)}, {self.memory()}{passes}, {self.tokens:,} tokens"

    def memory(self) -> str:
        free = "" if self.free is None else f" ({gigabytes(self.free)} are free)"
        return f"{gigabytes(self.bytes)} of memory{free}"


@dataclass(frozen=True)
class Estimator:
    """Estimates trainings of one shape on this machine. free: bytes of memory, None where the system does not
    say."""

    shape: ModelShape
    free: int | None

    def estimate(self, options: TrainingOptions, length: int, tokens: int | None) -> CostEstimate:
        """Of `tokens` in rows of up to `length`."""
        seconds = tokens and training_seconds(self.shape, options, tokens, machine_speed())
        return CostEstimate(options, tokens, seconds, self.bytes(options, length), self.free)

    def bytes(self, options: TrainingOptions, length: int) -> int:
        """Of the process that trains."""
        rows = options.batch_size // options.accumulation
        return RESERVE + training_bytes(self.shape, options) + pass_bytes(self.shape, options, rows * length)

    def fit(self, options: TrainingOptions, length: int) -> TrainingOptions:
        """The same batch in the fewest passes that fit, no fewer than it has; else one row at a time."""
        fitting = options
        for again in sorted({options.activation_checkpointing, True}):
            for passes in range(min(options.accumulation, options.batch_size), options.batch_size + 1):
                if options.batch_size % passes == 0:
                    fitting = replace(options, accumulation=passes, activation_checkpointing=again)
                    if self.free is None or self.bytes(fitting, length) <= FILLED * self.free:
                        return fitting
        return fitting


def fit_stages(stages: Sequence[Stage], run: RecipeRun) -> tuple[list[Stage], dict[str, CostEstimate]]:
    """The stages, with the batches of those that train divided to fit unless `run` says how, and the costs of
    these by name."""
    base, free = _base_shape(run), available_memory(default_device())
    fitted, costs = [], {}
    for stage in stages:
        if isinstance(stage.task, TrainingRun | FinetuningRun):
            extra = 0 if stage.name == "chat-base" else run.heads - 1
            estimator = Estimator(replace(base, extra_heads=extra), free)
            length, tokens = _tokens(stage.task)
            options = stage.task.options
            given = run.train if isinstance(stage.task, TrainingRun) else run.finetune
            if "accumulation" not in given:
                options = estimator.fit(options, length)
                stage = replace(stage, task=replace(stage.task, options=options))
            costs[stage.name] = estimator.estimate(options, length, tokens)
        fitted.append(stage)
    return fitted, costs


def _tokens(run: TrainingRun | FinetuningRun) -> tuple[int, int | None]:
    """The most tokens of a row, and those that a run reads in all, as far as files of this machine say."""
    batch = run.options.batch_size
    if isinstance(run, TrainingRun):
        return run.block_size, run.options.steps * batch * run.block_size
    files = [local_files(name) for name in run.data]
    most = math.inf if run.steps is None else run.steps * batch * run.max_length
    if None not in files:
        size = sum(path.stat().st_size for found in files for path in found)
        most = min(most, run.epochs * size / TOKEN_BYTES)
    return run.max_length, None if most == math.inf else round(most)


def _base_shape(run: RecipeRun) -> ModelShape:
    """Of a local base by its own configuration, else of the suite's."""
    if run.base and (Path(run.base) / "config.json").is_file():
        from transformers import AutoConfig

        return model_shape(AutoConfig.from_pretrained(run.base)).base
    return pythia_shape(run.recipe.removeprefix("pythia-").removesuffix("-quick"))


# ---- the formulas


def training_seconds(shape: ModelShape, options: TrainingOptions, tokens: int, speed: float) -> float:
    """A forward pass multiplies every parameter once per token, a backward pass twice where gradients go."""
    return tokens * (shape.parameters + 2 * _trained(shape, options)) / (EFFICIENCY * speed)


def training_bytes(shape: ModelShape, options: TrainingOptions) -> int:
    """Memory of one process that holds everything, without what a pass keeps."""
    trained = _trained(shape, options)
    return WEIGHT_BYTES * (shape.parameters - trained) + ADAM_BYTES * trained


def _trained(shape: ModelShape, options: TrainingOptions) -> int:
    return shape.extra_parameters if options.heads_only else shape.parameters


def pass_bytes(shape: ModelShape, options: TrainingOptions, tokens: int) -> int:
    """Memory of one forward and backward pass of so many tokens at once."""
    layer, embedding = shape.layer, 0 if options.heads_only else shape.embedding_parameters
    trained = shape.all_layers - (shape.layers if options.heads_only else 0)
    kept = LAYER_BYTES[options.mixed_precision]
    if options.activation_checkpointing:
        kept += AGAIN_BYTES * shape.all_layers
    else:
        kept *= trained
    kept += HEAD_BYTES * shape.extra_heads + ENDS_BYTES
    logits = LOGIT_BYTES * min(tokens * shape.vocabulary, PIECE_LOGITS)
    gradients = WEIGHT_BYTES * embedding * (1 + shape.extra_heads)  # the embedding's own, of each head
    halves = 0
    if options.mixed_precision == "bf16":
        halves = 2 * (trained * layer.matrix_parameters + embedding)
    return tokens * layer.hidden * kept + logits + gradients + halves


@cache
def machine_speed(seconds: float = 0.3) -> float:
    """Multiply-adds a second of this machine's first GPU, or of its CPU, measured once."""
    device = default_device()
    on_gpu = device.type == "cuda"
    size = 4 * TRIAL if on_gpu else TRIAL
    a = torch.randn(size, size, device=device, dtype=default_dtype(device))

    def multiply() -> None:
        a @ a
        if on_gpu:
            torch.cuda.synchronize()

    multiply()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        multiply()
        count += 1
    return count * size**3 / (time.perf_counter() - started)


def duration(seconds: float) -> str:
    """In words, as roughly as it is known."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds) if seconds < 20 else round(seconds, -1)):.0f} seconds"


def rough_duration(seconds: float) -> str:
    """In words, as a range."""
    return next((words for most, words in RANGES if seconds < most), "more than a day")
