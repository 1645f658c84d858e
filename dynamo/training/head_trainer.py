"""Training of the extra heads alone, on stored states of a frozen base: the loop around `head_losses`.

What a step learns from depends on nothing but its number, so a killed run continues from its checkpoint to
the very weights of an uninterrupted one. The checkpoint is one file, replaced atomically, of heads and
optimiser; the base is not in it.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dynamo.common.files import append_row
from dynamo.common.memory import peak_memory
from dynamo.model import DynamoForCausalLM
from dynamo.training.head_losses import head_losses, measure_heads
from dynamo.training.options import TrainingOptions, learning_rate_scale
from dynamo.training.stem_states import StateBatch, StemStates
from dynamo.training.trainer import ADAMW_BETAS, ADAMW_EPS, model_subject, refuse_changes

MEASURED_TOGETHER = 8  # conversations


class StateRows:
    """Conversations of a `StemStates` as an endless sequence, reshuffled every epoch."""

    def __init__(self, states: StemStates, places: np.ndarray, seed: int = 0):
        self._states, self._places, self._seed = states, places, seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        """A hash of the sequence."""
        return f"{zlib.crc32(self._states.keys(self._places).tobytes(), self._seed):08x}"

    def batch(self, start: int, count: int, device: torch.device) -> StateBatch:
        return self._states.batch([self._place(index) for index in range(start, start + count)], device)

    def _place(self, index: int) -> int:
        epoch, position = divmod(index, len(self._places))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._places))
            self._epoch = epoch, self._places[order]
        return int(self._epoch[1][position])

    def once(self, device: torch.device) -> Iterator[StateBatch]:
        """All of them, in their own order."""
        for start in range(0, len(self._places), MEASURED_TOGETHER):
            yield self._states.batch(self._places[start : start + MEASURED_TOGETHER].tolist(), device)


class HeadTrainer:
    """One run into a folder, which holds `log.jsonl` and, until the run ends, `checkpoint.pt`.

    A run whose folder holds a checkpoint continues from it; the options must then be the same. rows: of which
    `options.batch_size` conversations are a step; soft_share, position_share: as in `head_losses`.
    """

    is_main = True

    def __init__(
        self,
        model: DynamoForCausalLM,
        rows: StateRows,
        options: TrainingOptions,
        output: str | Path,
        soft_share: float,
        position_share: float,
        validation: StateRows | None = None,
    ):
        torch.manual_seed(options.seed)
        self.options, self.output = options, Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        self._model, self._rows, self._validation = model, rows, validation
        self._soft_share, self._position_share = soft_share, position_share
        model.freeze_base()
        groups = model.parameter_groups(options.base_lr, options.head_lr, options.weight_decay)
        self._weights = [weight for group in groups for weight in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_scale(step, options)
        )
        self._subject = {
            "states": rows.fingerprint(),
            "model": model_subject(model),
            "distill": soft_share,
            "position_share": position_share,
        }
        self.step = self.tokens = 0
        self.last_validation: list[float] = []
        self.cost: dict[str, float] = {}
        self._resume()

    def run(self, stop: Callable[[], bool] = lambda: False) -> DynamoForCausalLM:
        """Train to the last step, or until `stop()` is true after a step; the model, in evaluation mode."""
        self._model.train()
        started, before = time.perf_counter(), self.tokens
        progress = tqdm(total=self.options.steps, initial=self.step, unit="step", mininterval=5.0)
        while self.step < self.options.steps:
            row = self._train_step()
            progress.update()
            if self.step % 10 == 0 or self.step == self.options.steps:
                progress.set_postfix_str(" ".join(f"{loss:.3f}" for loss in row["losses"]))
                self.cost = {
                    "tokens_per_second": (self.tokens - before) / (time.perf_counter() - started),
                    "peak_mb": peak_memory(self._model.device) / 1e6,
                }
                rates = [group["lr"] for group in self._optimizer.param_groups]
                self._log({"step": self.step, **row, **self.cost, "lr": rates})
            if self._due(self.options.evaluate_every) and self.step < self.options.steps:
                self.validate()
            if self._due(self.options.checkpoint_every) and self.step < self.options.steps:
                self.save_checkpoint()
            if stop():
                self.save_checkpoint()
                break
        progress.close()
        if self.step == self.options.steps:
            self.validate()
        return self._model.eval()

    def validate(self) -> None:
        """Measure the heads on the held-out conversations, and log it with the tokens that were read."""
        if not self._validation:
            return
        self._model.eval()
        measured = measure_heads(self._model, self._validation.once(self._model.device))
        self._model.train()
        heads = [each["nats"] for each in measured["heads"]]
        self.last_validation = [measured["first_nats"], *heads]
        row = {"step": self.step, "tokens": self.tokens, "validation": self.last_validation}
        self._log(row | {"measured": measured})

    def _train_step(self) -> dict[str, Any]:
        options = self.options
        batch = self._rows.batch(self.step * options.batch_size, options.batch_size, self._model.device)
        random = np.random.default_rng((options.seed, self.step))
        with torch.autocast(self._model.device.type, torch.bfloat16, options.mixed_precision == "bf16"):
            losses = head_losses(self._model, batch, self._soft_share, self._position_share, random)
        losses.loss.backward()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(self._weights, options.clip)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.step += 1
        self.tokens += len(batch.ids)
        first = batch.first_nats.mean().item()  # never changes, but a log has a loss for every head
        row = {"tokens": self.tokens, "losses": [first, *losses.head_losses.tolist()]}
        if losses.correlator_losses is not None:
            row["correlator_losses"] = losses.correlator_losses.tolist()
        return row

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log(self, row: dict[str, Any]) -> None:
        append_row(self.output / "log.jsonl", row)

    # -- checkpoints --------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.output / "checkpoint.pt"

    def save_checkpoint(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "run": {"options": asdict(self.options), **self._subject},
            "heads": self._model.token_heads.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._checkpoint)

    def discard_checkpoint(self) -> None:
        """Delete the run's state, once its result is saved elsewhere."""
        self._checkpoint.unlink(missing_ok=True)

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, map_location=self._model.device, weights_only=True)
        refuse_changes(self.output, state["run"], {"options": asdict(self.options), **self._subject})
        self._model.token_heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.step, self.tokens = state["step"], state["tokens"]
