"""Deploying a Space as configured: repository, variables, secrets, files, hardware, until it runs.

Each step changes only what differs, so that a second deployment does nothing. Creating a Space that exists
silently keeps its settings, so settings are separate calls here. Secrets are written from the environment and
never read, printed or deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from dynamo.hub.push import commit, explained
from dynamo.spaces.files import space_files
from dynamo.spaces.project import ZERO_GPU, SpaceProject

SETTLE_SECONDS = 20.0  # within which the hub notices a commit and leaves the old build's stage
BUILDING = ("BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING")
ASLEEP = ("SLEEPING", "STOPPED", "PAUSED")


@dataclass(frozen=True)
class Deployment:
    """The goal, made from a checked project without any network.

    secrets: those that the environment has, with values; absent: the names of the others.
    """

    repo_id: str
    project: SpaceProject
    files: Mapping[str, Path | bytes]
    secrets: Mapping[str, str]
    absent: tuple[str, ...]
    private: bool = False

    @classmethod
    def plan(
        cls, repo_id: str, project: SpaceProject, environment: Mapping[str, str], private: bool = False
    ) -> Deployment:
        """Raises ValueError with every problem of the project, or for an invalid repository name."""
        if repo_id.count("/") != 1:
            raise ValueError(f"repo: expected OWNER/NAME, got {repo_id!r}")
        problems = project.problems()
        if problems:
            raise ValueError("; ".join(problems))
        secrets = {name: environment[name] for name in project.secrets if environment.get(name)}
        absent = tuple(name for name in project.secrets if name not in secrets)
        return cls(repo_id, project, space_files(project), secrets, absent, private)

    @property
    def bytes(self) -> int:
        sizes = (
            len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values()
        )
        return sum(sizes)

    def lines(self) -> list[str]:
        """The plan in words."""
        project, visible = self.project, "private" if self.private else "public"
        sleep = f", asleep after {project.sleep_time} s" if project.sleep_time else ""
        return [
            f"create the {visible} Space {self.repo_id} unless it is there",
            *(f"set the variable {name}={value}" for name, value in project.variables.items()),
            *(f"set the secret {name} from the environment" for name in self.secrets),
            *(f"leave the secret {name} as it is there: the environment has none" for name in self.absent),
            f"upload {len(self.files)} files, {self.bytes / 1e6:.1f} MB, and delete all others",
            f"ask for {project.hardware}{sleep}",
            "wait until it runs",
        ]


def deploy(
    deployment: Deployment,
    api: HfApi,
    timeout: float,
    say: Callable[[str], None] = lambda _: None,
    poll: float = 5.0,
) -> dict[str, Any]:
    """Carry out the plan. Returns what was done, and the Space's address.

    Raises OSError if the hub refuses something, or the Space does not start within `timeout` seconds.
    """
    done: list[str] = []

    def did(what: str) -> None:
        done.append(what)
        say(what)

    with explained(f"deploying {deployment.repo_id}"):
        _create(deployment, api)
        _reconcile_settings(deployment, api, did)
        url, gone = commit(
            api,
            deployment.repo_id,
            "space",
            deployment.files,
            "Deploy DynaMo",
            tuple(deployment.project.keep),
        )
        did(f"uploaded {len(deployment.files)} files" + (f", deleted {', '.join(gone)}" if gone else ""))
        _reconcile_hardware(deployment, api, did)
        stage = _wait(deployment.repo_id, api, timeout, poll)
        if stage in ASLEEP:  # as before: nothing has changed that would start a build
            api.restart_space(deployment.repo_id)
            did("woke it up")
            stage = _wait(deployment.repo_id, api, timeout, poll)
    address = f"{api.endpoint}/spaces/{deployment.repo_id}"
    if stage != "RUNNING":
        raise OSError(
            f"{address} does not run: {stage}; read its log with: hf spaces logs {deployment.repo_id}"
        )
    did(f"it runs: {address}")
    return {"space": address, "commit": url, "stage": stage, "done": done}


def _create(deployment: Deployment, api: HfApi) -> None:
    # A free account may create ZeroGPU Spaces but not CPU ones, so the hardware is part of the request.
    hardware = ZERO_GPU if deployment.project.hardware == ZERO_GPU else None
    api.create_repo(
        deployment.repo_id,
        repo_type="space",
        space_sdk="gradio",
        space_hardware=hardware,
        private=deployment.private,
        exist_ok=True,
    )


def _reconcile_settings(deployment: Deployment, api: HfApi, did: Callable[[str], None]) -> None:
    repo_id, wanted = deployment.repo_id, deployment.project.variables
    there = {name: each.value for name, each in api.get_space_variables(repo_id).items()}
    for name in sorted(there.keys() - wanted.keys()):
        api.delete_space_variable(repo_id, name)
        did(f"deleted the variable {name}")
    for name, value in wanted.items():
        if there.get(name) != value:
            api.add_space_variable(repo_id, name, value)
            did(f"set the variable {name}")
    for name, value in deployment.secrets.items():
        api.add_space_secret(repo_id, name, value)
        did(f"set the secret {name}")
    missing = set(deployment.absent) - api.get_space_secrets(repo_id).keys() if deployment.absent else set()
    if missing:
        raise ValueError(
            f"secrets: neither the Space nor the environment has {', '.join(sorted(missing))}; set it in the "
            "environment, or leave it out of spaces_config.yaml"
        )


def _reconcile_hardware(deployment: Deployment, api: HfApi, did: Callable[[str], None]) -> None:
    repo_id, project = deployment.repo_id, deployment.project
    runtime = api.get_space_runtime(repo_id)
    if (runtime.requested_hardware or runtime.hardware) != project.hardware:
        more = {} if project.sleep_time is None else {"sleep_time": project.sleep_time}
        api.request_space_hardware(repo_id, project.hardware, **more)
        did(f"asked for {project.hardware}")
    elif project.sleep_time is not None and runtime.sleep_time != project.sleep_time:
        api.set_space_sleep_time(repo_id, project.sleep_time)
        did(f"set the sleep time to {project.sleep_time} s")


def _wait(repo_id: str, api: HfApi, timeout: float, poll: float) -> str:
    """The stage that the new build ends in."""
    started = time.monotonic()
    settled = min(SETTLE_SECONDS, timeout / 2)
    while time.monotonic() - started < settled:
        if api.get_space_runtime(repo_id).stage in BUILDING:
            break
        time.sleep(poll)
    left = max(0.0, timeout - (time.monotonic() - started))
    try:
        return str(api.wait_for_space(repo_id, timeout=left, poll_interval=poll).stage)
    except TimeoutError:
        raise OSError(
            f"{repo_id} does not run after {timeout:.0f} s; it may still: look at its page, or at "
            f"hf spaces logs {repo_id}"
        ) from None
