"""Training of the extra heads alone, on stored states of a frozen base, by `head_losses`.

The checkpoint is one file, replaced atomically, of heads and optimiser; the base is not in it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamo.model import DynamoForCausalLM
from dynamo.training.head_losses import head_losses, measure_heads
from dynamo.training.loop import TrainingLoop
from dynamo.training.options import TrainingOptions
from dynamo.training.stem_states import StateBatch, StemStates

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

    def answer_tokens(self) -> np.ndarray:
        return self._states.answer_tokens(self._places)

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


class HeadTrainer(TrainingLoop):
    """Training of the extra heads alone; the checkpoint is the file `checkpoint.pt`.

    options: `heads_only`; rows: of which `options.batch_size` conversations are a step; soft_share,
    position_share, overlap_weight: as in `head_losses`.
    """

    def __init__(
        self,
        model: DynamoForCausalLM,
        rows: StateRows,
        options: TrainingOptions,
        output: str | Path,
        soft_share: float,
        position_share: float,
        validation: StateRows | None = None,
        overlap_weight: float = 0.0,
    ):
        self._rows, self._validation = rows, validation
        self._losses = partial(
            head_losses, soft_share=soft_share, position_share=position_share, overlap_weight=overlap_weight
        )
        shares = {"distill": soft_share, "position_share": position_share}
        if overlap_weight:
            shares["overlap_weight"] = overlap_weight
        super().__init__(model, options, output, {"states": rows.fingerprint(), **shares})
        self._resume()

    def _measure(self) -> dict[str, Any]:
        if not self._validation:
            return {}
        training = self._model.training
        self._model.eval()
        measured = measure_heads(self._model, self._validation.once(self._model.device))
        self._model.train(training)
        heads = [each["nats"] for each in measured["heads"]]
        return {"validation": [measured["first_nats"], *heads], "measured": measured}

    def _gradients(self) -> dict[str, Any]:
        options = self.options
        batch = self._rows.batch(self.step * options.batch_size, options.batch_size, self._model.device)
        random = np.random.default_rng((options.seed, self.step))
        with torch.autocast(self._model.device.type, torch.bfloat16, options.mixed_precision == "bf16"):
            losses = self._losses(self._model, batch, random=random)
        losses.loss.backward()
        self.tokens += len(batch.ids)
        first = batch.first_nats.mean().item()  # never changes, but a log has a loss for every head
        row = {"losses": [first, *losses.head_losses.tolist()]}
        if losses.correlator_losses is not None:
            row["correlator_losses"] = losses.correlator_losses.tolist()
        return row

    # -- checkpoints --------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.output / "checkpoint.pt"

    def save_checkpoint(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "run": self._run,
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
        self._checkpoint.unlink(missing_ok=True)

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, map_location=self._model.device, weights_only=True)
        self._refuse_changes(state["run"])
        self._model.token_heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.step, self.tokens = state["step"], state["tokens"]
