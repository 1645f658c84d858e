"""Where a pass's time goes, from a profiled run of its own: clocks around every stage slow a pass by a few
microseconds, so no other number is taken from here.

The stages are timed from outside, on an engine of this run's own and in this thread only: nothing that other
streams execute is slower for it, but for one comparison while the run lasts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from dynamo.decoding import sequence as lane_module
from dynamo.decoding.engine import Engine
from dynamo.loading import Pair
from dynamo.sampling import sampler as sampler_module
from dynamo.sampling.sampler import SamplingOptions

PARTS = ("stem", "heads", "output embedding", "top-k", "joint and mask", "draw")
REST = "rest"
# What one step calls of the sampler, by the name under which its caller knows it.
SAMPLER_STAGES = (
    (lane_module, "top_candidates", "top-k"),
    (sampler_module, "choose_joint", "joint and mask"),
    (sampler_module, "choose_one", "draw"),
    (sampler_module, "_drawn", "draw"),
)
Stage = tuple[Any, str, str | Callable[..., str]]  # owner, name of its function, part
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class LaneSplit:
    """Mean milliseconds of a pass after the first: of each part, and of the pass. "heads" are the last layer
    and the extra heads; "rest" is what no part covers: token embedding, copies to the host, the record."""

    parts: dict[str, float]
    pass_ms: float
    passes: int

    @property
    def sampler_share(self) -> float:
        """Top-k, joint, mask, thresholds and draw over the forward pass, which is everything else."""
        sampler = sum(self.parts[part] for part in ("top-k", "joint and mask", "draw"))
        return sampler / (self.pass_ms - sampler)

    def to_json(self) -> dict[str, Any]:
        return {"parts": self.parts, "pass_ms": self.pass_ms, "passes": self.passes}


@dataclass(frozen=True)
class Split:
    """One `LaneSplit` per lane: "base", the one-token loop on the base model, and "dynamo"."""

    lanes: dict[str, LaneSplit]

    def to_json(self) -> dict[str, Any]:
        return {lane: split.to_json() for lane, split in self.lanes.items()}


def split(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Split:
    """Profile both lanes on a few prompts (ids). Raises ValueError if no reply is longer than one pass."""
    options = options or SamplingOptions()
    engines = {
        "base": Engine(pair.base, None, pair.tokenizer),
        "dynamo": Engine(pair.dynamo, pair.table, pair.tokenizer),
    }
    with _one_at_a_time:
        return Split(
            {
                lane: _profiled(engine, prompts, options, max_new_tokens, seed)
                for lane, engine in engines.items()
            }
        )


def _profiled(
    engine: Engine, prompts: Sequence[Sequence[int]], options: SamplingOptions, max_new_tokens: int, seed: int
) -> LaneSplit:
    seconds: Counter = Counter()
    total, passes = 0.0, 0
    list(engine.stream(prompts[0], options, max_new_tokens, seed))  # to warm up
    stopwatch = _Stopwatch(engine.device)
    with stopwatch.around(chain(SAMPLER_STAGES, engine.stages())):
        for prompt in prompts:
            for step in engine.stream(prompt, options, max_new_tokens, seed):
                taken = stopwatch.take()
                if not step.prefill:
                    seconds.update(taken)
                    total += step.seconds
                    passes += 1
    if not passes:
        raise ValueError("prompts: no reply is longer than one pass; give other prompts or more new tokens")
    parts = {part: 1000 * seconds[part] / passes for part in PARTS}
    pass_ms = 1000 * total / passes
    return LaneSplit({**parts, REST: pass_ms - sum(parts.values())}, pass_ms, passes)


class _Stopwatch:
    """Time spent inside functions, each without what is spent in others of them that it calls."""

    def __init__(self, device: torch.device):
        self._synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        self._thread = threading.get_ident()
        self._inner: list[float] = []
        self._seconds: Counter = Counter()

    def take(self) -> Counter:
        """Seconds by part since the last call."""
        taken, self._seconds = self._seconds, Counter()
        return taken

    @contextmanager
    def around(self, stages: Iterable[Stage]) -> Iterator[None]:
        with ExitStack() as restored:
            for owner, name, part in stages:
                own = vars(owner).get(name)
                setattr(owner, name, self._timed(getattr(owner, name), part))
                if own is None:  # a method: the class's own shows again
                    restored.callback(delattr, owner, name)
                else:
                    restored.callback(setattr, owner, name, own)
            yield

    def _timed(self, function: Callable, part: str | Callable[..., str]) -> Callable:
        def timed(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*arguments, **named)
            self._synchronise()
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                self._synchronise()
                elapsed = time.perf_counter() - started
                inner = self._inner.pop()
                name = part if isinstance(part, str) else part(*arguments, **named)
                self._seconds[name] += elapsed - inner
                if self._inner:
                    self._inner[-1] += elapsed

        return timed
