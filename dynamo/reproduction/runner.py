"""Running experiments: each result is a file, and a result of the same settings is not measured again.

A result file is replaced atomically. It states its settings and the machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynamo.common.files import write_json
from dynamo.evaluation import machine
from dynamo.reproduction.experiment import Experiment
from dynamo.reproduction.workspace import Workspace, settings_hash


def settings_of(experiment: Experiment, workspace: Workspace) -> dict[str, Any]:
    own = {"experiment": experiment.name, "version": experiment.version}
    return {**own, **workspace.settings(experiment.depends)}


def result_path(output: Path, name: str) -> Path:
    return output / "results" / f"{name}.json"


def read_result(output: Path, name: str) -> dict[str, Any] | None:
    """A result file's content: settings, hash, machine, seconds and result; None if there is no file.

    Raises ValueError naming a file that is not a result.
    """
    path = result_path(output, name)
    if not path.is_file():
        return None
    remedy = "delete it and run again"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"output: {path} is not JSON ({error}); {remedy}") from None
    fields = {"settings", "hash", "machine", "seconds", "result"}
    if not isinstance(stored, dict) or not fields <= stored.keys():
        raise ValueError(f"output: {path} is no result of an experiment; {remedy}")
    return stored


def _load() -> dict[str, Any] | None:
    """How busy the machine was in the last minutes, as timings depend on it; None if unknown."""
    if not hasattr(os, "getloadavg"):
        return None
    return {"average": round(os.getloadavg()[1], 1), "cores": os.cpu_count()}


def run_missing(experiments: Iterable[Experiment], workspace: Workspace, output: Path) -> list[str]:
    """Run the experiments without a result of these settings. Returns the names of those that were run."""
    (output / "results").mkdir(parents=True, exist_ok=True)
    ran = []
    for experiment in experiments:
        settings = settings_of(experiment, workspace)
        stored = read_result(output, experiment.name)
        if stored is not None and stored["hash"] == settings_hash(settings):
            workspace.progress(f"{experiment.name}: its result is there")
            continue
        workspace.progress(f"{experiment.name}: {experiment.title}")
        started = time.perf_counter()
        result = experiment.run(workspace)
        write_json(
            result_path(output, experiment.name),
            {
                "settings": settings,
                "hash": settings_hash(settings),
                "machine": machine.describe(workspace.pair.dynamo),
                "seconds": round(time.perf_counter() - started, 1),
                "load": _load(),
                "result": result,
            },
        )
        ran.append(experiment.name)
    return ran
