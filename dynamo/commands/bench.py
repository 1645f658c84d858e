"""Measure speed on this machine: lanes interleaved, warmed up and pooled; tokens per pass and per second.

Lanes are transformers' generate (eager; compiled with a static cache), its prompt lookup, assisted generation
with a draft model, our one-token loop on the base model, DynaMo at the default threshold and in exact mode,
other engines on the same weights where they are asked for.
Also where a pass's time goes, and what share of the memory bandwidth is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dynamo.commands.generate import add_model_argument, add_prompts_arguments
from dynamo.common.files import check_output
from dynamo.common.memory import peak_memory
from dynamo.common.threads import AUTO, add_threads_argument, checked_threads, settle_threads
from dynamo.decoding.engine import Engine
from dynamo.decoding.generate import GenerateEngine
from dynamo.decoding.packed import WEIGHTS
from dynamo.evaluation import peers
from dynamo.evaluation.subprocess_lane import PairSpec
from dynamo.sampling.options import SamplingOptions

QUICK_PROMPTS = 10
SPLIT_PROMPTS = 6
SHAPE_LANES = ("generate", "own", "dynamo", "own_int8", "dynamo_int8", "own_int4", "dynamo_int4")
COMPILE_LIMIT = 300.0  # seconds
SHAPE_PROMPTS, SHAPE_PROMPT_TOKENS = 4, 64


def configure(parser: argparse.ArgumentParser) -> None:
    default = SamplingOptions()
    add_model_argument(parser)
    parser.add_argument("--shape", help="random weights instead: pythia-70m .. pythia-12b, or 6x512x8x50304")
    add_prompts_arguments(parser)
    parser.add_argument(
        "--runs", type=int, default=3, help="replies of each lane to each prompt (default: 3)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="most tokens of a reply (default: 128)"
    )
    parser.add_argument(
        "--threshold", type=float, default=default.threshold, help=f"DynaMo's (default: {default.threshold})"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"only the first {QUICK_PROMPTS} prompts, and nothing compiled"
    )
    parser.add_argument("--draft-model", metavar="MODEL",
                        help="a smaller model of the same vocabulary: adds assisted generation")  # fmt: skip
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS[1:], default=[],
                        help="adds our loop and DynaMo on such copies of the weights, on CPU")  # fmt: skip
    parser.add_argument("--peer", nargs="+", choices=peers.PEERS, default=[],
                        help="adds these engines, where they are installed")  # fmt: skip
    parser.add_argument("--peer-python", default=sys.executable, metavar="PROGRAM",
                        help="the Python that has them (default: this one)")  # fmt: skip
    parser.add_argument("--peer-model", type=Path, metavar="FILE",
                        help="GGUF file for llama.cpp (default: what the base was read from)")  # fmt: skip
    parser.add_argument("--compile-limit", type=float, default=COMPILE_LIMIT, metavar="SECONDS",
                        help="a compiled lane is left out if it takes longer; 0 for none "
                        f"(default: {COMPILE_LIMIT:.0f})")  # fmt: skip
    parser.add_argument("--rows", type=int, nargs="+", default=[], metavar="ROWS",
                        help="also the throughput of this many replies decoded together")  # fmt: skip
    parser.add_argument("--context", type=int, nargs="+", default=[], metavar="TOKENS",
                        help="also a pass's cost, and tokens/s, at these lengths of context")  # fmt: skip
    parser.add_argument("--top-k", type=int, nargs="+", default=[], metavar="K",
                        help="also the cost of a pass at these numbers of candidates")  # fmt: skip
    parser.add_argument("--thread-counts", type=int, nargs="+", default=[], metavar="N",
                        help="also the cost of a pass with these numbers of threads")  # fmt: skip
    add_threads_argument(parser)
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    parser.add_argument("--output", type=Path, help="write the result here too, as JSON")
    parser.add_argument("--report", type=Path, metavar="PAGE",
                        help="only rewrite a page's tables and pictures from results it names")  # fmt: skip


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.common.files import write_json
    from dynamo.evaluation import bench, cost, machine
    from dynamo.evaluation.bench_report import rewrite
    from dynamo.evaluation.profile import profile_lanes

    if arguments.report is not None:
        from dynamo.charts.speeds import draw_speeds

        return {"report": str(arguments.report), "tables": rewrite(arguments.report, draw_speeds)}
    SamplingOptions(threshold=arguments.threshold)  # a mistake is said before a model is loaded
    _check(arguments)
    pair, prompts = _pair_and_prompts(arguments)
    options = replace(pair.options, threshold=arguments.threshold, exact=False)
    settle_threads(Engine(pair.dynamo, pair.table, pair.tokenizer), arguments.threads)
    times, flags, read, lost, many = _race(arguments, pair, prompts, options)
    profile = profile_lanes(pair, prompts[:SPLIT_PROMPTS], options)
    reading = cost.bandwidth(pair.base.device, pair.base.dtype)
    estimates = bench.ratios(times) | {
        "tokens_per_forward": times["dynamo"].per_forward(),
        "conversion": bench.conversion(times),
        "sampler_share": profile["dynamo"].sampler_estimate(),
        "bandwidth_share": times["own"].share_of(reading, read["own"]),
    }
    result = {
        "model": pair.name,
        **{name: each.value for name, each in estimates.items()},
        "intervals": {name: [each.low, each.high] for name, each in estimates.items()},
        "lanes": {
            name: {
                **each.to_json(),
                "share_of_bandwidth": each.share_of(reading, read[name]).value if name in read else None,
                **({"flags": flags[name]} if name in flags else {}),
            }
            for name, each in times.items()
        },
        "lost": lost,
        "split": {lane: each.to_json() for lane, each in profile.items()},
        "bandwidth_gb_per_second": reading / 1e9,
        "peak_memory_mb": peak_memory(pair.base.device) / 1e6,
        "prompts": len(prompts),
        "runs": arguments.runs,
        "max_new_tokens": arguments.max_new_tokens,
        "options": asdict(options),
        "machine": machine.describe(pair.dynamo),
        **many,
        "context_tokens_per_second": _speeds(many["context_ms"], times),
        "top_k_ms": cost.top_k_cost(pair, prompts[:SPLIT_PROMPTS], arguments.top_k, options),
        "threads_ms": cost.threads_cost(pair, prompts[:SPLIT_PROMPTS], arguments.thread_counts, options),
        "threads_asked": arguments.threads,
    }
    _print(result)
    if arguments.output is not None:
        write_json(arguments.output, result)
    return result


def _speeds(context: dict[str, dict[str, float]], times: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tokens a second by context and lane: passes over random texts, at the lanes' own tokens a pass."""
    return {
        length: {
            lane: 1000 / ms * times[lane].tokens_per_forward for lane, ms in costs.items() if lane in times
        }
        for length, costs in context.items()
    }


