"""The Hugging Face Space of spaces_config.yaml: show its card, check everything, deploy it.

`render` prints the Space's README, or writes the whole Space to a folder; `check` names every mistake;
`deploy` makes the Space match the file; with --dry-run it prints the plan, without any network. Secrets are
taken from the environment by name.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("render", "check", "deploy"))
    parser.add_argument("--profile", help="a profile of the file (default: zerogpu; check: all)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder (default: this one)")
    parser.add_argument("--output", type=Path, help="render: write the whole Space here, a new folder")
    parser.add_argument("--repo", help="deploy: the Space, OWNER/NAME (default: `repo` of the file)")
    parser.add_argument("--model", help="deploy: the model that the Space loads, instead of the file's")
    parser.add_argument("--private", action="store_true", help="deploy: make a new Space private")
    parser.add_argument("--dry-run", action="store_true", help="deploy: only print what would be done")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, help="deploy: seconds to wait (default: 1800)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"render": _render, "check": _check, "deploy": _deploy}[arguments.action](arguments)


def _project(arguments: argparse.Namespace) -> Any:
    from dynamo.spaces import SpaceProject

    return SpaceProject.read(arguments.root, arguments.profile or "zerogpu")


def _render(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.spaces.files import render_card, space_files, write_folder

    project = _project(arguments)
    card = render_card(project)
    if arguments.output is None:
        print(card, file=sys.stderr)
        return {"profile": project.profile, "readme": card}
    files = space_files(project)
    write_folder(files, arguments.output)
    return {"profile": project.profile, "output": str(arguments.output), "files": sorted(files)}


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.spaces import SpaceProject
    from dynamo.spaces.app import read_yaml
    from dynamo.spaces.files import space_files
    from dynamo.spaces.project import CONFIG_FILE

    SpaceProject.read(arguments.root, "")  # raises if there is no file
    profiles = read_yaml(arguments.root / CONFIG_FILE).get("profiles")
    names = [arguments.profile] if arguments.profile else list(profiles or {})
    if not names:
        raise ValueError(f"{CONFIG_FILE}: profiles: there is none")
    projects = [SpaceProject.read(arguments.root, name) for name in names]
    problems = list(dict.fromkeys(problem for project in projects for problem in project.problems()))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise ValueError(f"{CONFIG_FILE}: {len(problems)} to be corrected, see above")
    return {"profiles": names, "files": len(space_files(projects[0]))}


def _deploy(arguments: argparse.Namespace) -> dict[str, Any]:
    from huggingface_hub import HfApi

    from dynamo.spaces import Deployment, deploy

    project = _project(arguments)
    if arguments.model:
        project = project.loading(arguments.model)
    repo_id = arguments.repo or project.config.get("repo") or ""
    plan = Deployment.plan(repo_id, project, os.environ, arguments.private)
    if arguments.dry_run:
        for line in plan.lines():
            print(line, file=sys.stderr)
        for path in sorted(plan.files):
            print(f"  {path}", file=sys.stderr)
        return {"space": repo_id, "plan": plan.lines(), "files": sorted(plan.files), "bytes": plan.bytes}
    return deploy(plan, HfApi(), arguments.timeout, lambda line: print(line, file=sys.stderr, flush=True))
