"""What this project does on a GPU, in nine minutes: `python tools/gpu_check.py --output DIR`.

Parts, in this order: passes on the device against the CPU's, with CUDA graphs; decoding speed by shape;
training throughput; SmolLM2's conversations and heads on them. Each runs in a process of its own and writes
DIR/PART.json; a part that is there already is not run again, one that fails or finds no time left says so,
and the rest go on. The last line on stdout is one JSON object with all of them. Nothing is installed, and
nothing downloaded but SmolLM2 where it is not there yet. `--device cpu --quick` runs the same parts small.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PARTS = ("correctness", "decoding", "training", "heads")
BUDGET = 530.0  # seconds
PAPER = 184_000  # tokens a second: DynaMo-77M-T3 on an A100, Table 4's hours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny shapes, a few steps")
    parser.add_argument(
        "--seconds", type=float, default=BUDGET, help=f"for all parts (default: {BUDGET:.0f})"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --quick runs the same parts small", file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        started = time.perf_counter()
        found = globals()[arguments.part](arguments)
        write(arguments.output / f"{arguments.part}.json", found | {"seconds": time.perf_counter() - started})
        return 0
    results = run_parts(arguments)
    print(json.dumps(results))
    return int(any("error" in each for each in results.values()))


def run_parts(arguments: argparse.Namespace) -> dict[str, Any]:
    ends = time.monotonic() + arguments.seconds
    results: dict[str, Any] = {}
    for part in PARTS:
        file = arguments.output / f"{part}.json"
        left = ends - time.monotonic()
        if not file.exists() and left > 0:
            print(f"{part} ..", file=sys.stderr)
            command = [sys.executable, __file__, "--part", part, "--output", str(arguments.output),
                       "--device", arguments.device, *(["--quick"] if arguments.quick else [])]  # fmt: skip
            try:
                subprocess.run(command, check=True, timeout=left, stdout=sys.stderr)
            except subprocess.TimeoutExpired:
                results[part] = {"error": f"not done within the {left:.0f} s that were left"}
            except subprocess.CalledProcessError as error:
                results[part] = {"error": f"ended with code {error.returncode}, see above"}
        if file.exists():
            results[part] = json.loads(file.read_text(encoding="utf-8"))
        results.setdefault(part, {"error": "no time was left"})
    return results


def write(file: Path, found: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    part.rename(file)  # whole or not at all


# -- parts ------------------------------------------------------------------------------------------------


def correctness(arguments: argparse.Namespace) -> dict[str, Any]:
    """Logits of the same chunks on the CPU, by the model's own modules in float32, and on the device."""
    import copy

    import torch

    from dynamo import load
    from dynamo.decoding.decoder import Decoder
    from dynamo.decoding.static import StaticDecoder
    from dynamo.evaluation import machine
    from dynamo.evaluation.shapes import random_pair

    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = torch.device("cpu")
    makers = {"embedded": lambda: load("embedded", device="cpu", dtype=torch.float32)}
    makers["3x64x4x500"] = lambda: random_pair("3x64x4x500", cpu, torch.float32)
    if not arguments.quick:
        makers["smollm2"] = lambda: load("smollm2", device="cpu", dtype=torch.float32)
        makers["pythia-160m"] = lambda: random_pair("pythia-160m", cpu, torch.float32)
    found: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            model = make().dynamo
        except (OSError, ValueError) as error:  # SmolLM2's base may not be at hand
            found[name] = {"left_out": str(error)}
            continue
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (80,), generator=random).tolist()
        expected = logits_of(Decoder(model, packed=False), ids)
        found[name] = {}
        for dtype in (torch.float32, torch.bfloat16):
            there = copy.deepcopy(model).to(device=arguments.device, dtype=dtype)
            decoder = StaticDecoder(there)
            ours = logits_of(decoder, ids)
            ordinary = logits_of(Decoder(there, packed=False), ids)
            log_p, log_q, log_r = (each.float().log_softmax(-1) for each in (expected, ours, ordinary))
            found[name][str(dtype).removeprefix("torch.")] = {
                "largest_difference": float((ours - expected).abs().max()),
                "kl_to_cpu": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
                "kl_static_to_ordinary": float((log_r.exp() * (log_r - log_q)).sum(-1).mean()),
                "passes_captured": arguments.device == "cuda" and not decoder.gave_up,
            }
            del there, decoder
    return {"models": found, "machine": machine.describe(model)}


