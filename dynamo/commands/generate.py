"""Write one reply with DynaMo (or a stock GPT-NeoX) and show its chunks: [three tokens] came out of one pass.

A model whose tokenizer has the chat template gets the prompt as a chat message; any other completes it.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dynamo.common.options import add_arguments, from_arguments
from dynamo.common.threads import add_threads_argument, settle_threads
from dynamo.decoding.packed import WEIGHTS
from dynamo.sampling.sampler import SamplingOptions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say to the model")
    parser.add_argument(
        "--model", default="embedded", help="embedded, a folder or a hub id (default: embedded)"
    )
    add_loading_arguments(parser)
    add_engine_arguments(parser)
    add_generation_arguments(parser)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0],
                        help="the model's own, or 8-bit copies of a float32 model's on CPU: faster, and not "
                        f"for exact mode (default: {WEIGHTS[0]})")  # fmt: skip
    add_threads_argument(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded; `loading_options` reads them again."""
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
    parser.add_argument("--stop", action="append", default=[], help="end at this string; may be given again")
    add_arguments(parser, SamplingOptions)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data import text
    from dynamo.decoding.engine import Engine

    options = from_arguments(SamplingOptions, arguments)
    model, tokenizer, table = loading.load_model(arguments.model, **loading_options(arguments))
    engine = Engine(model, table, tokenizer, arguments.weights)
    settle_threads(engine, arguments.threads)
    reply = Reply(tokenizer)
    prompt = text.encode_prompt(tokenizer, arguments.prompt)
    if engine.heads > 1 and table is None:
        print("no co-occurrence table: the joint is not masked", file=sys.stderr)
    steps = engine.stream(prompt, options, arguments.max_new_tokens, arguments.seed, arguments.stop)
    try:
        for step in steps:
            print(reply.add(step), end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
    print(f"\n{reply.line()}", file=sys.stderr)
    return {"model": arguments.model, "table": table is not None, **reply.summary()}


class Reply:
    """A stream of records folded into text, marked text and counts."""

    def __init__(self, tokenizer: Any):
        from dynamo.data.text import IncrementalDecoder

        self._decoder = IncrementalDecoder(tokenizer)
        self.text = ""
        self.steps: list[Any] = []

    def add(self, step: Any) -> str:
        """The step's text, in brackets where it holds several tokens."""
        piece = "".join(self._decoder.push(step.tokens))
        self.text += piece
        self.steps.append(step)
        return f"[{piece}]" if step.order > 1 and piece else piece

    @property
    def tokens(self) -> int:
        return sum(len(step.tokens) for step in self.steps)

    def decode_tokens_per_second(self) -> float | None:
        """Over the passes after the first, which also reads the prompt; None if there were none."""
        later = [step for step in self.steps if not step.prefill]
        seconds = sum(step.seconds for step in later)
        return sum(len(step.tokens) for step in later) / seconds if later else None

    def line(self) -> str:
        passes, speed = len(self.steps), self.decode_tokens_per_second()
        pace = f"{speed:.0f} tokens/s of model time after the first pass" if speed else "too short to time"
        return f"{self.tokens} tokens in {passes} passes: {self.tokens / passes:.2f} tokens a pass, {pace}"

    def summary(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "tokens": self.tokens,
            "passes": len(self.steps),
            "tokens_per_forward": self.tokens / len(self.steps),
            "decode_tokens_per_second": self.decode_tokens_per_second(),
            "orders": [step.order for step in self.steps],
        }
