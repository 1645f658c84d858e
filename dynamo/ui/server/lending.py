"""A pair's engines on lent model time: the lanes of one run share one worker, one request and one clock.

Two requests would ask for a visitor's quota twice and run side by side, each disturbing the other's clock. So
the worker runs the race and sends every pass as it comes; here each lane takes out its own. A race goes by
the passes' own seconds alone, so the one on the page asks for them in the order in which they were made.
What an engine would refuse is refused before a GPU is asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dynamo.decoding.race import race
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import SamplingOptions
from dynamo.ui.compare.pair import GenerationRequest, StepEngine
from dynamo.ui.compare.settings import MOST_TOKENS
from dynamo.ui.server.zerogpu import GpuWorker

LEAST_SECONDS = 5  # weights reach the GPU, the prompt is read


class RemoteEngines:
    """name: the pair's; makers: make its engines by name, in the worker; check: raises ValueError for what
    one would refuse.
    """

    def __init__(
        self,
        gpu_worker: GpuWorker,
        name: str,
        makers: Mapping[str, Callable[[], StepEngine]],
        check: Callable[[GenerationRequest], None],
    ):
        self._makers = dict(makers)
        self._check = check
        self._passes = gpu_worker.generator(f"lanes of {name}", self._race)

    def engines(self) -> dict[str, StepEngine]:
        """Each engine by itself."""
        return {name: _One(self, name) for name in self._makers}

    def start(self, asked: Mapping[str, GenerationRequest]) -> dict[str, Iterator[StepRecord]]:
        """The lanes' streams; the worker is asked for when the first one is. Raises ValueError."""
        for each in asked.values():
            self._check(each)
        run = _Shared(lambda: self._passes(dict(asked)))
        return {lane: run.lane(lane) for lane in asked}

    def _race(self, asked: dict[str, GenerationRequest]) -> Iterator[tuple[str, StepRecord | None]]:
        streams = {lane: each.of(self._makers[each.engine]()) for lane, each in asked.items()}
        with closing(race(streams)) as passes:
            yield from passes


@dataclass(frozen=True)
class _One:
    lent: RemoteEngines
    name: str

    def stream(
        self,
        input_ids: Sequence[int],
        options: SamplingOptions,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]:
        asked = GenerationRequest(self.name, tuple(input_ids), options, max_new_tokens, seed)
        return self.lent.start({self.name: asked})[self.name]


class _Shared:
    """One run, of which every lane takes its own passes; those of the others wait for them."""

    def __init__(self, begin: Callable[[], Iterator[tuple[str, StepRecord | None]]]):
        self._begin = begin
        self._run: Iterator[tuple[str, StepRecord | None]] | None = None
        self._waiting: dict[str, deque[StepRecord | None]] = {}

    def lane(self, name: str) -> Iterator[StepRecord]:
        return self._taken(self._waiting.setdefault(name, deque()))

    def _taken(self, waiting: deque[StepRecord | None]) -> Iterator[StepRecord]:
        try:
            while (record := self._next(waiting)) is not None:
                yield record
        except GeneratorExit:  # one lane is closed only together with all others
            self._close()
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

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()


def quota(longest: int) -> Callable[[str, tuple[Any, ...], dict[str, Any]], int]:
    """Seconds to ask for a task of `run_task`, of a visitor's daily ones; more than are left is refused.

    longest: what a run of the longest answer that the page allows takes; a shorter one asks for less.
    """

    def seconds(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
        asked = arguments[0] if arguments and isinstance(arguments[0], dict) else {}
        tokens = max(
            (each.max_new_tokens for each in asked.values() if isinstance(each, GenerationRequest)), default=0
        )
        share = min(1.0, tokens / MOST_TOKENS)
        return math.ceil(min(longest, LEAST_SECONDS + share * max(0, longest - LEAST_SECONDS)))

    return seconds