def logits_of(decoder: Any, ids: list[int]) -> Any:
    """Of every head at the ends of a prompt and of chunks of one to three tokens: (ends, heads, vocab)."""
    import torch

    state, at, logits = decoder.new_cache(len(ids)), 0, []
    for count in (20, *(1, 2, 3) * 10):
        logits.append(decoder.forward(state, ids[at : at + count]).float().cpu())
        at += count
    return torch.stack(logits)


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of `generate`, our loop and DynaMo at threshold 0 (three tokens a pass), on random
    weights in bfloat16: the speed depends on shapes alone."""
    import torch

    from dynamo import SamplingOptions
    from dynamo.evaluation import bench, cost, machine
    from dynamo.evaluation.shapes import random_pair

    device = torch.device(arguments.device)
    sizes = ("pythia-160m", "pythia-1b", "pythia-410m", "pythia-2.8b", "pythia-70m", "pythia-6.9b")
    shapes, tokens = (("3x64x4x500",), 12) if arguments.quick else (sizes, 96)
    options = SamplingOptions(threshold=0.0, correction="none")
    reading = cost.bandwidth(device, torch.bfloat16)
    found = {}
    for shape in shapes:
        pair = random_pair(shape, device, torch.bfloat16)
        prompts = torch.randint(3, pair.base.config.vocab_size, (2, 64)).tolist()
        lanes, _, read = bench.lanes(pair, options, tokens, ("generate", "own", "dynamo"))
        times = bench.interleave(lanes, prompts, runs=2)
        found[shape] = {
            **{name: each.value for name, each in bench.ratios(times).items()},
            "conversion": bench.conversion(times).value,
            "lanes": {
                name: each.to_json() | {"share_of_bandwidth": each.share_of(reading, read[name]).value}
                for name, each in times.items()
            },
        }
        print(shape, json.dumps(found[shape]), file=sys.stderr)
        del pair, lanes
        if device.type == "cuda":
            torch.cuda.empty_cache()
    described = machine.describe(random_pair("3x64x4x500", device, torch.bfloat16).dynamo)
    return {"shapes": found, "bandwidth_gb_per_second": reading / 1e9, "machine": described}


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of steps that train DynaMo-77M-T3 whole, with autocast to bfloat16."""
    import torch

    from dynamo.evaluation import machine
    from dynamo.evaluation.shapes import random_pair

    device = torch.device(arguments.device)
    shape, rows, length, steps = ("3x64x4x500", 2, 32, 3) if arguments.quick else ("pythia-70m", 16, 2048, 20)
    model = random_pair(shape, device, torch.float32).dynamo.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    ids = torch.randint(3, model.config.vocab_size, (rows, length), device=device)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for step in range(steps + 2):
        if step == 2:  # the first ones warm up
            synchronise()
            started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    synchronise()
    speed = steps * rows * length / (time.perf_counter() - started)
    return {
        "tokens_per_second": speed,
        "over_the_papers_a100": speed / PAPER if shape == "pythia-70m" else None,
        "loss": float(loss.detach()),
        "machine": machine.describe(model),
    }


def heads(arguments: argparse.Namespace) -> dict[str, Any]:
    """A chat model's own conversations, and heads trained on them, by this project's commands."""
    if arguments.quick:  # on the model that is always there
        model, steps = "embedded/base", "2"
        size = [
            "--tokens",
            "300",
            "--rows",
            "4",
            "--longest",
            "400",
            "--longest-turn",
            "32",
            "--longest-answer",
            "64",
        ]
    else:
        model, steps, size = "smollm2/base", "60", ["--tokens", "60000"]
    words = str(arguments.output / "conversations.jsonl")
    return {
        "converse": command(
            "converse", "--model", model, "--device", arguments.device, "--output", words, *size
        ),
        "train": command(
            "train", "--model", model, "--data", words, "--output", str(arguments.output / "heads"),
            "--heads", "3", "--heads-only", "--head-init", "copy", "--correlator-rank", "384",
            "--steps", steps, "--block-size", "256",
        ),
    }  # fmt: skip


def command(*words: str) -> dict[str, Any]:
    """What one of this project's commands gives: its last line, and its seconds."""
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "dynamo", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(ran.stdout.strip().splitlines()[-1]) | {"wall_seconds": time.perf_counter() - started}


if __name__ == "__main__":
    sys.exit(main())
