"""The whole path of a Pythia chat pair: base, heads, finetuning, table, evaluation, push, Space.

`recipe MODEL --self` is any chat model's path to token heads without any data: the model writes its own
conversations, they teach the heads, and the pair is measured, recorded and gets a card.
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
from dynamo.common.options import add_arguments, from_arguments, parse
from dynamo.pipelines import recipe, self_recipe
from dynamo.pipelines.estimates import fit_stages
from dynamo.pipelines.recipe import RecipeRun
from dynamo.pipelines.self_recipe import SelfRun
from dynamo.pipelines.stages import Stage, run_stages
from dynamo.training.options import FinetuningRun, TrainingRun
from dynamo.training.recipes import RECIPES


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help=", ".join(RECIPES) + "; with --self a chat model: folder, GGUF file or hub id"
    )
    parser.add_argument("--self", action="store_true", dest="own", help="learn from what the model writes")
    parser.add_argument("--work", type=Path, help="folder of all results (default: runs/RECIPE)")
    shared = ("model", "work", "heads", "prompts", "licence", "train")
    add_arguments(parser, SelfRun, leave_out=shared, absent=True)
    own = ("recipe", "work", "train", "finetune")
    add_arguments(parser, RecipeRun, leave_out=own, absent=True, partial=True)
    parser.add_argument("--train", default="", metavar="FLAGS", help="further flags of train, in quotes")
    parser.add_argument(
        "--finetune", default="", metavar="FLAGS", help="further flags of finetune, in quotes"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help="stages to leave out")
    parser.add_argument("--plan", action="store_true", help="show stages, time and memory, do nothing")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.work = arguments.work or Path("runs") / arguments.recipe.replace("/", "--")
    arguments.train = _further(TrainingRun, "train", arguments.train)
    arguments.finetune = _further(FinetuningRun, "finetune", arguments.finetune)
    if arguments.own:
        others = {each.name for each in fields(RecipeRun)} - {each.name for each in fields(SelfRun)}
        given = [name for name, value in vars(arguments).items() if name in others - {"recipe"} and value]
        if given:
            raise ValueError(f"{given[0]}: --self has no use for it; leave it out")
        own_run = from_arguments(SelfRun, arguments, model=arguments.recipe)
        return _go(arguments, own_run, self_recipe.stages(own_run), {})
    missing = [f"--{name}" for name in ("data", "validation") if name not in arguments]
    if missing:
        raise ValueError(f"{missing[0][2:]}: a recipe needs {' and '.join(missing)}, or --self")
    recipe_run = from_arguments(RecipeRun, arguments)
    found = recipe.stages(recipe_run)
    if recipe_run.space and "space" not in arguments.skip:
        _check_space(recipe_run)
    found, costs = fit_stages(found, recipe_run)
    return _go(arguments, recipe_run, found, {name: cost.in_words() for name, cost in costs.items()})


def _go(
    arguments: argparse.Namespace,
    recipe_run: RecipeRun | SelfRun,
    found: list[Stage],
    expected: dict[str, str],
) -> dict[str, Any]:
    """Show the stages and run what is to do."""
    unknown = set(arguments.skip) - {stage.name for stage in found}
    if unknown:
        known = ", ".join(stage.name for stage in found)
        raise ValueError(f"skip: expected stages of {known}, got {', '.join(sorted(unknown))}")
    for stage in found:
        state = "done" if stage.done else "skipped" if stage.name in arguments.skip else "to do"
        print(f"{stage.name:10} {state:8} {expected.get(stage.name, '')}", file=sys.stderr)
    result = {"recipe": arguments.recipe, "pair": str(recipe_run.pair), "expected": expected}
    if arguments.plan:
        return {**result, "stages": {stage.name: stage.command() for stage in found}}
    left = not all(stage.done or stage.name in arguments.skip for stage in found)
    if left and isinstance(recipe_run, RecipeRun):
        recipe_run.fetch_data()
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
