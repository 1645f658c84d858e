"""Training by the modified causal-LM objective (paper, section 3.2), with accelerate.

The model computes its own losses; this module owns the loop around it: batches that are a function of the
step number, AdamW with the base's and the heads' learning rates, warm-up and cosine decay to zero, validation
losses per head, and checkpoints from which a killed run goes on to the very weights of an uninterrupted one.
Finetuning is this loop on other data; plain causal-LM training is this loop on a model with one head.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from dynamo.data import TokenBlocks
from dynamo.model import IGNORED_LABEL, DynamoForCausalLM
from dynamo.options import option


@dataclass(frozen=True)
class TrainingOptions:
    """Options of one training run: the paper's values, or ours (marked) where it names none."""

    steps: int = option(75_782, "optimiser steps")
    batch_size: int = option(64, "blocks per step, over all processes")
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
    compile: bool = option(False, "torch.compile the model (needs a compiler)")

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("base_lr", "head_lr", "weight_decay", "clip", "evaluate_every", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("warmup", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share, 0 to 1, got {getattr(self, name)}")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision: expected no or bf16, got {self.mixed_precision!r}")


ADAMW_BETAS = (0.9, 0.95)
ADAMW_EPS = 1e-8


def learning_rate_scale(step: int, options: TrainingOptions) -> float:
    """Share of the full learning rate at `step` (0-based): linear warm-up, then a cosine to `final_lr`."""
    rising = max(1, round(options.steps * options.warmup))
    if step < rising:
        return (step + 1) / rising
    cosine = 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, options.steps - rising)))
    return options.final_lr + (1.0 - options.final_lr) * cosine


