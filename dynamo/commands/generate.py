"""Write one reply with DynaMo (or a stock base model) and mark its chunks: [three tokens] from one pass.

If the tokenizer has a chat template, the prompt is sent as a chat message; otherwise it is completed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamo.common.options import add_arguments, from_arguments
from dynamo.common.threads import add_threads_argument, settle_threads
from dynamo.decoding.packed import WEIGHTS
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import Recorder, RunCounts


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say to the model")
    add_model_argument(parser)
    add_loading_arguments(parser)
    add_engine_arguments(parser)
    add_generation_arguments(parser)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0],
                        help="the model's own, or copies of a float32 model's in 8 or 4 bits, on CPU "
                        f"(default: {WEIGHTS[0]})")  # fmt: skip
    add_threads_argument(parser)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="embedded", help="embedded, a folder or a hub id (default: embedded)"
    )


def add_prompts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, help="JSON list of chats (default: the 40 included)")
    parser.add_argument("--limit", type=int, default=0, help="only the first prompts, 0 for all (default)")


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded; `loading_options` reads them."""
    parser.add_argument("--quantize", choices=("8bit", "4bit"), help="load the model in 8 or 4 bits")
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    parser.add_argument(
        "--device-map", choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="spread layers over GPUs, the CPU's memory and the disk, instead of --device",
    )  # fmt: skip


def loading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `loading.load` and `load_model`."""
    return {name: getattr(arguments, name) for name in ("quantize", "device", "device_map")}


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="most tokens of a reply (default: 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument(
        "--stop", action="append", default=[], help="end where this string begins; may be repeated"
    )
    # Those not given are as chosen for the model (`sampling_options`).
    add_arguments(parser, SamplingOptions, absent=True)


def sampling_options(arguments: argparse.Namespace, chosen: SamplingOptions) -> SamplingOptions:
    return from_arguments(SamplingOptions, arguments, **asdict(chosen))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data import text
    from dynamo.decoding.engine import Engine

    sampling_options(arguments, SamplingOptions())  # a mistake is said before a model is loaded
    model, tokenizer, table = loading.load_model(arguments.model, **loading_options(arguments))
    options = sampling_options(arguments, loading.chosen_options(model))
    engine = Engine(model, table, tokenizer, arguments.weights)
    settle_threads(engine, arguments.threads)
    reply = Recorder(text.IncrementalDecoder(tokenizer, arguments.stop))
    prompt = text.encode_prompt(tokenizer, arguments.prompt)
    if engine.heads > 1 and table is None and options.correction in ("table", "smoothed"):
        print("no co-occurrence table: the joint is not masked", file=sys.stderr)
    steps = engine.stream(prompt, options, arguments.max_new_tokens, arguments.seed, arguments.stop)
    try:
        for step in steps:
            print(reply.take(step).marked, end="", file=sys.stderr, flush=True)
        print(reply.end().text, end="", file=sys.stderr)
    finally:
        print(file=sys.stderr)
    print(f"\n{in_words(reply)}", file=sys.stderr)
    return {"model": arguments.model, "table": table is not None, **summary(reply)}


def in_words(run: RunCounts) -> str:
    """A line of figures for a reader."""
    counted = f"{len(run.tokens)} tokens in {run.passes} passes: {run.tokens_per_forward:.2f} tokens a pass"
    speed = run.tokens_per_second
    pace = f"{speed:.0f} tokens/s of model time after the first pass" if speed else "too short to time"
    return f"{counted}, {pace}"


def summary(run: Recorder) -> dict[str, Any]:
    """The figures of a reply for a command's result."""
    return {
        "text": run.text,
        "tokens": len(run.tokens),
        "passes": run.passes,
        "tokens_per_forward": run.tokens_per_forward,
        "decode_tokens_per_second": run.tokens_per_second,
        "orders": run.orders,
    }