def _race(
    arguments: argparse.Namespace, pair: Any, prompts: Any, options: SamplingOptions
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int], dict[str, str], dict[str, Any]]:
    """By lane: its times, the flags of `transformers`' lanes, bytes a pass reads, why a lane was left out.
    Last what was measured with other lengths of context and with many rows, as the result has it.
    """
    import torch
    from tqdm import tqdm

    from dynamo.evaluation import bench, cost

    only = SHAPE_LANES if arguments.shape else ()
    draft = _draft(arguments, pair)
    lanes, flags, read = bench.lanes(pair, options, arguments.max_new_tokens, only, draft, arguments.weights)
    lost: dict[str, str] = {}
    longest = max([*map(len, prompts), *arguments.context]) + arguments.max_new_tokens
    with ExitStack() as open_lanes:
        compiled = open_lanes.enter_context(_compiled(arguments, prompts, options, lost))
        others = peers.start(
            arguments.peer, pair, options, arguments.max_new_tokens, longest, torch.get_num_threads(), lost,
            arguments.peer_python, arguments.peer_model,
        )  # fmt: skip
        for lane in others.values():
            open_lanes.callback(lane.close)
        lanes |= compiled | others
        flags |= {name: lane.flags for name, lane in others.items()}
        if compiled:
            flags["compiled"] = GenerateEngine(pair.base, pair.tokenizer, compiled=True).flags
            read["compiled"] = read["generate"]
        total = arguments.runs * len(prompts) * len(lanes)
        with tqdm(total=total, unit="reply", leave=False, disable=None) as bar:
            times = bench.interleave(lanes, prompts, arguments.runs, bar.update, lost)
        slots = {name: others[name].together for name in peers.TOGETHER if name in others and name in times}
        rows = cost.rows_throughput(
            pair, prompts, arguments.rows, options, arguments.max_new_tokens, arguments.runs,
            arguments.weights, slots, lost,
        )  # fmt: skip
        still_there = {name: lane for name, lane in others.items() if name in times}
        context = cost.context_cost(
            pair, arguments.context, options, weights=arguments.weights, peers=still_there, lost=lost
        )
    return times, flags, read, lost, {"rows_tokens_per_second": rows, "context_ms": context}


def _check(arguments: argparse.Namespace) -> None:
    """Refuses now what would otherwise fail minutes later."""
    for count in (*([] if arguments.threads == AUTO else [arguments.threads]), *arguments.thread_counts):
        checked_threads(count)
    if arguments.runs < 1:
        raise ValueError(f"runs: expected 1 or more, got {arguments.runs}")
    for count in arguments.top_k:
        SamplingOptions(top_k=count)
    for count in arguments.rows:
        if count < 1:
            raise ValueError(f"rows: expected 1 or more, got {count}")
    check_output(arguments.output)


