"""Recipes as lists of this project's own commands: each stage runs once, a killed one resumes.

A stage is done when its result exists. Stages know nothing of each other but the files between them.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamo.common.files import replace_text


@dataclass(frozen=True)
class Stage:
    """A command of `python -m dynamo` and the file or folder that says it is done.

    action: runs instead where no command does it; captured: the command's JSON line is its result.
    """

    name: str
    arguments: list[str]
    result: Path
    action: Callable[[], None] | None = None
    captured: bool = False

    @property
    def done(self) -> bool:
        return self.result.exists()

    def command(self) -> str:
        """What a person would type, or what it does."""
        return f"({self.name})" if self.action else f"python -m dynamo {shlex.join(self.arguments)}"


def run_stages(
    stages: Sequence[Stage], main: Callable[[list[str]], int], skip: Collection[str] = ()
) -> list[str]:
    """Run what is not done and not skipped, in order; the names of what ran. `main` is the command line.

    Raises ValueError if a stage fails or leaves no result.
    """
    ran = []
    for stage in stages:
        if stage.done or stage.name in skip:
            continue
        print(f"$ {stage.command()}", file=sys.stderr, flush=True)
        if not _run(stage, main) or not stage.done:
            raise ValueError(
                f"stage {stage.name} failed; what it wrote is kept, run again to go on from there"
            )
        ran.append(stage.name)
    return ran


def _run(stage: Stage, main: Callable[[list[str]], int]) -> bool:
    if stage.action is not None:
        stage.action()
        return True
    if not stage.captured:
        return main(stage.arguments) == 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(stage.arguments)
    if code == 0:
        replace_text(stage.result, out.getvalue().strip().splitlines()[-1] + "\n")
    return code == 0
