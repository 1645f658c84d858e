"""The engines of a loaded pair by name, and what starts the lanes of one run: here, or on a GPU that is lent.

On a ZeroGPU Space two requests would take a visitor's quota twice and run side by side, each disturbing the
other's clock. So one worker runs the race and sends every pass as it comes; here each lane picks out its own.
A race depends only on the passes' own seconds, so the page asks for them in the order in which the worker
made them. A prompt that an engine would refuse is refused before a GPU is requested.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dynamo.common.threads import settle_threads
from dynamo.decoding.race import race
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.ui.server.limits import MOST_TOKENS
from dynamo.ui.server.zerogpu import GpuWorker

DYNAMO = "dynamo"
LEAST_SECONDS = 5  # moving the weights to the GPU and reading the prompt


class StepEngine(Protocol):
    """One model that streams its forward passes (`dynamo.Engine`)."""

    def stream(
        self,
        input_ids: Any,
        options: SamplingOptions,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]: ...


@dataclass(frozen=True)
class GenerationRequest:
    """One lane's run; plain values, so that it can be sent to a worker."""

    engine: str
    ids: tuple[int, ...]
    options: SamplingOptions
    max_new_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


class Engines(Protocol):
    """opponents: names of the engines that may run in the base lane, the usual one first."""

    opponents: tuple[str, ...]

    def start(self, requests: Mapping[str, GenerationRequest]) -> Mapping[str, Iterator[StepRecord]]:
        """The streams of one run's lanes. Raises ValueError for a bad request before any lane begins."""


class LocalEngines:
    """Engines of this process by name; the one called "dynamo" runs in DynaMo's lane."""

    def __init__(self, engines: Mapping[str, StepEngine]):
        self.by_name = dict(engines)
        self.opponents = tuple(name for name in engines if name != DYNAMO)
        self._threads: int | None = None

    def settle(self, most: int) -> None:
        """Chooses anew with how many threads all engines decode, `most` at most, by a few timed passes."""
        self._threads = settle_threads(self.by_name[DYNAMO], most=most)

    def start(self, requests: Mapping[str, GenerationRequest]) -> dict[str, Iterator[StepRecord]]:
        return {
            lane: self._settled(
                self.by_name[request.engine].stream(
                    list(request.ids),
                    request.options,
                    max_new_tokens=request.max_new_tokens,
                    seed=request.seed,
                    stop=request.stop,
                )
            )
            for lane, request in requests.items()
        }

    def _settled(self, stream: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """torch's number holds for the thread that set it, and a page's run moves from thread to thread."""
        with closing(stream):
            while True:
                if self._threads not in (None, torch.get_num_threads()):
                    torch.set_num_threads(self._threads)
                if (record := next(stream, None)) is None:
                    return
                yield record


class RemoteEngines:
    """Engines that a worker builds and runs.

    name: the pair's; makers: build its engines by name, in the worker; check: raises ValueError for a prompt
    that they would refuse.
    """

    def __init__(
        self,
        gpu_worker: GpuWorker,
        name: str,
        makers: Mapping[str, Callable[[], StepEngine]],
        check: Callable[[Sequence[int]], Any],
    ):
        self._makers = dict(makers)
        self._check = check
        self._passes = gpu_worker.generator(f"lanes of {name}", self._race)
        self.opponents = tuple(name for name in makers if name != DYNAMO)

    def start(self, requests: Mapping[str, GenerationRequest]) -> dict[str, Iterator[StepRecord]]:
        """The GPU is requested when the first pass is asked for."""
        for request in requests.values():
            self._check(request.ids)
        run = _SharedRun(lambda: self._passes(dict(requests)))
        return {lane: run.lane(lane) for lane in requests}

    def _race(self, requests: dict[str, GenerationRequest]) -> Iterator[tuple[str, StepRecord | None]]:
        """In the worker: the passes of all lanes as they come."""
        engines = LocalEngines(
            {request.engine: self._makers[request.engine]() for request in requests.values()}
        )
        with closing(race(engines.start(requests))) as passes:
            yield from passes


class _SharedRun:
    """One run from which every lane takes its own passes; those of the other lanes are kept for them."""

    def __init__(self, begin: Callable[[], Iterator[tuple[str, StepRecord | None]]]):
        self._begin = begin
        self._run: Iterator[tuple[str, StepRecord | None]] | None = None
        self._waiting: dict[str, deque[StepRecord | None]] = {}

    def lane(self, name: str) -> Iterator[StepRecord]:
        return self._passes(self._waiting.setdefault(name, deque()))

    def _passes(self, waiting: deque[StepRecord | None]) -> Iterator[StepRecord]:
        try:
            while (record := self._next(waiting)) is not None:
                yield record
        except GeneratorExit:  # lanes are only ever closed all together
            if self._run is not None:
                self._run.close()
            raise

    def _next(self, waiting: deque[StepRecord | None]) -> StepRecord | None:
        if self._run is None:
            self._run = self._begin()
        while not waiting:
            came = next(self._run, None)
            if came is None:
                return None
            lane, record = came
            self._waiting[lane].append(record)
        return waiting.popleft()


def quota(longest: int) -> Callable[[str, tuple[Any, ...], dict[str, Any]], int]:
    """Seconds to request for a task of `run_task`, out of a visitor's daily quota; more than is left is
    refused.

    longest: the seconds of a run of the longest answer that the page allows; a shorter one requests less.
    """

    def seconds(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
        requests = arguments[0] if arguments and isinstance(arguments[0], dict) else {}
        tokens = max((request.max_new_tokens for request in requests.values()), default=0)
        share = min(1.0, tokens / MOST_TOKENS)
        return math.ceil(min(longest, LEAST_SECONDS + share * max(0, longest - LEAST_SECONDS)))

    return seconds
