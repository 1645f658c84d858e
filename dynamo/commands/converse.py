"""Have a chat model write conversations, its own questions and answers: training data for its token heads.

Writes OUTPUT (for training), .dev and .test files beside it, and a .json of settings and counts; a run that
was killed goes on with the same command.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from dynamo.common.options import add_arguments, from_arguments
from dynamo.data.reading import DATA_HELP, STRICT_HELP, Reading
from dynamo.pipelines.conversation_writer import ConverseOptions
from dynamo.pipelines.converse import converse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="any chat model: folder, GGUF file or hub id")
    parser.add_argument("--output", required=True, type=Path, help=".jsonl file to write")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokens", type=int, default=0, help="answer tokens to write")
    what.add_argument(
        "--prompts", nargs="+", help="instead: answer the first questions of these. " + DATA_HELP
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="of weights and cache (default: whichever multiplies faster here)")  # fmt: skip
    add_arguments(parser, ConverseOptions)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from dynamo import loading
    from dynamo.data.sources import data_files, read_questions

    options = from_arguments(ConverseOptions, arguments)
    questions = None
    if arguments.prompts:
        reading = Reading(arguments.strict)
        questions = list(read_questions(data_files(arguments.prompts, "prompts"), reading))
        reading.say("prompts", f"{len(questions):,} first questions")
    folder = loading.resolve(arguments.model, any_kind=True)
    device = loading.checked_device(arguments.device)
    named = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    dtype = named or faster_dtype(options.rows, device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    tokenizer = loading.load_tokenizer(folder)
    return converse(
        model,
        tokenizer,
        arguments.output,
        arguments.tokens,
        options,
        questions,
        arguments.model,
        progress=True,
    )


def faster_dtype(rows: int, device: torch.device) -> torch.dtype:
    """float32 or bfloat16, whichever multiplies `rows` states faster on this device."""

    def seconds(dtype: torch.dtype) -> float:
        states = torch.ones(rows, 512, dtype=dtype, device=device)
        matrix = torch.ones(512, 1024, dtype=dtype, device=device)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            (states @ matrix).sum().item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)

    return min((torch.float32, torch.bfloat16), key=seconds)
