"""Lanes compared on one machine, in one run.

After one reply each to warm up, every lane answers a prompt before the next prompt is taken, in rotating
order; this is repeated and pooled. Only decoding is timed: model time after the pass that reads the prompt,
tokens over seconds, with natural stops. Lanes run one after the other in one thread, so none shares the
machine with another. Tokens per forward pass and tokens per second are reported separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, ratio
from dynamo.decoding.engine import Engine
from dynamo.decoding.generate import GenerateEngine
from dynamo.evaluation.bench_report import RATIOS
from dynamo.evaluation.subprocess_lane import Lane, LaneLost
from dynamo.loading import Pair
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

LOOKUP_TOKENS = 10
DYNAMO_LANES = ("dynamo", "exact", "dynamo_int8", "exact_int8", "dynamo_int4", "exact_int4")


@dataclass(frozen=True, eq=False)
class Times:
    """One lane's decoding: tokens, passes and seconds after the first pass, and the first pass's seconds.

    Each is of shape (runs, prompts).
    """

    tokens: NDArray[np.float64]
    passes: NDArray[np.float64]
    seconds: NDArray[np.float64]
    prefill: NDArray[np.float64]

    @property
    def tokens_per_second(self) -> float:
        return float(ratio(self.tokens.sum(), self.seconds.sum()))

    @property
    def tokens_per_forward(self) -> float:
        """Over the passes that are timed, so without the one that reads the prompt."""
        return float(ratio(self.tokens.sum(), self.passes.sum()))

    @property
    def runs(self) -> NDArray[np.float64]:
        """Tokens per second of every run alone: (runs,)."""
        return ratio(self.tokens.sum(axis=1), self.seconds.sum(axis=1))

    def over(self, rival: Times) -> Estimate:
        """How many times as many tokens per second, with a 95 % interval over prompts."""
        sums = [each.sum(axis=0) for each in (self.tokens, self.seconds, rival.tokens, rival.seconds)]
        return bootstrap(
            np.stack(sums, axis=1), lambda s: ratio(ratio(s[:, 0], s[:, 1]), ratio(s[:, 2], s[:, 3]))
        )

    def per_forward(self) -> Estimate:
        return bootstrap_ratio(self.tokens.sum(axis=0), self.passes.sum(axis=0))

    def share_of(self, bandwidth: float, bytes_per_pass: int) -> Estimate:
        """Of that many bytes a second, what the passes read."""
        read = bytes_per_pass / bandwidth * self.passes.sum(axis=0)
        return bootstrap_ratio(read, self.seconds.sum(axis=0))

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens_per_second": self.tokens_per_second,
            "runs": self.runs.tolist(),
            "spread": float(self.runs.std(ddof=1) if len(self.runs) > 1 else 0.0),
            "tokens_per_forward": self.tokens_per_forward,
            "ms_per_pass": 1000 * float(ratio(self.seconds.sum(), self.passes.sum())),
            "prefill_ms": 1000 * float(self.prefill.mean()),
            "tokens": int(self.tokens.sum()),
            "passes": int(self.passes.sum()),
        }


def lanes(
    pair: Pair,
    options: SamplingOptions,
    max_new_tokens: int,
    only: Sequence[str] = (),
    draft: torch.nn.Module | None = None,
    weights: Sequence[str] = (),
) -> tuple[dict[str, Lane], dict[str, dict[str, Any]], dict[str, int]]:
    """The lanes by name (all, or `only` some), the flags that `transformers` runs with, and the bytes of
    weights that a pass of each lane reads.

    generate: `transformers`' own, eager; prompt_lookup: the same with its drafts from the prompt; assisted:
    the same with those of a `draft` model; own: our one-token loop on the base model; dynamo: at `options`;
    exact: DynaMo's exact mode; own_int8, dynamo_int8, exact_int8 and the like: on copies of the `weights`.
    """
    stock = {
        "generate": GenerateEngine(pair.base, pair.tokenizer),
        "prompt_lookup": GenerateEngine(pair.base, pair.tokenizer, prompt_lookup_num_tokens=LOOKUP_TOKENS),
    }
    if draft is not None:
        stock["assisted"] = GenerateEngine(pair.base, pair.tokenizer, draft)
    engines = {"own": _own(pair, "own"), "dynamo": _dynamo(pair, "own")}
    engines["exact"] = engines["dynamo"]
    for kept in weights:
        engines |= {f"own_{kept}": _own(pair, kept), f"dynamo_{kept}": _dynamo(pair, kept)}
        engines[f"exact_{kept}"] = engines[f"dynamo_{kept}"]
    exact = replace(options, exact=True)
    every: dict[str, Lane] = {
        name: lambda prompt, seed, engine=engine: RunCounts.fold(
            engine.complete(prompt, options, max_new_tokens, seed)
        )
        for name, engine in stock.items()
    }
    for name, engine in engines.items():
        own = exact if name.startswith("exact") else options
        every[name] = lambda prompt, seed, engine=engine, own=own: RunCounts.fold(
            engine.stream(prompt, own, max_new_tokens, seed)
        )
    chosen = {name: lane for name, lane in every.items() if not only or name in only}
    read = {
        name: bytes_per_pass(
            pair.dynamo if name in DYNAMO_LANES else pair.base,
            engines[name].bytes_per_weight() if name in engines else None,
        )
        for name in chosen
    }
    return chosen, {name: engine.flags for name, engine in stock.items() if name in chosen}, read


def _own(pair: Pair, weights: str) -> Engine:
    return Engine(pair.base, None, pair.tokenizer, weights)


def _dynamo(pair: Pair, weights: str) -> Engine:
    return Engine(pair.dynamo, pair.table, pair.tokenizer, weights)


def interleave(
    lanes: Mapping[str, Lane],
    prompts: Sequence[Sequence[int]],
    runs: int = 3,
    progress: Callable[[], None] | None = None,
    lost: dict[str, str] | None = None,
) -> dict[str, Times]:
    """Every lane's times over `runs` replies to every prompt, after one reply each to warm up.

    progress: called after every reply that counts; lost: receives the reason for each lane that fails, which
    then has no times. Raises ValueError without prompts or runs, and LaneLost if `lost` is not given.
    """
    if not prompts:
        raise ValueError("prompts: expected one or more, got none")
    if runs < 1:
        raise ValueError(f"runs: expected 1 or more, got {runs}")

    def reply(name: str, prompt: Sequence[int], seed: int) -> RunCounts | None:
        try:
            return lanes[name](prompt, seed)
        except LaneLost as error:
            if lost is None:
                raise
            lost[name] = str(error)
            names.remove(name)
            return None

    names = list(lanes)
    for name in list(names):
        reply(name, prompts[0], 0)
    sums = {name: np.zeros((4, runs, len(prompts))) for name in names}
    for turn in range(runs):
        for number, prompt in enumerate(prompts):
            first = (turn + number) % max(1, len(names))
            for name in names[first:] + names[:first]:
                run = reply(name, prompt, turn * len(prompts) + number)
                if run is None:
                    continue
                sums[name][:, turn, number] = (
                    run.decode_tokens, run.decode_passes, run.decode_seconds, run.prefill_seconds,
                )  # fmt: skip
                if progress is not None:
                    progress()
    return {name: Times(*sums[name]) for name in names}


def ratios(times: Mapping[str, Times]) -> dict[str, Estimate]:
    """Tokens per second of one lane over another's, for those of the report's of which both ran."""
    pairs = {name: name.split("_over_") for name in RATIOS if "_over_" in name}
    return {
        name: times[one].over(times[other])
        for name, (one, other) in pairs.items()
        if one in times and other in times
    }


def conversion(times: Mapping[str, Times]) -> Estimate:
    """Wall-clock speed-up over the own loop, as a share of DynaMo's tokens per forward pass."""
    own, dynamo = times["own"], times["dynamo"]
    # Tokens cancel: passes a second of DynaMo over the own loop's tokens a second.
    sums = [each.sum(axis=0) for each in (dynamo.passes, dynamo.seconds, own.tokens, own.seconds)]
    return bootstrap(
        np.stack(sums, axis=1), lambda s: ratio(ratio(s[:, 0], s[:, 1]), ratio(s[:, 2], s[:, 3]))
    )


def bytes_per_pass(model: torch.nn.Module, bytes_per_weight: float | None = None) -> int:
    """Bytes of weights that a pass reads: all but the token embedding, of which it reads a few rows, unless
    that is the output embedding, too.

    bytes_per_weight: of matrices, if a packed copy is read instead of the model.
    """
    token_embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    total = 0.0
    for weight in model.parameters():
        size = weight.element_size()
        if bytes_per_weight and weight.ndim > 1:
            # The output embedding has 8 bits at least.
            size = max(1, bytes_per_weight) if weight is output else bytes_per_weight
        if weight is output or weight is not token_embedding:
            total += size * weight.numel()
    return round(total)
