"""Table 9 and Figure 12: what the mask, the adaptive threshold and its blur are each good for.

The paper has a judge model's win rates. Without a judge the measure is drift: the share of a reply's tokens
that the pair's base model gives less than 1 %, with the rest of the sweep's measures beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamo.charts.lines import lines
from dynamo.reproduction import sweeps
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

FULL, UNMASKED = "mask + Otsu + blur", "Otsu + blur, no mask"
OPTIONS: Mapping[str, dict[str, Any]] = {
    FULL: {},
    "mask + Otsu": {"blur": 1},
    "mask": {"adaptive": False},
    "half mask + Otsu + blur": {"mask_strength": 0.5},
    "double mask + Otsu + blur": {"mask_strength": 2.0},
    UNMASKED: {"mask_strength": 0.0},
    "neither": {"mask_strength": 0.0, "adaptive": False},
}
PAPER = {  # speed-up, win rate of the 7.3B chat model at the same threshold
    FULL: (2.57, 0.98),
    "mask + Otsu": (2.44, 0.96),
    "mask": (2.61, 0.82),
    "half mask + Otsu + blur": (2.55, 0.77),
    UNMASKED: (2.49, 0.38),
}
THRESHOLD = 0.5
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
DRIFT = "share_below_1_percent"


def measure_table(workspace: Workspace) -> dict[str, Any]:
    rows, base = {}, None
    for name, changes in OPTIONS.items():
        workspace.progress(f"table-9: {name}")
        base, (rows[name],) = sweeps.swept(workspace, (THRESHOLD,), **changes)
    return {"base": base, "rows": rows}


def show_table(result: dict[str, Any]) -> Shown:
    rows = result["rows"]
    drift = {name: row["quality"][DRIFT] for name, row in rows.items()}
    worst = max(drift, key=lambda name: drift[name]["value"])
    apart = drift[UNMASKED]["low"] > drift[FULL]["high"]
    better = [name for name in drift if drift[name]["high"] < drift[FULL]["low"]]
    without_mask = {UNMASKED, "neither"}
    holds = worst in without_mask and apart and not better
    sentence = (
        f"Drift is {_percent(drift[FULL])} with mask, Otsu and blur and {_percent(drift[UNMASKED])} without "
        f"the mask; it is largest with: {worst}. Better than the whole beyond their intervals: "
        f"{', '.join(better) or 'none'}."
    )
    table = Table(
        f"Replies at threshold {THRESHOLD:g}; the base's own replies have "
        f"{_percent(result['base']['quality'][DRIFT])} of drift. Intervals are 95 % over prompts",
        ("variant", "speed-up, paper", "win rate, paper", "speed-up", "tokens a pass", "drift, %",
         "nats a token", "repeated 4-grams, %"),
        tuple(_row(name, row) for name, row in rows.items()),
    )  # fmt: skip
    return Shown((table,), Finding("holds" if holds else "differs", sentence))


def _row(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    paper = PAPER.get(name, (None, None))
    quality = row["quality"]
    return (
        name,
        *paper,
        with_interval(row["speed_up"]),
        row["tokens_per_forward"]["value"],
        with_interval(quality[DRIFT], 100),
        with_interval(quality["nats_per_token"]),
        100 * quality["repetition"]["value"],
    )


def with_interval(estimate: Mapping[str, float], times: float = 1) -> str:
    value, low, high = (times * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} % ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def measure_figure(workspace: Workspace) -> dict[str, Any]:
    curves = {}
    for name in PAPER:
        workspace.progress(f"figure-12: {name}")
        base, curves[name] = sweeps.swept(workspace, THRESHOLDS, **OPTIONS[name])
    return {"base": base, "curves": curves}


def show_figure(result: dict[str, Any]) -> Shown:
    curves = result["curves"]
    slopes = {name: slope(*_drift_over_speed(points)) for name, points in curves.items()}
    flattest, steepest = min(slopes, key=slopes.__getitem__), max(slopes, key=slopes.__getitem__)
    rows = tuple(
        (name, 100 * slopes[name], *(100 * point["quality"][DRIFT]["value"] for point in points))
        for name, points in curves.items()
    )
    columns = ("variant", "slope, points per 1×", *(f"drift at {t:g}, %" for t in THRESHOLDS))
    figure = lines(
        [
            {"name": name, "x": x, "y": y, **_ends(curves[name])}
            for name, (x, y) in ((name, _drift_over_speed(points)) for name, points in curves.items())
        ],
        "wall-clock speed-up over the base",
        "share of tokens below 1 % under the base",
    )
    figure.update_yaxes(tickformat=".1%")
    finding = Finding(
        "holds" if (flattest, steepest) == (FULL, UNMASKED) else "differs",
        f"Drift rises fastest with speed-up for: {steepest} ({100 * slopes[steepest]:.2f} points per 1×), "
        f"slowest for: {flattest} ({100 * slopes[flattest]:.2f}).",
    )
    caption = "Least-squares slope of drift over speed-up, and drift at each threshold"
    return Shown((Table(caption, columns, rows),), finding, {"Drift against speed-up": figure})


def _drift_over_speed(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [p["speed_up"]["value"] for p in points], [p["quality"][DRIFT]["value"] for p in points]


def _ends(points: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {end: [point["quality"][DRIFT][end] for point in points] for end in ("low", "high")}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through the points; 0 where all x are the same."""
    away = np.asarray(x) - np.mean(x)
    spread = float((away**2).sum())
    return float((away * np.asarray(y)).sum() / spread) if spread else 0.0


TABLE_9 = Experiment(
    name="table-9",
    title="Table 9: mask, adaptive threshold, blur",
    paper="On the 7.3B chat model at threshold 0.5 the win rate falls from 0.98 (mask + Otsu + blur) to 0.38 "
    "without the mask, at about the same speed-up (2.44 to 2.61). Without a judge the measure here is drift, "
    "the share of tokens that the base gives less than 1 %.",
    rule="Holds if a variant without the mask drifts most, the interval of Otsu + blur without the mask lies "
    "above that of mask + Otsu + blur, and no variant's interval lies below that of mask + Otsu + blur.",
    run=measure_table,
    show=show_table,
    depends=sweeps.DEPENDS,
)
FIGURE_12 = Experiment(
    name="figure-12",
    title="Figure 12: quality against speed-up for the ablations",
    paper="Win rate over speed-up is flattest with mask + Otsu + blur and falls fastest without the mask. "
    "Without a judge the measure here is drift, which rises where a win rate would fall.",
    rule="Holds if the least-squares slope of drift over speed-up is largest without the mask and smallest "
    "with mask + Otsu + blur.",
    run=measure_figure,
    show=show_figure,
    depends=sweeps.DEPENDS,
)
