"""The page: `python app.py`, then open the address that it prints.

DYNAMO_MODEL names what to load (default: SmolLM2 where the machine has it). The small pair that comes with
the project stands in for what is not available, and the page says so; DYNAMO_QUANTIZE may be 8bit or 4bit;
DYNAMO_VOTES names the folder of the blind votes ("" for none), DYNAMO_DATA that of the dialogues that heads
may be trained on, if it exists. All may be set in spaces_config.yaml.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Before the hub's library is imported. A download by Xet cannot be cancelled: its threads swallow what a
# progress bar raises.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import gradio as gr
import torch

from dynamo.data.prompts import EVERYDAY_FILE, read_prompts
from dynamo.evaluation.audit import audit
from dynamo.evaluation.few_bits import read_few_bits
from dynamo.evaluation.for_page import sweep_reports, time_split
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.loading import (
    EMBEDDED,
    SMOLLM2,
    SMOLLM2_FOLDER,
    Pair,
    at_hand,
    load,
    load_or_embedded,
    memory_of,
    opening_model,
)
from dynamo.spaces import AppConfig, read_config
from dynamo.ui import ModelManager, ModelPair, build_demo, launch_options, quota, serve
from dynamo.ui.server.zerogpu import GpuWorker

HERE = Path(__file__).parent
# What was recorded and measured of the pairs that are shipped.
SHIPPED = {EMBEDDED: HERE / "assets", SMOLLM2: SMOLLM2_FOLDER}


def main() -> None:
    global demo  # `gradio app.py` looks for it, to replace it when a file changes
    try:
        demo, options = build(os.environ)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    serve(demo, **options)


def build(environment: Mapping[str, str]) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page, its models loaded, and how to launch it. Raises ValueError or OSError in a sentence."""
    config = read_config(HERE / "spaces_config.yaml", environment)
    # First of all on ZeroGPU, as loading must not touch a GPU that is not there yet.
    gpu_worker = GpuWorker(quota(config.gpu_seconds)) if config.zero_gpu else None
    stage = partial(staged, gpu_worker=gpu_worker, threads=torch.get_num_threads())
    model, missing = (config.model, "") if config.model else opening_model(config.models)
    pair, notice = load_or_embedded(model, quantize=config.quantize)
    first = stage(pair)
    demo = build_demo(
        first,
        notice=notice or missing,
        recording=shipped(pair.name, "recording.ndjson"),
        votes=config.votes,
        strip=not config.zero_gpu,
        queue_size=config.queue_size,
        limits=config.limits,
        models=model_choice(config, stage, first, memory_of(pair.base, pair.dynamo)),
    )
    return demo, launch_options(config.limits)


def staged(pair: Pair, gpu_worker: GpuWorker | None = None, threads: int = 1) -> ModelPair:
    """A pair as the page runs it, with what can be measured of it; threads: of the processor, at most."""
    model_pair = ModelPair.from_pair(pair, gpu_worker)
    opinion = partial(audit, pair.base)
    if pair.weights == "own" and (sweep := shipped(pair.name, "sweep.json")):
        model_pair = replace(model_pair, report=SweepReport.read(sweep).to_json())
    if gpu_worker is not None:
        # A profile or a sweep would take the quota of many answers.
        return replace(model_pair, audit=gpu_worker.function(f"audit of {pair.name}", opinion))
    settle = partial(model_pair.engines.settle, threads)
    settle()
    prompts = read_prompts(None if pair.name == EMBEDDED else EVERYDAY_FILE, pair.tokenizer)
    return replace(
        model_pair,
        settle=settle,
        audit=opinion,
        profile=partial(time_split, pair, prompts),
        sweep=partial(sweep_reports, pair, prompts),
    )


def shipped(name: str, file: str) -> Path | None:
    """A file that comes with a pair of this project."""
    path = SHIPPED[name] / file if name in SHIPPED else None
    return path if path is not None and path.is_file() else None


def model_choice(
    config: AppConfig, stage: Callable[[Pair], ModelPair], first: ModelPair, held: int
) -> Callable[..., ModelManager] | None:
    """Which models a visitor may load; on ZeroGPU all of them are loaded before the page is served."""
    if not config.model_choice:
        return None
    ready = {}
    if config.zero_gpu:
        others = dict.fromkeys((EMBEDDED, *filter(at_hand, config.models)))
        others.pop(first.name, None)
        ready = {first.name: first, **{each: stage(load(each, quantize=config.quantize)) for each in others}}
    return partial(
        ModelManager,
        stage=stage,
        names=config.models,
        any_model=not config.on_space,
        ready=ready,
        training_folder=None if config.on_space else HERE / "trained",
        dialogues=dialogues_in(config.data),
        few_bits={name: read_few_bits(file) for name in SHIPPED if (file := shipped(name, "few_bits.json"))},
        held=held,
    )


def dialogues_in(folder: Path | None) -> Path | None:
    """What the embedded pair was trained on, where this machine has it: no part of the project."""
    path = folder / "dialogues_train.jsonl.gz" if folder else None
    return path if path is not None and path.is_file() else None


if __name__ == "__main__":
    main()
