"""Speed on this machine, honestly: lanes interleaved, warmed up, pooled, and both clocks.

transformers' generate (eager), its prompt lookup, our one-token loop on the base model, DynaMo at the default
threshold and in exact mode; where a pass's time goes; and what share of the memory bandwidth is used.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamo.sampler import SamplingOptions

QUICK_PROMPTS = 10
SPLIT_PROMPTS = 6
DYNAMO_LANES = ("dynamo", "exact")
SHAPE_LANES = ("generate", "own", "dynamo")
SHAPE_PROMPTS, SHAPE_PROMPT_TOKENS = 4, 64


def configure(parser: argparse.ArgumentParser) -> None:
    default = SamplingOptions()
    parser.add_argument(
        "--model", default="embedded", help="embedded, a folder or a hub id (default: embedded)"
    )
    parser.add_argument("--shape", help="random weights instead: pythia-70m .. pythia-12b, or 6x512x8x50304")
    parser.add_argument("--prompts", type=Path, help="JSON list of chats (default: the 40 that come along)")
    parser.add_argument("--limit", type=int, default=0, help="only the first prompts, 0 for all (default)")
    parser.add_argument(
        "--runs", type=int, default=3, help="replies of each lane to each prompt (default: 3)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="most tokens of a reply (default: 128)"
    )
    parser.add_argument(
        "--threshold", type=float, default=default.threshold, help=f"DynaMo's (default: {default.threshold})"
    )
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK_PROMPTS} prompts")
    parser.add_argument("--rows", type=int, nargs="+", default=[], metavar="ROWS",
                        help="also the throughput of so many replies decoded together")  # fmt: skip
    parser.add_argument("--context", type=int, nargs="+", default=[], metavar="TOKENS",
                        help="also the cost of a pass at these lengths of context")  # fmt: skip
    parser.add_argument("--top-k", type=int, nargs="+", default=[], metavar="K",
                        help="also the cost of a pass at these numbers of candidates")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of the processor (default: torch's choice)")
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    parser.add_argument("--output", type=Path, help="write the result here too, as JSON")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from dynamo.evaluation import bench, cost, machine
    from dynamo.evaluation.files import write_json
    from dynamo.evaluation.split import split

    options = SamplingOptions(threshold=arguments.threshold)
    _check(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    pair, prompts = _contestants(arguments)
    only = SHAPE_LANES if arguments.shape else ()
    lanes, flags = bench.lanes(pair, options, arguments.max_new_tokens, only)
    with tqdm(
        total=arguments.runs * len(prompts) * len(lanes), unit="reply", leave=False, disable=None
    ) as bar:
        times = bench.interleave(lanes, prompts, arguments.runs, bar.update)
    ratios = bench.ratios(times)
    profile = split(pair, prompts[:SPLIT_PROMPTS], options)
    reading = cost.bandwidth(pair.base.device, pair.base.dtype)
    read = [bench.bytes_per_pass(model) for model in (pair.base, pair.dynamo)]
    result = {
        "model": pair.name,
        **{name: each.value for name, each in ratios.items()},
        "tokens_per_forward": times["dynamo"].tokens_per_forward,
        "conversion": bench.conversion(times),
        "sampler_share": profile.lanes["dynamo"].sampler_share,
        "intervals": {name: [each.low, each.high] for name, each in ratios.items()},
        "lanes": {
            name: {
                **each.to_json(),
                "share_of_bandwidth": read[name in DYNAMO_LANES] * each.passes_per_second / reading,
                **({"flags": flags[name]} if name in flags else {}),
            }
            for name, each in times.items()
        },
        "split": profile.to_json(),
        "bandwidth_gb_per_second": reading / 1e9,
        "peak_memory_mb": cost.peak_memory(pair.base.device) / 1e6,
        "prompts": len(prompts),
        "runs": arguments.runs,
        "max_new_tokens": arguments.max_new_tokens,
        "options": asdict(options),
        "machine": machine.describe(pair.dynamo),
        "rows_tokens_per_second": cost.rows_throughput(pair, prompts, arguments.rows, options),
        "context_ms": cost.context_cost(pair, arguments.context, options),
        "top_k_ms": cost.top_k_cost(pair, prompts[:SPLIT_PROMPTS], arguments.top_k, options),
    }
    _print(result)
    if arguments.output is not None:
        write_json(arguments.output, result)
    return result


def _check(arguments: argparse.Namespace) -> None:
    """What would otherwise be found out minutes later."""
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"threads: expected 1 or more, got {arguments.threads}")
    for count in arguments.top_k:
        SamplingOptions(top_k=count)
    for count in arguments.rows:
        if count < 1:
            raise ValueError(f"rows: expected 1 or more, got {count}")
    if arguments.output is not None and not arguments.output.resolve().parent.is_dir():
        raise ValueError(f"output: the folder of {arguments.output} does not exist; make it first")


def _contestants(arguments: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    """The pair and the prompts' ids; random ones for a random model."""
    import numpy as np

    from dynamo import loading
    from dynamo.commands.prompts import read_prompts
    from dynamo.evaluation.shapes import random_pair

    limit = arguments.limit or (QUICK_PROMPTS if arguments.quick else 0)
    if arguments.shape is None:
        pair = loading.load(arguments.model, device=arguments.device)
        return pair, read_prompts(arguments.prompts, pair.tokenizer, limit)
    pair = random_pair(arguments.shape, loading.checked_device(arguments.device))
    random = np.random.default_rng(0)
    shape = (limit or SHAPE_PROMPTS, SHAPE_PROMPT_TOKENS)
    return pair, random.integers(pair.base.config.vocab_size, size=shape).tolist()


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
            f"{100 * lane['share_of_bandwidth']:7.0f} %",
            file=sys.stderr,
        )
    for name, (low, high) in result["intervals"].items():
        print(f"{name:22} {result[name]:5.2f}   95 % over prompts {low:.2f} to {high:.2f}", file=sys.stderr)
    print(f"{'conversion':22} {result['conversion']:5.2f}", file=sys.stderr)
    print(f"{'sampler / forward':22} {result['sampler_share']:5.2f}", file=sys.stderr)
    for lane, parts in result["split"].items():
        shares = "  ".join(f"{part} {ms:.3f}" for part, ms in parts["parts"].items())
        print(f"{lane}, profiled, ms a pass: {shares}  sum {parts['pass_ms']:.3f}", file=sys.stderr)
    for count, speeds in result["rows_tokens_per_second"].items():
        told = "  ".join(f"{lane} {speed:.0f} tokens/s" for lane, speed in speeds.items())
        print(f"rows {count}: {told}", file=sys.stderr)
    for length, costs in result["context_ms"].items():
        print(f"context {length}: " + _milliseconds(costs), file=sys.stderr)
    for count, costs in result["top_k_ms"].items():
        print(f"top-k {count}: " + _milliseconds(costs), file=sys.stderr)


def _milliseconds(costs: dict[str, float]) -> str:
    return "  ".join(f"{name} {ms:.3f}" for name, ms in costs.items())
