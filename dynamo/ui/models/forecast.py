"""What training heads on the page will take, foretold: `recipe --plan`'s estimate for the page's short runs.

Time is the training's own, on a machine that does nothing else; memory is that of the process that trains,
libraries included. What does not fit is refused before anything is read.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from dynamo.loading import parameters_of
from dynamo.loading.sizes import RESERVE, gigabytes, layer_parameters
from dynamo.pipelines import estimates
from dynamo.ui.compare.service import Busy, PageService
from dynamo.ui.models.training_job import BATCH_SIZE, BLOCK_SIZE

EXTRA_HEADS = 2  # those that `train` adds unless told otherwise

_measured = cache(estimates.multiplications_per_second)


def machine_pace(service: PageService) -> float | None:
    """Multiplications a second, measured once, while the host runs nothing whose clock it would disturb; None
    where the model does not get free for that.
    """
    if not _measured.cache_info().currsize:
        with suppress(Busy), service.exclusive():
            return _measured()
        return None
    return _measured()


@dataclass(frozen=True)
class Forecast:
    """seconds, bytes: of the training, seconds None where the machine's pace is not measured yet; free: bytes
    that there are, None where the system does not say.
    """

    model: str
    seconds: float | None
    bytes: int
    free: int | None

    def in_words(self) -> str:
        free = "" if self.free is None else f" ({gigabytes(self.free)} are free)"
        memory = f"{gigabytes(self.bytes)} of memory{free}"
        if self.seconds is None:
            return f"An estimate: {memory}. The time is not measured yet, as the model is busy with a run."
        return (
            f"An estimate, from a short trial of this machine: about {estimates.duration(self.seconds)} of "
            f"training, and {memory}."
        )

    def check(self) -> None:
        """Raises ValueError where the memory is not there."""
        if self.free is not None and self.bytes > self.free:
            raise ValueError(
                f"training: heads for {self.model} need about {gigabytes(self.bytes)} of memory, and "
                f"{gigabytes(self.free)} are free; load a smaller model without heads"
            )


def forecast(name: str, model: Any, steps: int, free: int | None, pace: float | None) -> Forecast:
    """Of a stock GPT-NeoX whose heads learn for `steps` of the page's small batches; pace: `machine_pace`."""
    config, layer = model.config, layer_parameters(model.config.hidden_size)
    parameters, extra = parameters_of(model), EXTRA_HEADS * layer
    tokens = steps * BATCH_SIZE * BLOCK_SIZE
    seconds = estimates.training_seconds(parameters, extra, tokens, True, pace) if pace else None
    needed = RESERVE + estimates.training_bytes(parameters, extra, True)
    needed += estimates.pass_bytes(
        BATCH_SIZE * BLOCK_SIZE, config.num_hidden_layers, config.hidden_size, config.vocab_size,
        EXTRA_HEADS, heads_only=True,
    )  # fmt: skip
    return Forecast(name, seconds, needed, free)
