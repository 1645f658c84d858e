"""Recipes as lists of stages: each runs once, a killed one resumes.

A stage is done when its result exists. Stages know nothing of each other but the files between them.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo.common.files import replace_text
from dynamo.training.options import FinetuningRun, TrainingRun

RunCommand = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """A task and the file or folder that says it is done.

    task: a training, the words of another command of `python -m dynamo`, or a function where there is no
    command; captured: what the command returns is the result, as JSON.
    """

    name: str
    task: TrainingRun | FinetuningRun | list[str] | Callable[[], None]
    result: Path
    captured: bool = False

    @property
    def done(self) -> bool:
        return self.result.exists()

    def command(self) -> str:
        """What a person would type to do the same, or the stage's name in parentheses."""
        if callable(self.task):
            return f"({self.name})"
        words = self.task if isinstance(self.task, list) else self.task.arguments()
        return f"python -m dynamo {shlex.join(words)}"


def commands_of(stages: Sequence[Stage], work: Path, leave_out: Collection[str] = ()) -> list[str]:
    """What a person would type to do the same, without the names of this machine's folders."""
    return [
        " ".join(
            Path(word).name if Path(word).is_absolute() else word
            for word in stage.command().replace(str(work), "WORK").split(" ")
        )
        for stage in stages
        if not callable(stage.task) and stage.name not in leave_out
    ]


def run_stages(stages: Sequence[Stage], run_command: RunCommand, skip: Collection[str] = ()) -> list[str]:
    """Run what is not done and not skipped, in order; the names of what ran.

    run_command: from a command's words to its result. Raises ValueError if a stage fails or leaves no result.
    """
    ran = []
    for stage in stages:
        if stage.done or stage.name in skip:
            continue
        print(f"$ {stage.command()}", file=sys.stderr, flush=True)
        try:
            _run(stage, run_command)
            if not stage.done:
                raise ValueError(f"it left no {stage.result}")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"stage {stage.name} failed: {error} (what it wrote is kept, run again to go on from there)"
            ) from error
        ran.append(stage.name)
    return ran


def _run(stage: Stage, run_command: RunCommand) -> None:
    if isinstance(stage.task, TrainingRun):
        from dynamo.training.train import train

        train(stage.task)
    elif isinstance(stage.task, FinetuningRun):
        from dynamo.training.finetune import finetune

        finetune(stage.task)
    elif callable(stage.task):
        stage.task()
    else:
        result = run_command(stage.task)
        if stage.captured:
            replace_text(stage.result, json.dumps(result, ensure_ascii=False) + "\n")
