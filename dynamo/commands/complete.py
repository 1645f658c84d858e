"""Write the texts of the sentence-completion benchmark (or of Vicuna questions) with base and DynaMo.

One row per text, as JSON lines; a stopped run continues with the missing texts. The defaults are the paper's
ten prompts, ten seeds and 51 thresholds. Processes of torchrun or accelerate launch share the prompts, each
on its own GPU.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamo.commands.generate import add_loading_arguments, add_model_argument, loading_options
from dynamo.common.options import add_arguments, from_arguments
from dynamo.common.threads import add_threads_argument, settle_threads
from dynamo.decoding.engine import Engine
from dynamo.evaluation.replies import BATCH
from dynamo.sampling.options import SamplingOptions


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompts", help="JSONL of 'prompt', or of Vicuna questions (default: the paper's)")
    parser.add_argument("--output", required=True, type=Path, help="JSONL file of the texts")
    parser.add_argument(
        "--thresholds", help="numbers, or FROM:TO:STEP (default: 0:1:0.02; for questions 1 .75 .5 .25 0)",
        nargs="+",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=10, help="texts of each prompt (default: 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the seeds (default: 0)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="most tokens of a text (default: 128)"
    )
    parser.add_argument(
        "--part", default="0/1", help="PART/PARTS of the prompts, one file each (default: 0/1)"
    )
    parser.add_argument(
        "--batch", type=int, default=BATCH,
        help="texts of one prompt and threshold decoded at once, all but the first seed's, which alone are "
        f"timed; 1 to time every text (default: {BATCH})",
    )  # fmt: skip
    add_loading_arguments(parser)
    add_threads_argument(parser)
    add_arguments(parser, SamplingOptions, leave_out=("threshold",), absent=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from dynamo import loading
    from dynamo.common.distributed import Processes
    from dynamo.evaluation import completion, machine
    from dynamo.evaluation.journal import SharedJournal

    from_arguments(SamplingOptions, arguments)  # a mistake is said before a model is loaded
    prompts = completion.read_prompts(arguments.prompts) if arguments.prompts else completion.PAPER_PROMPTS
    thresholds = _thresholds(arguments.thresholds, any(prompt.chat for prompt in prompts))
    prompts = _part(prompts, arguments.part)
    if arguments.seeds < 1 or arguments.first_seed < 0:
        raise ValueError(
            f"seeds: expected 1 or more from 0 or more, got {arguments.seeds} from {arguments.first_seed}"
        )
    processes = Processes()
    if arguments.device is None and arguments.device_map is None:
        arguments.device = processes.device
    pair = loading.load(arguments.model, **loading_options(arguments))
    options = from_arguments(SamplingOptions, arguments, **asdict(pair.options))
    settle_threads(Engine(pair.dynamo, pair.table, pair.tokenizer), arguments.threads)
    settings = {
        "model": arguments.model,
        "quantize": arguments.quantize,
        "heads": pair.dynamo.config.num_token_heads,
        "table": pair.table is not None,
        "max_new_tokens": arguments.max_new_tokens,
        **{name: value for name, value in asdict(options).items() if name != "threshold"},
    }
    journal = SharedJournal(arguments.output, completion.KEY, settings, processes)
    own = prompts[processes.number :: processes.count]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    rows = completion.complete(
        pair, own, thresholds, seeds, options, arguments.max_new_tokens, journal.__contains__, arguments.batch
    )
    keys = [(each.id, seed, lane) for each in own for seed in seeds for lane in (None, *thresholds)]
    done = sum(key in journal for key in keys)
    hidden = processes.number > 0
    with journal, tqdm(total=len(keys), initial=done, unit="text", mininterval=2.0, disable=hidden) as bar:
        for row in rows:
            journal.write(row)
            bar.update()
    print(f"{journal.written} texts written, {journal.there} were already there", file=sys.stderr)
    return {
        "output": str(arguments.output),
        "written": journal.written,
        "there": journal.there,
        "thresholds": len(thresholds),
        "process": processes.number,
        "processes": processes.count,
        "machine": machine.describe(pair.base),
    }


def _thresholds(given: list[str] | None, chat: bool) -> list[float]:
    from dynamo.evaluation.completion import VICUNA_THRESHOLDS

    if given is None and chat:
        return list(VICUNA_THRESHOLDS)
    thresholds: list[float] = []
    for each in given or ["0:1:0.02"]:
        try:
            numbers = [float(part) for part in each.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 3 and numbers[2] > 0:
            first, last, step = numbers
            thresholds += [round(first + i * step, 10) for i in range(round((last - first) / step) + 1)]
        elif len(numbers) == 1:
            thresholds += numbers
        else:
            raise ValueError(f"thresholds: expected numbers or FROM:TO:STEP, got {each!r}")
    return list(dict.fromkeys(thresholds))


def _part(prompts: Any, part: str) -> list[Any]:
    """Every PARTS-th prompt from PART on, so that several machines can share a benchmark."""
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts) <= len(prompts)):
        raise ValueError(f"part: expected PART/PARTS such as 0/4, of at most {len(prompts)}, got {part!r}")
    return list(prompts[int(number) :: int(parts)])
