"""The whole path of a Pythia chat pair: base, heads, finetuning, table, evaluation, push, Space.

Every stage is one of the other commands, is shown before it runs, and is skipped if its result exists: run
the same command again after a stop. --plan shows stages, time and memory and does nothing. Without
--instructions the result completes text; without --repo nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dynamo.commands import run_command
from dynamo.common.options import add_arguments, parse
from dynamo.training.options import FinetuningRun, TrainingRun
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
    from dynamo.pipelines.estimates import fit_stages
    from dynamo.pipelines.recipe import RecipeRun, stages
    from dynamo.pipelines.stages import run_stages

    values = {each.name: getattr(arguments, each.name) for each in fields(RecipeRun)}
    values["work"] = arguments.work or Path("runs") / arguments.recipe
    values["train"] = _further(TrainingRun, "train", arguments.train)
    values["finetune"] = _further(FinetuningRun, "finetune", arguments.finetune)
    recipe_run = RecipeRun(**values)
    found = stages(recipe_run)
    unknown = set(arguments.skip) - {stage.name for stage in found}
    if unknown:
        known = ", ".join(stage.name for stage in found)
        raise ValueError(f"skip: expected stages of {known}, got {', '.join(sorted(unknown))}")
    if recipe_run.space and "space" not in arguments.skip:
        _check_space(recipe_run)
    found, costs = fit_stages(found, recipe_run)
    expected = {name: cost.in_words() for name, cost in costs.items()}
    for stage in found:
        state = "done" if stage.done else "skipped" if stage.name in arguments.skip else "to do"
        print(f"{stage.name:10} {state:8} {expected.get(stage.name, '')}", file=sys.stderr)
    result = {"recipe": arguments.recipe, "pair": str(recipe_run.pair), "expected": expected}
    if arguments.plan:
        return {**result, "stages": {stage.name: stage.command() for stage in found}}
    recipe_run.work.mkdir(parents=True, exist_ok=True)
    return {**result, "ran": run_stages(found, run_command, arguments.skip)}


def _further(cls: type, verb: str, flags: str) -> dict[str, Any]:
    """Values by name from the flags of --train or --finetune."""
    parser = argparse.ArgumentParser(prog=f"python -m dynamo recipe --{verb}", add_help=False)
    add_arguments(parser, cls, absent=True, partial=True)
    return vars(parse(parser, shlex.split(flags)))


def _check_space(recipe_run: Any) -> None:
    """Check a Space before hours of training rather than after them."""
    from dynamo.commands import space
    from dynamo.spaces import Deployment, SpaceProject

    project = SpaceProject.read(space.ROOT, recipe_run.profile).loading(recipe_run.repo)
    Deployment.plan(recipe_run.space, project, {})
