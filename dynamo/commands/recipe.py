"""The whole path of a Pythia chat pair: base, heads, finetuning, table, evaluation, push, Space.

Every stage is one of the other commands, is told before it runs, and is skipped where its result is there
already: run it again after a stop. --plan shows stages, time and memory and does nothing. Without
--instructions the result completes text; without --repo nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dynamo.recipes import RECIPES


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=RECIPES, metavar="recipe", help=", ".join(RECIPES))
    parser.add_argument("--data", required=True, help="what the heads learn: texts or conversations, JSONL")
    parser.add_argument("--validation", required=True, help="the same, held out")
    parser.add_argument("--instructions", help="what both models are finetuned on, for chat")
    parser.add_argument("--base", default="", help="folder or hub id to start from (default: the recipe's)")
    parser.add_argument("--work", type=Path, help="folder of all results (default: runs/RECIPE)")
    parser.add_argument("--heads", type=int, default=3, help="token heads, 1 to 5 (default: 3)")
    parser.add_argument("--prompts", type=int, default=10, help="prompts of the evaluation (default: 10)")
    parser.add_argument(
        "--licence", default="", help="of the weights, for --repo: apache-2.0, cc-by-nc-4.0 .."
    )
    parser.add_argument("--repo", default="", help="hub id that the pair is pushed to")
    parser.add_argument("--space", default="", help="hub id of the Space that shows it")
    parser.add_argument("--profile", default="zerogpu", help="the Space's profile (default: zerogpu)")
    parser.add_argument("--train", default="", metavar="FLAGS", help="further flags of train, in quotes")
    parser.add_argument(
        "--finetune", default="", metavar="FLAGS", help="further flags of finetune, in quotes"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help="stages to leave out")
    parser.add_argument("--plan", action="store_true", help="show stages, time and memory, do nothing")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.__main__ import main
    from dynamo.pathway import Journey, stages
    from dynamo.stages import run_stages

    arguments.work = arguments.work or Path("runs") / arguments.recipe
    journey = Journey(**{each.name: getattr(arguments, each.name) for each in fields(Journey)})
    found = stages(journey)
    unknown = set(arguments.skip) - {stage.name for stage in found}
    if unknown:
        known = ", ".join(stage.name for stage in found)
        raise ValueError(f"skip: expected stages of {known}, got {', '.join(sorted(unknown))}")
    if journey.space and "space" not in arguments.skip:
        _check_space(journey)
    expected = _estimate(arguments, found)
    for stage in found:
        state = "done" if stage.done else "skipped" if stage.name in arguments.skip else "to do"
        print(f"{stage.name:10} {state:8} {expected.get(stage.name, '')}", file=sys.stderr)
    result = {"recipe": arguments.recipe, "pair": str(journey.pair), "expected": expected}
    if arguments.plan:
        return {**result, "stages": {stage.name: stage.command() for stage in found}}
    arguments.work.mkdir(parents=True, exist_ok=True)
    return {**result, "ran": run_stages(found, main, arguments.skip)}


def _check_space(journey: Any) -> None:
    """What would otherwise be found out when everything else is done."""
    from dynamo.commands import space
    from dynamo.spaces import Deployment, SpaceProject

    project = SpaceProject.read(space.ROOT, journey.profile).loading(journey.repo)
    Deployment.plan(journey.space, project, {})


def _estimate(arguments: argparse.Namespace, found: list[Any]) -> dict[str, str]:
    """Stage -> time and memory, for the stages that take both."""
    from dynamo import estimates
    from dynamo.commands import finetune, train
    from dynamo.options import from_arguments
    from dynamo.recipes import TrainingOptions

    parameters, extra = _parameters(arguments)
    speed = estimates.multiplications_per_second()
    told = {}
    for stage in found:
        command = {"train": train, "finetune": finetune}.get(stage.arguments[0] if stage.arguments else "")
        if command is None:
            continue
        parser = argparse.ArgumentParser(prog=f"python -m dynamo {stage.arguments[0]}")
        command.configure(parser)
        asked = parser.parse_args(stage.arguments[1:])
        own = 0 if stage.name == "chat-base" else extra
        if command is train:
            recipe = RECIPES[arguments.recipe]
            options = from_arguments(TrainingOptions, asked, **recipe.options)
            tokens = options.steps * options.batch_size * (asked.block_size or recipe.block_size)
            heads_only = options.heads_only
        else:
            # About four bytes of text are a token.
            read = Path(asked.data).stat().st_size / 4
            tokens, heads_only = round((asked.epochs or 1) * read), bool(asked.heads_only)
        seconds = estimates.training_seconds(parameters, own, tokens, heads_only, speed)
        needed = estimates.training_bytes(parameters, own, heads_only)
        told[stage.name] = f"about {estimates.duration(seconds)}, {needed / 1e9:.1f} GB, {tokens:,} tokens"
    return told


def _parameters(arguments: argparse.Namespace) -> tuple[int, int]:
    """Of the base and of its extra heads; a local base by its own configuration, else the suite's."""
    from dynamo.loading.sizes import PYTHIA, layer_parameters, parameters

    if arguments.base and (Path(arguments.base) / "config.json").is_file():
        from transformers import GPTNeoXConfig

        config = GPTNeoXConfig.from_pretrained(arguments.base)
        layers, hidden, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
        base = layers * layer_parameters(hidden) + 2 * vocabulary * hidden
    else:
        size = arguments.recipe.removeprefix("pythia-").removesuffix("-quick")
        base, hidden = parameters(size), PYTHIA[size].hidden
    return base, (arguments.heads - 1) * layer_parameters(hidden)
