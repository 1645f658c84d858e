"""What a pass costs by length of context, number of candidates and number of threads.

And the machine's limit to compare it with: how fast memory can be read, measured as a pass reads it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from dynamo.common.statistics import ratio
from dynamo.decoding.engine import Engine
from dynamo.decoding.generate import GenerateEngine
from dynamo.evaluation.profile import profile_lanes
from dynamo.evaluation.subprocess_lane import Lane, LaneLost
from dynamo.loading import Pair
from dynamo.model.architectures import max_positions
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

# Prompts, a seed for each, most new tokens -> decoded tokens and their seconds.
Together = Callable[[Sequence[Sequence[int]], Sequence[int], int], tuple[int, float]]
BANDWIDTH_BYTES = {"cpu": 2**28, "cuda": 2**31}  # far beyond any cache
CURVE_TOKENS = 24


def _engines(pair: Pair, weights: str = "own") -> dict[str, Engine]:
    return {
        "own": Engine(pair.base, None, pair.tokenizer, weights),
        "dynamo": Engine(pair.dynamo, pair.table, pair.tokenizer, weights),
    }


def _lanes(
    pair: Pair, weights: Sequence[str], options: SamplingOptions
) -> dict[str, tuple[Engine, SamplingOptions]]:
    """Our loop, DynaMo and its exact mode, on the model's own weights and on other copies of them."""
    lanes = {}
    for kept in ("own", *weights):
        own, dynamo = _engines(pair, kept).values()
        copy = "" if kept == "own" else f"_{kept}"
        lanes[f"own{copy}"] = (own, options)
        lanes[f"dynamo{copy}"] = (dynamo, options)
        lanes[f"exact{copy}"] = (dynamo, replace(options, exact=True))
    return lanes