def _pair_and_prompts(arguments: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    """The pair and the prompts' ids; random ones for a random model."""
    import numpy as np

    from dynamo.data.prompts import read_prompts

    limit = arguments.limit or (QUICK_PROMPTS if arguments.quick else 0)
    pair = _pair_spec(arguments).load()
    if arguments.shape is None:
        return pair, read_prompts(arguments.prompts, pair.tokenizer, limit)
    random = np.random.default_rng(0)
    shape = (limit or SHAPE_PROMPTS, SHAPE_PROMPT_TOKENS)
    return pair, random.integers(pair.base.config.vocab_size, size=shape).tolist()


def _pair_spec(arguments: argparse.Namespace) -> PairSpec:
    return PairSpec(arguments.model, arguments.shape, arguments.device)


def _draft(arguments: argparse.Namespace, pair: Any) -> Any:
    """The draft model; one that has token heads drafts with its first."""
    if arguments.draft_model is None:
        return None
    from dynamo import loading
    from dynamo.model import DynamoForCausalLM

    model, tokenizer, _ = loading.load_model(arguments.draft_model, device=arguments.device)
    if pair.tokenizer is None or tokenizer.get_vocab() != pair.tokenizer.get_vocab():
        raise ValueError(
            f"draft-model: {arguments.draft_model} has another vocabulary than {pair.name}; assisted "
            "generation compares tokens by their ids, so choose a smaller model of the same family"
        )
    return model.to_base() if isinstance(model, DynamoForCausalLM) else model


@contextmanager
def _compiled(
    arguments: argparse.Namespace, prompts: Any, options: SamplingOptions, lost: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The compiled lane by its name, ready to run; {} without one, the reason added to `lost`."""
    import torch

    from dynamo.evaluation.subprocess_lane import Compiled, LaneLost, RemoteLane

    if arguments.quick or arguments.compile_limit <= 0:
        yield {}
        return
    make = Compiled(_pair_spec(arguments), options, arguments.max_new_tokens, torch.get_num_threads())
    lane = RemoteLane(make, arguments.compile_limit)
    try:
        print("compiling transformers' decode step ..", file=sys.stderr)
        # The longest first: its cache is large enough for all.
        for prompt in (max(prompts, key=len), min(prompts, key=len)):
            lane(prompt, 0)
        compiled = {"compiled": lane}
    except LaneLost as error:
        lost["compiled"] = str(error)
        compiled = {}
    try:
        yield compiled
    finally:
        lane.close()


def _print(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(
        f"{result['model']}, {machine['dtype']}, {machine['device']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, transformers {machine['transformers']}, {machine['date']}\n"
        "lane             tokens/s    +-  tokens/pass  ms/pass  prompt ms  bandwidth",
        file=sys.stderr,
    )
    for name, lane in result["lanes"].items():
        print(
            f"{name:15}  {lane['tokens_per_second']:8.0f}  {lane['spread']:4.0f}  "
            f"{lane['tokens_per_forward']:11.2f}  {lane['ms_per_pass']:7.3f}  {lane['prefill_ms']:9.2f}  "
            + ("" if lane["share_of_bandwidth"] is None else f"{100 * lane['share_of_bandwidth']:7.0f} %"),
            file=sys.stderr,
        )
    for name, reason in result["lost"].items():
        print(f"{name:15}  left out: {reason}", file=sys.stderr)
    for name, (low, high) in result["intervals"].items():
        print(f"{name:33} {result[name]:5.2f}   95 % over prompts {low:.2f} to {high:.2f}", file=sys.stderr)
    for lane, parts in result["split"].items():
        shown = "  ".join(f"{part} {ms:.3f}" for part, ms in parts["parts"].items())
        print(f"{lane}, profiled, ms a pass: {shown}  sum {parts['pass_ms']:.3f}", file=sys.stderr)
    for count, speeds in result["rows_tokens_per_second"].items():
        shown = "  ".join(f"{lane} {speed:.0f} tokens/s" for lane, speed in speeds.items())
        print(f"rows {count}: {shown}", file=sys.stderr)
    for length, speeds in result["context_tokens_per_second"].items():
        shown = "  ".join(f"{lane} {speed:.0f} tokens/s" for lane, speed in speeds.items())
        print(f"context {length}: {shown}", file=sys.stderr)
    for label, name in (("context", "context_ms"), ("top-k", "top_k_ms"), ("threads", "threads_ms")):
        for count, costs in result[name].items():
            shown = "  ".join(f"{part} {ms:.3f}" for part, ms in costs.items())
            print(f"{label} {count}: {shown}", file=sys.stderr)
