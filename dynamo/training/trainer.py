"""Training by the modified causal-LM objective (paper, section 3.2), with accelerate.

The model computes its own losses; this module divides each step's batch over processes and forward passes, so
that losses and gradients are those of the whole batch, however it is divided. Finetuning is the same on other
rows, plain causal-LM training the same on a model with one head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from dynamo.common.files import being_written, old_folder, replace_folder
from dynamo.data.held_out import held_out_nats
from dynamo.model import DynamoForCausalLM, count_targets
from dynamo.training.loop import TrainingLoop
from dynamo.training.options import TrainingOptions

VALIDATION_BATCH = 16  # documents


class Rows(Protocol):
    """An endless sequence of training rows, each a function of its number (`TokenBlocks`)."""

    def fingerprint(self) -> str: ...

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows start .. start + count: ids and labels (count, length) int64, -100 where nothing is scored."""


class Trainer(TrainingLoop):
    """Training of all weights, or of all heads; the checkpoint is the folder `checkpoint/`.

    penalty: added to each step's loss, a function of the weights alone (not for sharded weights).
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
        self._penalty, self._rows, self._validation = penalty, rows, validation
        self._cut, self._validation_labels = validation_cut, validation_labels
        self._accelerator = Accelerator(mixed_precision=options.mixed_precision)
        self.is_main = self._accelerator.is_main_process
        self._clip_gradients = self._accelerator.clip_grad_norm_
        world = self._accelerator.num_processes
        if options.batch_size % (world * options.accumulation):
            raise ValueError(
                f"batch_size: {options.batch_size} rows do not divide by {world} processes x accumulation "
                f"{options.accumulation}; use a multiple of {world * options.accumulation}"
            )
        if options.activation_checkpointing:
            model.activation_checkpointing_enable()
        super().__init__(model, options, output, {"blocks": rows.fingerprint()})
        self._model, self._optimizer = self._accelerator.prepare(model, self._optimizer)
        self._accelerator.register_for_checkpointing(self._scheduler)
        self._forward = torch.compile(self._model) if options.compile else self._model
        self._resume()

    @property
    def model(self) -> DynamoForCausalLM:
        """The model in training; with mixed precision its forward pass is still the run's."""
        return self._accelerator.unwrap_model(self._model)

    def _trained(self) -> DynamoForCausalLM:
        """Where weights are sharded, the main process gets the whole model and the others their shards."""
        # Without the wrapper the model computes, and is measured, in its own precision again.
        model = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False).eval()
        if self._accelerator.distributed_type == DistributedType.FSDP:
            return gathered(model, self._accelerator.get_state_dict(self._model))
        return model

    def _measure(self) -> dict[str, Any]:
        if not len(self._validation):
            return {}
        nats, targets = held_out_nats(
            self.model, self._validation, self._cut, VALIDATION_BATCH, self._validation_labels
        )
        return {"validation": (nats.sum(0) / targets.sum(0).clip(min=1)).tolist()}

    def _gradients(self) -> dict[str, Any]:
        """Losses are each head's mean nats over the whole batch."""
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
            self.tokens += ids.numel() * self._accelerator.num_processes
        return {"losses": self._accelerator.reduce(losses, reduction="sum").tolist()}

    def _part(self, number: int) -> tuple[Tensor, Tensor]:
        """Ids and labels of this process's forward pass `number` in this step."""
        options, accelerator = self.options, self._accelerator
        size = options.batch_size // (accelerator.num_processes * options.accumulation)
        before = accelerator.process_index * options.accumulation + number
        rows = self._rows.batch(self.step * options.batch_size + before * size, size)
        ids, labels = (torch.from_numpy(each).to(accelerator.device) for each in rows)
        return ids, labels

    # -- checkpoints --------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.output / "checkpoint"

    def save_checkpoint(self) -> None:
        partial = self.output / "checkpoint.partial"
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        with being_written(partial):
            self._accelerator.save_state(str(partial), safe_serialization=True)
        self._accelerator.wait_for_everyone()
        if self.is_main:
            run = {"step": self.step, "tokens": self.tokens, **self._run}
            (partial / "run.json").write_text(json.dumps(run))
            replace_folder(partial, self._checkpoint)
        self._accelerator.wait_for_everyone()

    def discard_checkpoint(self) -> None:
        if self.is_main:
            for folder in (self._checkpoint, old_folder(self._checkpoint)):
                shutil.rmtree(folder, ignore_errors=True)

    def _resume(self) -> None:
        # A kill between the two renames of `replace_folder` leaves the complete old checkpoint there.
        places = self._checkpoint, old_folder(self._checkpoint)
        found = next((path for path in places if path.exists()), None)
        if found is None:
            return
        run = json.loads((found / "run.json").read_text())
        self._refuse_changes(run)
        self._accelerator.load_state(str(found))
        self.step, self.tokens = run["step"], run.get("tokens", 0)  # older runs did not count them


def gathered(model: DynamoForCausalLM, state: dict[str, Tensor]) -> DynamoForCausalLM:
    """A model on the CPU with the weights gathered from a sharded one; `model` itself if there are none."""
    if not state:
        return model
    whole = DynamoForCausalLM(model.config)
    whole.load_state_dict(state)
    whole.generation_config = model.generation_config
    return whole.eval()


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
