"""The loop around a training step, whatever is learned: the optimiser, a log, validations and checkpoints.

What a step learns from depends on nothing but its number, so that a killed run continues from its checkpoint
to the very weights of an uninterrupted one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from dynamo.common.files import append_row
from dynamo.common.memory import peak_memory
from dynamo.model import DynamoForCausalLM
from dynamo.training.options import FREE_OPTIONS, TrainingOptions, learning_rate_scale

ADAMW_BETAS, ADAMW_EPS = (0.9, 0.95), 1e-8


class TrainingLoop(ABC):
    """One run into a folder, which holds `log.jsonl` and, until the run ends, a checkpoint.

    A run whose folder holds a checkpoint continues from it; the options must then be the same, and so must
    `subject`: what else the weights depend on, by name. A subclass says how a step's gradients are made, what
    is measured for validation and how a checkpoint is kept, and looks for one once it is built.
    """

    is_main = True  # whether this process is the one that writes results

    def __init__(
        self, model: DynamoForCausalLM, options: TrainingOptions, output: str | Path, subject: dict[str, Any]
    ):
        set_seed(options.seed)
        self.options, self.output = options, Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        if options.heads_only:
            model.freeze_base()
        groups = model.parameter_groups(options.base_lr, options.head_lr, options.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_scale(step, options)
        )
        self._model = model
        self._run = {"options": asdict(options), "model": model_subject(model), **subject}
        self.step = self.tokens = 0
        self.last_validation: list[float] = []
        self.cost: dict[str, float] = {}  # of this process's steps: tokens_per_second, peak_mb

    @property
    def model(self) -> DynamoForCausalLM:
        return self._model

    def run(self, stop: Callable[[], bool] = lambda: False) -> DynamoForCausalLM:
        """Train to the last step, or until `stop()` is true after a step; the model, in evaluation mode."""
        self._model.train()
        started, before = time.perf_counter(), self.tokens
        progress = tqdm(
            total=self.options.steps,
            initial=self.step,
            unit="step",
            disable=not self.is_main,
            mininterval=2.0,
        )
        while self.step < self.options.steps:
            row = self._gradients()
            if self.options.clip:
                self._clip_gradients(self._model.parameters(), self.options.clip)
            self._optimizer.step()
            self._scheduler.step()
            self._optimizer.zero_grad()
            self.step += 1
            progress.update()
            if self.step % 10 == 0 or self.step == self.options.steps:
                progress.set_postfix_str(" ".join(f"{loss:.3f}" for loss in row["losses"]))
                self.cost = {
                    "tokens_per_second": (self.tokens - before) / (time.perf_counter() - started),
                    "peak_mb": peak_memory(self.model.device) / 1e6,
                }
                rates = [group["lr"] for group in self._optimizer.param_groups]
                self._log({**row, **self.cost, "lr": rates})
            if self._due(self.options.evaluate_every):
                self.validate()
            if self._due(self.options.checkpoint_every):
                self.save_checkpoint()
            if stop():
                self.save_checkpoint()
                break
        progress.close()
        trained = self._trained()
        if self.step == self.options.steps:
            self.validate()
        return trained

    def validate(self) -> list[float]:
        """Measure the held-out rows and log it: mean nats per target of each head; [] without any."""
        measured = self._measure()
        if measured:
            self.last_validation = measured["validation"]
            self._log(measured)
        return self.last_validation

    @abstractmethod
    def _gradients(self) -> dict[str, Any]:
        """Add the gradients of the next step, and count its tokens; what to log: `losses`, one per head."""

    @abstractmethod
    def _measure(self) -> dict[str, Any]:
        """What to log of the held-out rows, `validation` among it; {} without any."""

    @abstractmethod
    def save_checkpoint(self) -> None:
        """Write the run's whole state; the old checkpoint is kept until the new one is complete."""

    @abstractmethod
    def discard_checkpoint(self) -> None:
        """Delete the run's state, once its result is saved elsewhere."""

    _clip_gradients = staticmethod(torch.nn.utils.clip_grad_norm_)

    def _trained(self) -> DynamoForCausalLM:
        return self._model.eval()

    def _due(self, every: int) -> bool:
        """Whether something is to be done between two steps."""
        return every > 0 and self.step % every == 0 and self.step < self.options.steps

    def _log(self, row: dict[str, Any]) -> None:
        if self.is_main:
            append_row(self.output / "log.jsonl", {"step": self.step, "tokens": self.tokens, **row})

    def _refuse_changes(self, run: dict[str, Any]) -> None:
        """Raise ValueError where the run of a checkpoint, its options and its subject, is not this one."""
        was, wanted = ({**each["options"], **each} for each in (run, self._run))
        changed = [
            name
            for name, value in wanted.items()
            if name not in ("options", *FREE_OPTIONS) and was.get(name) != value
        ]
        if changed:
            listed = ", ".join(f"{name}: {was.get(name)} then, {wanted[name]} now" for name in changed)
            raise ValueError(
                f"{self.output}: holds a checkpoint made with other options ({listed}); "
                "use the same options to resume, or another output folder"
            )


def model_subject(model: DynamoForCausalLM) -> dict[str, Any]:
    """The settings on which a model's weights and objective depend."""
    config = model.config
    base = ("hidden_size", "num_hidden_layers", "vocab_size")
    heads = ("num_token_heads", "head_layers", "head_source", "own_output_embedding", "own_final_norm")
    names = (*base, *heads, "head_gradient_scale", "correlator_rank", "correlator_kind")
    return {name: getattr(config, name) for name in names}
