"""Training by the modified causal-LM objective (paper, section 3.2), with accelerate.

The model computes its own losses; this module owns the loop around it: batches that depend on nothing but the
step number, divided over processes and forward passes; AdamW with the base's and the heads' learning rates;
validation losses per head; and checkpoints from which a killed run continues to exactly the weights of an
uninterrupted one. Losses and gradients are those of the whole batch, however it is divided. Finetuning is
this loop on other rows; plain causal-LM training is this loop on a model with one head.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from dynamo.common.files import append_row, being_written, old_folder, replace_folder
from dynamo.common.memory import peak_memory
from dynamo.data.held_out import held_out_nats
from dynamo.model import DynamoForCausalLM, count_targets
from dynamo.training.options import FREE_OPTIONS, TrainingOptions, learning_rate_scale

VALIDATION_BATCH = 16  # documents
ADAMW_BETAS, ADAMW_EPS = (0.9, 0.95), 1e-8


class Rows(Protocol):
    """An endless sequence of training rows, each a function of its number (`TokenBlocks`)."""

    def fingerprint(self) -> str: ...

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows start .. start + count: ids and labels (count, length) int64, -100 where nothing is scored."""


class Trainer:
    """One training run into a folder, which holds `log.jsonl` and, until the run ends, `checkpoint/`.

    A run whose folder holds a checkpoint continues from it; the options must then be the same. penalty: added
    to each step's loss, a function of the weights alone (not for sharded weights).
    """

    def __init__(
        self,
        model: DynamoForCausalLM,
        rows: Rows,
        options: TrainingOptions,
        output: str | Path,
        validation: Sequence[np.ndarray] = (),
        validation_cut: int = 512,
        validation_labels: Sequence[np.ndarray] | None = None,
        penalty: Callable[[DynamoForCausalLM], Tensor | float] = lambda model: 0.0,
    ):
        set_seed(options.seed)
        self.options, self.output, self._penalty = options, Path(output), penalty
        self.output.mkdir(parents=True, exist_ok=True)
        self._rows, self._validation = rows, validation
        self._cut, self._validation_labels = validation_cut, validation_labels
        self._accelerator = Accelerator(mixed_precision=options.mixed_precision)
        world = self._accelerator.num_processes
        if options.batch_size % (world * options.accumulation):
            raise ValueError(
                f"batch_size: {options.batch_size} rows do not divide by {world} processes x accumulation "
                f"{options.accumulation}; use a multiple of {world * options.accumulation}"
            )
        if options.activation_checkpointing:
            model.activation_checkpointing_enable()
        if options.heads_only:
            model.freeze_base()
        groups = model.parameter_groups(options.base_lr, options.head_lr, options.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_scale(step, options)
        )
        # Besides the options, what must be the same when a run continues from a checkpoint.
        self._subject = {"blocks": rows.fingerprint(), "model": model_subject(model)}
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._scheduler = scheduler
        self._accelerator.register_for_checkpointing(scheduler)
        self._forward = torch.compile(self._model) if options.compile else self._model
        self.step = 0
        self.last_validation: list[float] = []
        self.cost: dict[str, float] = {}  # of this process's steps: tokens_per_second, peak_mb
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
        """Train to the last step, or until `stop()` is true after a step; the model, in evaluation mode.

        Where weights are sharded, the main process gets the whole model and the others their shards.
        """
        self._model.train()
        started, self._tokens = time.perf_counter(), 0
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
                progress.set_postfix_str(" ".join(f"{loss:.3f}" for loss in losses.tolist()))
                self.cost = {
                    "tokens_per_second": self._tokens / (time.perf_counter() - started),
                    "peak_mb": peak_memory(self._accelerator.device) / 1e6,
                }
                rates = [group["lr"] for group in self._optimizer.param_groups]
                self._log({"step": self.step, "losses": losses.tolist(), **self.cost, "lr": rates})
            if self._due(self.options.evaluate_every) and self.step < self.options.steps:
                self._log({"step": self.step, "validation": self.validate()})
            if self._due(self.options.checkpoint_every) and self.step < self.options.steps:
                self.save_checkpoint()
            if stop():
                self.save_checkpoint()
                break
        progress.close()
        # Without the wrapper the model computes, and is measured, in its own precision again.
        model = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False).eval()
        if self.step == self.options.steps:
            self._log({"step": self.step, "validation": self.validate()})
        if self._accelerator.distributed_type == DistributedType.FSDP:
            return gathered(model, self._accelerator.get_state_dict(self._model))
        return model

    def discard_checkpoint(self) -> None:
        """Delete the run's state, once its result is saved elsewhere."""
        if self.is_main:
            for folder in (self._checkpoint, old_folder(self._checkpoint)):
                shutil.rmtree(folder, ignore_errors=True)

    def validate(self) -> list[float]:
        """Mean nats per target of each head on the validation documents; [] without any."""
        if not len(self._validation):
            return []
        nats, targets = held_out_nats(
            self.model, self._validation, self._cut, VALIDATION_BATCH, self._validation_labels
        )
        self.last_validation = (nats.sum(0) / targets.sum(0).clip(min=1)).tolist()
        return self.last_validation

    def _train_step(self) -> Tensor:
        """One optimiser step; each head's mean nats over the whole batch."""
        parts = [self._part(number) for number in range(self.options.accumulation)]
        heads = self.model.config.num_token_heads
        # Parts may hold different numbers of targets, so all are divided by the whole batch's.
        counts = torch.stack([count_targets(labels, heads) for _, labels in parts]).sum(0)
        counts = self._accelerator.reduce(counts, reduction="sum")
        losses = torch.zeros(heads, device=self._accelerator.device)
        for number, (ids, labels) in enumerate(parts):
            waiting = number + 1 < len(parts)
            with self._accelerator.no_sync(self._model) if waiting else nullcontext():
                output = self._forward(ids, labels=labels, target_counts=counts)
                # Gradients are averaged over processes, but this loss is a sum over them.
                loss = output.loss * self._accelerator.num_processes
                self._accelerator.backward(loss + (0.0 if waiting else self._penalty(self.model)))
            losses += output.head_losses
            self._tokens += ids.numel() * self._accelerator.num_processes
        if self.options.clip:
            self._accelerator.clip_grad_norm_(self._model.parameters(), self.options.clip)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.step += 1
        return self._accelerator.reduce(losses, reduction="sum")

    def _part(self, number: int) -> tuple[Tensor, Tensor]:
        """Ids and labels of this process's forward pass `number` in this step."""
        options, accelerator = self.options, self._accelerator
        size = options.batch_size // (accelerator.num_processes * options.accumulation)
        before = accelerator.process_index * options.accumulation + number
        rows = self._rows.batch(self.step * options.batch_size + before * size, size)
        ids, labels = (torch.from_numpy(each).to(accelerator.device) for each in rows)
        return ids, labels

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log(self, row: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            append_row(self.output / "log.jsonl", row)

    # -- checkpoints --------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.output / "checkpoint"

    def save_checkpoint(self) -> None:
        """Write the run's whole state; the old checkpoint is kept until the new one is complete."""
        partial = self.output / "checkpoint.partial"
        if self._accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        with being_written(partial):
            self._accelerator.save_state(str(partial), safe_serialization=True)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            run = {"step": self.step, "options": asdict(self.options), **self._subject}
            (partial / "run.json").write_text(json.dumps(run))
            replace_folder(partial, self._checkpoint)
        self._accelerator.wait_for_everyone()

    def _resume(self) -> None:
        # A kill between the two renames of `replace_folder` leaves the complete old checkpoint there.
        places = self._checkpoint, old_folder(self._checkpoint)
        found = next((path for path in places if path.exists()), None)
        if found is None:
            return
        run = json.loads((found / "run.json").read_text())
        refuse_changes(self.output, run, {"options": asdict(self.options), **self._subject})
        self._accelerator.load_state(str(found))
        self.step = run["step"]


def refuse_changes(output: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError where a checkpoint's run, its options and its subject, is not this one."""
    was, wanted = ({**run["options"], **{k: run[k] for k in run if k != "options"}} for run in (then, now))
    changed = [name for name, value in wanted.items() if was.get(name) != value and name not in FREE_OPTIONS]
    if changed:
        listed = ", ".join(f"{name}: {was.get(name)} then, {wanted[name]} now" for name in changed)
        raise ValueError(
            f"{output}: holds a checkpoint made with other options ({listed}); "
            "use the same options to resume, or another output folder"
        )


def gathered(model: DynamoForCausalLM, state: dict[str, Tensor]) -> DynamoForCausalLM:
    """A model on the CPU with the weights gathered from a sharded one; `model` itself if there are none."""
    if not state:
        return model
    whole = DynamoForCausalLM(model.config)
    whole.load_state_dict(state)
    whole.generation_config = model.generation_config
    return whole.eval()


def model_subject(model: DynamoForCausalLM) -> dict[str, Any]:
    """The settings on which a model's weights and objective depend."""
    config = model.config
    base = ("hidden_size", "num_hidden_layers", "vocab_size")
    heads = ("num_token_heads", "head_layers", "head_source", "own_output_embedding", "own_final_norm")
    names = (*base, *heads, "head_gradient_scale", "correlator_rank", "correlator_kind")
    return {name: getattr(config, name) for name in names}


def save_model(
    model: torch.nn.Module, tokenizer: Any, output: str | Path, extra: Iterable[tuple[str, str]] = ()
) -> None:
    """Write a model folder (safetensors, tokenizer, further text files) completely or not at all."""
    output = Path(output)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with being_written(partial):
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for name, content in extra:
            (partial / name).write_text(content, encoding="utf-8")
    replace_folder(partial, output)
