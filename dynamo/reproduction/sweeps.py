"""Replies over thresholds, for all experiments that need them: each point is measured once and kept.

A point is a row of a journal in the workspace's folder, so a killed run continues with the next threshold and
two experiments that need the same point share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dynamo.evaluation.journal import Journal
from dynamo.evaluation.sweep import sweep, sweep_replies
from dynamo.reproduction.workspace import Workspace
from dynamo.sampling.options import SamplingOptions

DEPENDS = ("prompts", "replies")
MAX_NEW_TOKENS = 128
THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(11))


def swept(
    workspace: Workspace, thresholds: Sequence[float] = (), **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The base's row and one per threshold (`Point.to_json`; by default of `THRESHOLDS`), under the default
    options with `changes`."""
    thresholds = thresholds or THRESHOLDS
    options = SamplingOptions(**changes)
    own = {name: value for name, value in asdict(options).items() if name != "threshold"}
    path = workspace.folder_of("sweep", DEPENDS, options=own) / "points.jsonl"
    settings = {**workspace.settings(DEPENDS), "options": own, "max_new_tokens": MAX_NEW_TOKENS}
    with Journal(path, ("threshold",), settings) as journal:
        left = [threshold for threshold in thresholds if (threshold,) not in journal]
        if left or (None,) not in journal:
            _sweep(workspace, options, left, journal)
        rows = {row["threshold"]: row for row in journal.rows}
    bare = {
        threshold: {name: value for name, value in row.items() if name != "settings"}
        for threshold, row in rows.items()
    }
    return bare[None], [bare[threshold] for threshold in thresholds]


def swept_variants(
    workspace: Workspace, variants: Mapping[str, dict[str, Any]], thresholds: Sequence[float]
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The base's row, and by name the rows of each variant: changes of the default options."""
    rows = {}
    for name, changes in variants.items():
        workspace.progress(f"sweep: {name}")
        base, rows[name] = swept(workspace, thresholds, **changes)
    return base, rows


def _sweep(workspace: Workspace, options: SamplingOptions, left: list[float], journal: Journal) -> None:
    from tqdm import tqdm

    replies, prompts = workspace.sizes.replies, workspace.prompts
    with tqdm(total=sweep_replies(len(left), len(prompts), replies), unit="reply", disable=None) as bar:
        for point in sweep(
            workspace.pair, left, prompts, options, replies, MAX_NEW_TOKENS, progress=bar.update
        ):
            # A resumed run measures the base again; its first row counts.
            if (point.threshold,) not in journal:
                journal.write(point.to_json())
