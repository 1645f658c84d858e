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

from dynamo.training.recipes import RECIPES


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
    from dynamo.pipelines.prospects import prospects
    from dynamo.pipelines.recipe import RecipeRun, stages
    from dynamo.pipelines.stages import run_stages

    arguments.work = arguments.work or Path("runs") / arguments.recipe
    journey = RecipeRun(**{each.name: getattr(arguments, each.name) for each in fields(RecipeRun)})
    found = stages(journey)
    unknown = set(arguments.skip) - {stage.name for stage in found}
    if unknown:
        known = ", ".join(stage.name for stage in found)
        raise ValueError(f"skip: expected stages of {known}, got {', '.join(sorted(unknown))}")
    if journey.space and "space" not in arguments.skip:
        _check_space(journey)
    found, foretold = prospects(found, journey.recipe, journey.base, journey.heads)
    expected = {name: prospect.in_words() for name, prospect in foretold.items()}
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
