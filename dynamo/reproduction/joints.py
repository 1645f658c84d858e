"""Figure 11: what the mask and the adaptive threshold leave of a joint, for one prompt and on average.

The joint is that of the first two heads after each prompt, without a static threshold, so that what is seen
is the effect of each stage alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dynamo.charts.grids import joint_grids
from dynamo.data.text import TokenLabels
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose

SIZE = 10
BARE = SamplingOptions(threshold=0.0, max_order=2, repetition_penalty=1.0, adaptive=False)
STRENGTHS = (0.0, 0.5, 1.0)
STAGES = {
    "product": replace(BARE, mask_strength=0.0),
    "mask, strength 0.5": replace(BARE, mask_strength=0.5),
    "mask": BARE,
    "mask + Otsu": replace(BARE, adaptive=True, blur=1),
    "mask + Otsu + blur": replace(BARE, adaptive=True, blur=3),
}
MASKS, CUTS = list(STAGES)[:3], list(STAGES)[3:]


def measure_joints(workspace: Workspace) -> dict[str, Any]:
    pair = workspace.pair
    if pair.table is None:
        return {"stages": {}}
    label = TokenLabels(pair.tokenizer)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STAGES}
    shown: dict[str, Any] = {}
    for number, prompt in enumerate(workspace.prompts):
        candidates = _candidates(pair.dynamo, prompt)
        grids = {name: stage_grid(candidates, pair.table, options) for name, options in STAGES.items()}
        for name, grid in grids.items():
            found[name].append(_measures(grid))
        if number == 0:
            texts = [[label(token) for token in head[:SIZE]] for head in candidates.ids.tolist()]
            shown = {
                "texts": texts,
                "grids": {name: grid[:SIZE, :SIZE].tolist() for name, grid in grids.items()},
            }
    means = {
        name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for name, rows in found.items()
    }
    return {"prompts": len(workspace.prompts), "stages": means, "shown": shown}


@torch.inference_mode()
def _candidates(model: Any, prompt: Sequence[int]) -> Candidates:
    ids = torch.tensor([list(prompt)], device=model.device)
    states = model.head_states(ids)[:2]
    logits = torch.stack([model.head_logits(n, state[0, -1]) for n, state in enumerate(states)])
    return top_candidates(logits.float(), BARE)


def stage_grid(candidates: Candidates, table: Any, options: SamplingOptions) -> np.ndarray:
    """What one stage leaves of the joint, (k, k): normalised before its cut, zero where it is cut."""
    k = candidates.ids.shape[1]
    grid = np.zeros((k, k))
    decision = choose(candidates, Context(table.vocab_size), table, options, 0.0)
    if decision.order == 2:
        places = [{token: rank for rank, token in enumerate(head)} for head in candidates.ids.tolist()]
        for (first, second), weight in zip(decision.survivors.tolist(), decision.weights, strict=True):
            grid[places[0][first], places[1][second]] = weight
    return grid


def _measures(grid: np.ndarray) -> dict[str, float]:
    total = grid.sum()
    p = grid[grid > 0] / total if total else np.zeros(0)
    return {
        "cells": float(len(p)),
        "largest": float(grid.max()),
        "entropy": float(-(p * np.log(p)).sum()),
        "mass": float(total),
    }


def show_joints(result: dict[str, Any]) -> Shown:
    stages = result["stages"]
    if not stages:
        return Shown((), Finding("cannot be tested here", "The pair has no co-occurrence table."))
    entropies = [stages[name]["entropy"] for name in MASKS]
    cells = {name: stages[name]["cells"] for name in STAGES}
    sharper = entropies[0] > entropies[1] > entropies[2]
    fewer = all(cells[name] < cells["mask"] for name in CUTS)
    finding = Finding(
        "holds" if sharper and fewer else "differs",
        f"Mean entropy of the joint: {', '.join(f'{each:.2f}' for each in entropies)} nats at mask strength "
        f"{', '.join(f'{each:g}' for each in STRENGTHS)}. Of {cells['mask']:.0f} cells that the mask leaves, "
        f"Otsu keeps {cells[CUTS[0]]:.1f} and Otsu after the blur {cells[CUTS[1]]:.1f}, with "
        f"{100 * stages[CUTS[0]]['mass']:.0f} % and {100 * stages[CUTS[1]]['mass']:.0f} % of the mass.",
    )
    table = Table(
        f"Joint of the first two heads after {result['prompts']} prompts, means",
        ("stage", "cells left", "largest cell", "entropy of what is left, nats", "mass left, %"),
        tuple(
            (name, each["cells"], each["largest"], each["entropy"], 100 * each["mass"])
            for name, each in stages.items()
        ),
    )
    shown = result["shown"]
    panels = [(name, np.array(grid)) for name, grid in shown["grids"].items()]
    caption = f"The {SIZE} likeliest tokens of both heads after the first prompt: joint after each stage"
    return Shown((table,), finding, {caption: joint_grids(panels, tuple(shown["texts"]))})


FIGURE_11 = Experiment(
    name="figure-11",
    title="Figure 11: the joint after the mask and the adaptive threshold",
    paper="Heatmaps of one prompt's joint: without the mask it spreads over combinations that do not belong "
    "together, a stronger mask concentrates it, and Otsu's threshold keeps its peaks. No numbers are given.",
    rule="Holds if the mean entropy of the joint falls from mask strength 0 to 0.5 and from 0.5 to 1, and "
    "Otsu keeps fewer cells than the mask leaves, with the blur and without.",
    run=measure_joints,
    show=show_joints,
    depends=("prompts",),
)
