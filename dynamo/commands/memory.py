"""Measure a model's memory, loaded in every way: in 32, 16, 8 and 4 bits, and partly on disk.

Each way runs in its own process, which loads the pair, answers once with both models and reports where its
weights are and its peak memory. --shape measures random weights in a Pythia's shape, saved in float16 as
Pythia's are. A single checkpoint shares its weights with the base that it is compared to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dynamo.commands.generate import add_model_argument

WAYS = ("float32", "bfloat16", "8bit", "4bit", "disk")
NEW_TOKENS = 8
PROMPT = "What is the weather in Oakland tomorrow?"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--shape", help="random weights instead: pythia-70m .. pythia-12b, or 6x512x8x50304")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json for --shape (default: a small one)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help=f"of {', '.join(WAYS)} (default: all); disk: partly on disk")  # fmt: skip
    parser.add_argument("--here", action="store_true", help="one way, in this process")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.here:
        if len(arguments.ways) != 1 or arguments.shape:
            raise ValueError("here: name one of the ways with --ways, and a model")
        return measure_memory(arguments.model, arguments.ways[0])
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.shape:
            model = str(Path(folder) / arguments.shape)
            look_alike(arguments.shape, Path(model), arguments.tokenizer)
        ways = {way: _in_own_process(model, way) for way in arguments.ways}
    print("MB            weights  on disk    peak  of it before loading", file=sys.stderr)
    for way, each in ways.items():
        memory = sum(count for place, count in each["weights_mb"].items() if place != "disk")
        disk = each["weights_mb"].get("disk", 0.0)
        print(
            f"{way:10} {memory:10.1f} {disk:8.1f} {each['peak_mb']:7.0f} {each['before_mb']:8.0f}",
            file=sys.stderr,
        )
    return {"model": arguments.shape or arguments.model, "ways": ways}


def _in_own_process(model: str, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "dynamo", "memory", "--model", model, "--ways", way, "--here"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{way}: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(model: str, way: str) -> dict[str, Any]:
    """Bytes by place and the process's peak, in MB, once both models of a pair have answered."""
    import torch

    from dynamo import loading
    from dynamo.common.memory import peak_memory
    from dynamo.data import text
    from dynamo.decoding.engine import Engine
    from dynamo.evaluation.machine import describe
    from dynamo.loading.names import resolve
    from dynamo.loading.sizes import stored_bytes

    device = loading.default_device()
    before = _most_resident()
    options: dict[str, Any] = {"dtype": torch.float32}
    if way == "bfloat16":
        options["dtype"] = torch.bfloat16
    elif way in loading.QUANTISATIONS:
        options |= {"quantize": way, "dtype": loading.default_dtype(device)}
    elif way == "disk":
        folders = list(loading.model_folders(resolve(model)).values())
        whole = max(stored_bytes([folder], torch.float32, None) for folder in folders)
        options |= {"device_map": "auto", "max_memory": {"cpu": whole * 3 // 4}}
    pair = loading.load(model, **options)
    prompt = text.encode_prompt(pair.tokenizer, PROMPT)
    for engine in (Engine(pair.base), Engine(pair.dynamo, pair.table)):
        for _ in engine.stream(prompt, max_new_tokens=NEW_TOKENS):
            pass
    places = loading.memory_by_device(pair.base, pair.dynamo)
    return {
        "weights_mb": {place: round(count / 1e6, 1) for place, count in sorted(places.items())},
        "peak_mb": round((peak_memory(device) if device.type == "cuda" else _most_resident()) / 1e6, 1),
        "before_mb": round(before / 1e6, 1),
        "machine": describe(pair.dynamo),
    }


def _most_resident() -> int:
    """The most bytes this process held; the kernel's other count includes the process that started it."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    import torch

    from dynamo.common.memory import peak_memory

    return peak_memory(torch.device("cpu"))


def look_alike(shape: str, folder: Path, tokenizer: Path | None = None) -> None:
    """A DynaMo checkpoint of random weights in a shape, saved in float16 with its tokenizer."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from dynamo.data.schema_guided import train_tokenizer
    from dynamo.evaluation.shapes import random_pair
    from dynamo.training.trainer import save_model

    pair = random_pair(shape, torch.device("cpu"))
    if tokenizer is None:
        turns = [{"role": "user", "content": PROMPT}]
        made = train_tokenizer(iter([turns]), vocab_size=300, max_length=2048)
    elif tokenizer.is_file():
        made = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<|endoftext|>")
    else:
        raise ValueError(f"tokenizer: there is no file {tokenizer}")
    save_model(pair.dynamo.half(), made, folder)