def context_cost(
    pair: Pair,
    lengths: Sequence[int],
    options: SamplingOptions,
    runs: int = 3,
    weights: Sequence[str] = (),
    peers: Mapping[str, Lane] | None = None,
    lost: dict[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass by context length and lane; texts are random, and of our lanes none ends early.

    weights: also lanes on such copies, `own_int8` and so on; peers: other engines' lanes; lost: receives the
    reason for each of these that fails, which then has no numbers from there on. Raises ValueError for a
    length that leaves no room for the tokens that are timed.
    """
    most = max_positions(pair.base) - CURVE_TOKENS
    wrong = next((length for length in lengths if not 1 <= length <= most), None)
    if wrong is not None:
        raise ValueError(
            f"context: expected 1 to {most} tokens (the model's positions less {CURVE_TOKENS}), got {wrong}"
        )
    if not lengths:
        return {}
    generate, lanes = GenerateEngine(pair.base, pair.tokenizer), _lanes(pair, weights, options)
    for engine in (generate, *(engine for engine, _ in lanes.values())):
        engine.end_ids = frozenset({pair.base.config.vocab_size})  # an id that is never drawn
    random, peers = torch.Generator().manual_seed(0), dict(peers or {})
    costs = {}
    for length in lengths:
        spent: dict[str, list[RunCounts]] = defaultdict(list)
        for seed in range(runs + 1):
            prompt = torch.randint(pair.base.config.vocab_size, (length,), generator=random)
            spent["generate"].append(RunCounts.fold(generate.complete(prompt, options, CURVE_TOKENS, seed)))
            for lane, (engine, own) in lanes.items():
                spent[lane].append(RunCounts.fold(engine.stream(prompt, own, CURVE_TOKENS, seed)))
            for lane, answer in list(peers.items()):
                try:
                    spent[lane].append(answer(prompt.tolist(), seed))
                except LaneLost as error:
                    if lost is None:
                        raise
                    lost[lane] = f"{length} tokens of context: {error}"
                    del peers[lane], spent[lane]
        # The first reply of each warms up.
        costs[str(length)] = {
            lane: 1000 * sum(run.decode_seconds for run in timed) / passes
            for lane, (_, *timed) in spent.items()
            if (passes := sum(run.decode_passes for run in timed))  # none where a peer's texts end at once
        }
    return costs


def rows_throughput(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int,
    runs: int = 3,
    weights: Sequence[str] = (),
    peers: Mapping[str, Together] | None = None,
    lost: dict[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    """Decode tokens per second of model time by number of rows decoded together, and by lane.

    All prompts (ids) are answered at each number of rows, in groups, and again where they are fewer than
    rows; the passes that read them do not count.
    weights: also lanes on such copies, `own_int8` and so on; peers: other engines' lanes; lost: receives the
    reason for each of these that fails, which then has no numbers.
    """
    if not counts:
        return {}
    lanes = {lane: _together(*by) for lane, by in _lanes(pair, weights, options).items()} | dict(peers or {})
    spent = {count: {lane: np.zeros(2) for lane in lanes} for count in counts}
    for run in range(runs + 1):
        for count in counts if run else [max(counts)]:  # one group of each lane warms up
            texts = [prompts[place % len(prompts)] for place in range(max(count, len(prompts)))]
            starts = range(0, len(texts), count) if run else [0]
            for lane, answer in list(lanes.items()):
                try:
                    for start in starts:
                        group = texts[start : start + count]
                        timed = answer(group, range(start, start + len(group)), max_new_tokens)
                        if run:
                            spent[count][lane] += timed
                except LaneLost as error:
                    if lost is None:
                        raise
                    lost[lane] = str(error)
                    del lanes[lane]
    return {
        str(count): {lane: float(ratio(*by_lane[lane])) for lane in lanes} for count, by_lane in spent.items()
    }


def _together(engine: Engine, options: SamplingOptions) -> Together:
    def answer(
        prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int
    ) -> tuple[int, float]:
        run = RunCounts()
        for _, record in engine.stream_batch(prompts, options, max_new_tokens, seeds):
            run.add(record)
        return run.decode_tokens, run.decode_seconds

    return answer


def threads_cost(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    options: SamplingOptions,
    runs: int = 3,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a pass by number of CPU threads and by lane; the counts take turns."""
    engines = _engines(pair)
    spent: dict[int, dict[str, list[float]]] = {count: {lane: [] for lane in engines} for count in counts}
    before = torch.get_num_threads()
    try:
        for run in range(runs + 1):  # the first warms up
            for seed, prompt in enumerate(prompts):
                for count in counts:
                    torch.set_num_threads(count)
                    for lane, engine in engines.items():
                        records = list(engine.stream(prompt, options, CURVE_TOKENS, seed))
                        spent[count][lane] += [record.seconds for record in records[1:] if run]
    finally:
        torch.set_num_threads(before)
    return {
        str(count): {lane: 1000 * median(seconds) for lane, seconds in lanes.items()}
        for count, lanes in spent.items()
    }


def top_k_cost(
    pair: Pair, prompts: Sequence[Sequence[int]], counts: Sequence[int], options: SamplingOptions
) -> dict[str, dict[str, float]]:
    """Milliseconds of DynaMo's pass and of its parts by number of candidates k (profiled runs)."""
    costs = {}
    for count in counts:
        lane = profile_lanes(pair, prompts, replace(options, top_k=count))["dynamo"]
        costs[str(count)] = {**lane.parts, "pass": lane.pass_ms, "sampler_share": lane.sampler_share}
    return costs


def bandwidth(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Bytes per second at which a matrix far larger than the caches is read by a matrix-vector product."""
    columns = 4096
    rows = BANDWIDTH_BYTES[device.type] // (columns * dtype.itemsize)
    matrix, vector = (
        torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, columns), (columns,))
    )
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    best = float("inf")
    for _ in range(repeats + 1):
        synchronise()
        started = time.perf_counter()
        torch.mv(matrix, vector)
        synchronise()
        best = min(best, time.perf_counter() - started)
    return matrix.numel() * dtype.itemsize / best
