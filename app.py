"""The page: `python app.py`, then open the address that it prints.

DYNAMO_MODEL names what to load (default "embedded", the small pair that comes with the project, which also
stands in, and the page says so, where the named one cannot be had); DYNAMO_QUANTIZE may be 8bit or 4bit;
DYNAMO_VOTES names the folder of the blind votes ("" for none), DYNAMO_DATA that of the dialogues that heads
may be trained on, if it is there. All may be set in spaces_config.yaml.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from dynamo.common.threads import settle_threads
from dynamo.data.prompts import read_prompts
from dynamo.evaluation.audit import audit
from dynamo.evaluation.for_page import sweep_reports, time_split
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.loading import EMBEDDED, Pair, load, load_or_embedded, memory_of
from dynamo.spaces import AppConfig, read_config
from dynamo.ui import Analyses, ModelOffer, ModelPair, Offer, build_demo, launch_options, quota, serve
from dynamo.ui.server.zerogpu import GpuWorker

HERE = Path(__file__).parent
RECORDING = HERE / "assets" / "recording.ndjson"
SWEEP = HERE / "assets" / "sweep.json"

Staged = tuple[ModelPair, Analyses]


def main() -> None:
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
    pair, notice = load_or_embedded(config.model, quantize=config.quantize)
    shipped = pair.name == EMBEDDED
    first = stage(pair)
    offer = Offer(
        notice=notice,
        recording=RECORDING if shipped else None,
        votes=config.votes,
        strip=not config.zero_gpu,
        queue_size=config.queue_size,
        limits=config.limits,
        models=offered_models(config, stage, pair.name, first, memory_of(pair.base, pair.dynamo)),
    )
    return build_demo(*first, offer), launch_options(config.limits)


def staged(pair: Pair, gpu_worker: GpuWorker | None = None, threads: int = 1) -> Staged:
    """A pair as the page runs it, and what may be found out about it; gpu_worker: of ZeroGPU's model time;
    threads: of the processor, at most."""
    opinion, prompts = partial(audit, pair.base), read_prompts(None, pair.tokenizer)
    split, sweep = partial(time_split, pair, prompts), partial(sweep_reports, pair, prompts)
    if gpu_worker is not None:
        # Neither measures what a visitor asked for, and both would take the quota of many answers.
        opinion, split, sweep = gpu_worker.function(f"audit of {pair.name}", opinion), None, None
    report = SweepReport.read(SWEEP).to_json() if pair.name == EMBEDDED else None
    model_pair = ModelPair.from_pair(pair, gpu_worker)
    if gpu_worker is None:
        settle_threads(model_pair.dynamo, most=threads)
    return model_pair, Analyses(opinion, split, report, sweep)


def offered_models(
    config: AppConfig, stage: Callable[[Pair], Staged], name: str, first: Staged, held: int
) -> ModelOffer | None:
    """Which models a visitor may load; on ZeroGPU all of them are loaded before the page is served."""
    if not config.model_choice:
        return None
    ready = {}
    if config.zero_gpu:
        others = [each for each in dict.fromkeys((EMBEDDED, *config.models)) if each != name]
        ready = {name: first, **{each: stage(load(each, quantize=config.quantize)) for each in others}}
    return ModelOffer(
        stage=stage,
        names=config.models,
        any_model=not config.on_space,
        ready=ready,
        workshop=None if config.on_space else HERE / "trained",
        dialogues=dialogues_in(config.data),
        held=held,
    )


def dialogues_in(folder: Path | None) -> Path | None:
    """What the embedded pair was trained on, where this machine has it: no part of the project."""
    path = folder / "dialogues_train.jsonl.gz" if folder else None
    return path if path is not None and path.is_file() else None


if __name__ == "__main__":
    main()
