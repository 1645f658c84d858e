"""Where a pass's time goes, from a profiled run of its own.

Reading the clock after every part slows a pass by a few microseconds, so no other number is taken from here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynamo.common.laps import Stopwatch, running
from dynamo.common.statistics import Estimate, bootstrap_ratio
from dynamo.decoding.engine import Engine
from dynamo.loading import Pair
from dynamo.sampling.options import SamplingOptions

SAMPLER_PARTS = ("top-k", "joint and mask", "draw")
PARTS = ("stem", "heads", "output embedding", *SAMPLER_PARTS)
REST = "rest"
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class LaneSplit:
    """Mean milliseconds of a pass after the first: of each part, and of the pass. "heads" are the last layer
    and the extra heads; "rest" is what no part covers: token embedding, the engine's loop, the record."""

    parts: dict[str, float]
    pass_ms: float
    passes: int
    by_prompt: tuple[tuple[float, float], ...] = ()  # seconds of sampler and of all else

    @property
    def sampler_share(self) -> float:
        """Top-k, joint, mask, thresholds and draw over the forward pass, which is everything else."""
        sampler = sum(self.parts[part] for part in SAMPLER_PARTS)
        return sampler / (self.pass_ms - sampler)

    def sampler_estimate(self) -> Estimate:
        """The same with its interval over prompts."""
        return bootstrap_ratio(*np.array(self.by_prompt).T)

    def to_json(self) -> dict[str, Any]:
        return {"parts": self.parts, "pass_ms": self.pass_ms, "passes": self.passes}


def profile_lanes(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions | None = None,
    max_new_tokens: int = 64,
) -> dict[str, LaneSplit]:
    """Profile "base", the one-token loop on the base model, and "dynamo" on a few prompts (ids).

    Raises ValueError if no reply is longer than one pass.
    """
    options = options or SamplingOptions()
    engines = {
        "base": Engine(pair.base, None, pair.tokenizer, pair.weights),
        "dynamo": Engine(pair.dynamo, pair.table, pair.tokenizer, pair.weights),
    }
    with _one_at_a_time:
        return {lane: _profile(engine, prompts, options, max_new_tokens) for lane, engine in engines.items()}


def _profile(
    engine: Engine, prompts: Sequence[Sequence[int]], options: SamplingOptions, max_new_tokens: int
) -> LaneSplit:
    seconds: Counter[str] = Counter()
    total, passes = 0.0, 0
    by_prompt: list[tuple[float, float]] = []
    list(engine.stream(prompts[0], options, max_new_tokens))  # to warm up
    stopwatch = Stopwatch(torch.cuda.synchronize if engine.device.type == "cuda" else lambda: None)
    with running(stopwatch):
        for prompt in prompts:
            before = total, sum(seconds[part] for part in SAMPLER_PARTS)
            for step in engine.stream(prompt, options, max_new_tokens):
                taken = stopwatch.take()
                if not step.prefill:
                    seconds.update(taken)
                    total += step.seconds
                    passes += 1
            sampler = sum(seconds[part] for part in SAMPLER_PARTS) - before[1]
            by_prompt.append((sampler, total - before[0] - sampler))
    if not passes:
        raise ValueError("prompts: no reply is longer than one pass; give other prompts or more new tokens")
    parts = {part: 1000 * seconds[part] / passes for part in PARTS}
    pass_ms = 1000 * total / passes
    return LaneSplit({**parts, REST: pass_ms - sum(parts.values())}, pass_ms, passes, tuple(by_prompt))