@torch.no_grad()
def document_losses(
    model: DynamoForCausalLM, documents: Sequence[np.ndarray], cut: int = 512, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Sum of nats and number of targets, (heads,) each, over documents read alone from their start.

    Documents are cut at `cut` tokens. Sorted by length and padded; padding is no target. The model's mode is
    kept.
    """
    training = model.training
    model.eval()
    nats = torch.zeros(model.config.num_token_heads, dtype=torch.float64)
    targets = torch.zeros(model.config.num_token_heads, dtype=torch.int64)
    for ids, labels in _padded_batches(documents, cut, batch_size):
        output = model(ids.to(model.device), labels=labels.to(model.device), return_logits=False)
        counts = torch.stack([(labels[:, n:] != IGNORED_LABEL).sum() for n in range(1, len(nats) + 1)])
        nats += output.head_losses.double().cpu() * counts
        targets += counts
    model.train(training)
    return nats, targets


def _padded_batches(
    documents: Sequence[np.ndarray], cut: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    by_length = sorted((document[:cut] for document in documents), key=len)
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        labels = torch.full((len(rows), max(map(len, rows))), IGNORED_LABEL)
        for row, document in zip(labels, rows, strict=True):
            row[: len(document)] = torch.from_numpy(document.astype(np.int64))
        yield labels.clamp(min=0), labels


class Trainer:
    """One training run into a folder, which gets `checkpoint/` while it lasts and `log.jsonl`.

    A run whose folder holds a checkpoint goes on from it; the options must then be the same.
    """

    def __init__(
        self,
        model: DynamoForCausalLM,
        blocks: TokenBlocks,
        options: TrainingOptions,
        output: str | Path,
        validation: Sequence[np.ndarray] = (),
        validation_cut: int = 512,
    ):
        set_seed(options.seed)
        self.options = options
        self.output = Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        self._blocks = blocks
        self._validation, self._cut = validation, validation_cut
        self._accelerator = Accelerator(mixed_precision=options.mixed_precision)
        if options.batch_size % self._accelerator.num_processes:
            raise ValueError(
                f"batch_size: {options.batch_size} blocks do not divide by "
                f"{self._accelerator.num_processes} processes; use a multiple"
            )
        if options.heads_only:
            model.freeze_base()
        groups = model.parameter_groups(options.base_lr, options.head_lr, options.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_scale(step, options)
        )
        # What a checkpoint must have in common with the run that goes on from it, besides the options.
        self._subject = {"blocks": blocks.fingerprint(), "model": _shape(model)}
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._scheduler = scheduler
        self._accelerator.register_for_checkpointing(scheduler)
        self._forward = torch.compile(self._model) if options.compile else self._model
        self.step = 0
        self.last_validation: list[float] = []
        self._resume()

    @property
    def model(self) -> DynamoForCausalLM:
        """The model in training; with mixed precision its forward pass is still the run's."""
        return self._accelerator.unwrap_model(self._model)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes results."""
        return self._accelerator.is_main_process

    def run(self, stop: Callable[[], bool] = lambda: False) -> DynamoForCausalLM:
        """Train to the last step; the model, in evaluation mode. `stop` is asked after every step."""
        self._model.train()
        started, first = time.perf_counter(), self.step
        progress = tqdm(
            total=self.options.steps,
            initial=self.step,
            unit="step",
            disable=not self._accelerator.is_main_process,
            mininterval=2.0,
        )
        while self.step < self.options.steps:
            losses = self._train_step()
            progress.update()
            if self.step % 10 == 0 or self.step == self.options.steps:
                seconds = time.perf_counter() - started
                tokens = (self.step - first) * self.options.batch_size * self._blocks.block_size
                row = {"step": self.step, "losses": losses.tolist(), "tokens_per_second": tokens / seconds}
                progress.set_postfix_str(" ".join(f"{loss:.3f}" for loss in losses.tolist()))
                self._log(row | {"lr": [group["lr"] for group in self._optimizer.param_groups]})
            if self._due(self.options.evaluate_every) and self.step < self.options.steps:
                self._log({"step": self.step, "validation": self.validate()})
            if self._due(self.options.checkpoint_every) and self.step < self.options.steps:
                self.save_checkpoint()
            if stop():
                self.save_checkpoint()
                break
        progress.close()
        # From here on the model computes in its own precision again, and is measured in it.
        model = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False).eval()
        if self.step == self.options.steps:
            self._log({"step": self.step, "validation": self.validate()})
        return model

    def discard_checkpoint(self) -> None:
        """Forget the run's state, once its result is safe elsewhere."""
        if self.is_main:
            for folder in (self._checkpoint, old_folder(self._checkpoint)):
                shutil.rmtree(folder, ignore_errors=True)

    def validate(self) -> list[float]:
        """Mean nats per target of each head on the validation documents; [] without any."""
        if not len(self._validation):
            return []
        nats, targets = document_losses(self.model, self._validation, self._cut)
        self.last_validation = (nats / targets.clamp(min=1)).tolist()
        return self.last_validation

    def _train_step(self) -> Tensor:
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        share = self.options.batch_size // world
        start = self.step * self.options.batch_size + rank * share
        ids = torch.from_numpy(self._blocks.batch(start, share)).to(self._accelerator.device)
        output = self._forward(ids, labels=ids)
        self._accelerator.backward(output.loss)
        if self.options.clip:
            self._accelerator.clip_grad_norm_(self._model.parameters(), self.options.clip)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.step += 1
        return self._accelerator.reduce(output.head_losses, reduction="mean")

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log(self, row: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            with open(self.output / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")

    # -- checkpoints
    # ------------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.output / "checkpoint"

    def save_checkpoint(self) -> None:
        """Write the run's whole state; the old checkpoint stands until the new one is complete."""
        partial = self.output / "checkpoint.partial"
        if self._accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(partial), safe_serialization=True)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            run = {"step": self.step, "options": asdict(self.options), **self._subject}
            (partial / "run.json").write_text(json.dumps(run))
            replace_folder(partial, self._checkpoint)
        self._accelerator.wait_for_everyone()

    def _resume(self) -> None:
        # A kill between the two renames of `replace_folder` leaves the whole old checkpoint under this name.
        found = next(
            (path for path in (self._checkpoint, old_folder(self._checkpoint)) if path.exists()), None
        )
        if found is None:
            return
        run = json.loads((found / "run.json").read_text())
        now = {**asdict(self.options), **self._subject}
        then = {**run["options"], **{name: run.get(name) for name in self._subject}}
        changed = {
            name: (then.get(name), value)
            for name, value in now.items()
            if then.get(name) != value and name not in ("checkpoint_every", "evaluate_every")
        }
        if changed:
            listed = ", ".join(f"{name}: {was} then, {now} now" for name, (was, now) in changed.items())
            raise ValueError(
                f"{self.output}: holds a checkpoint made with other options ({listed}); "
                "use the same options to resume, or another output folder"
            )
        self._accelerator.load_state(str(found))
        self.step = run["step"]


def _shape(model: DynamoForCausalLM) -> dict[str, Any]:
    """What must agree for a checkpoint's weights to fit a model and its objective to be the same."""
    config = model.config
    base = ("hidden_size", "num_hidden_layers", "vocab_size")
    heads = ("num_token_heads", "head_layers", "head_source", "own_output_embedding", "own_final_norm")
    names = (*base, *heads, "head_gradient_scale")
    return {name: getattr(config, name) for name in names}


def old_folder(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder in another's place; at every moment one complete folder exists."""
    old = old_folder(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def save_model(
    model: torch.nn.Module, tokenizer: Any, output: str | Path, extra: Iterable[tuple[str, str]] = ()
) -> None:
    """Write a model folder (safetensors, tokenizer, further text files) at once or not at all."""
    output = Path(output)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for name, content in extra:
        (partial / name).write_text(content, encoding="utf-8")
    replace_folder(partial, output)
