"""Figures 5 and 15: what the back-off threshold does to passes, speed-up and perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dynamo.charts.lines import lines
from dynamo.charts.sweeps import sweep_shares
from dynamo.data.text import special_ids
from dynamo.evaluation import perplexity
from dynamo.reproduction import sweeps
from dynamo.reproduction.estimates import curve, with_interval
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

FEW = 0.15
MOST = 0.95
ROOM = 0.02
PLACES_PER_DOCUMENT = 20


def measure_shares(workspace: Workspace) -> dict[str, Any]:
    base, points = sweeps.swept(workspace)
    return {"base": base, "points": points}


def show_shares(result: dict[str, Any]) -> Shown:
    points = result["points"]
    most = str(max(int(order) for point in points for order in point["share_by_order"]))
    shares = [[point["share_by_order"].get(order, 0.0) for point in points] for order in ("1", "2", most)]
    ones, twos, all_of_them = shares
    rises = max((after - before for before, after in pairwise(all_of_them)), default=0.0)
    holds = all_of_them[0] >= MOST and ones[-1] == 1.0 and rises <= ROOM and max(twos) <= FEW
    rows = tuple(
        (point["threshold"], 100 * one, 100 * two, 100 * three, point["tokens_per_forward"]["value"])
        for point, one, two, three in zip(points, *shares, strict=True)
    )
    columns = ("threshold", "1 token, %", "2 tokens, %", f"{most} tokens, %", "tokens a pass")
    finding = Finding(
        "holds" if holds else "differs",
        f"At threshold {points[0]['threshold']:g} {100 * all_of_them[0]:.1f} % of the passes emit {most}, at "
        f"{points[-1]['threshold']:g} {100 * ones[-1]:.1f} % emit one; two-token passes are never more than "
        f"{100 * max(twos):.1f} %.",
    )
    table = Table("Passes by tokens decided on, replies to the prompts", columns, rows)
    caption = "Passes that decide on one, two or three tokens, and passes that back off"
    return Shown((table,), finding, {caption: sweep_shares(points)})


def measure_curves(workspace: Workspace) -> dict[str, Any]:
    _, points = sweeps.swept(workspace)
    workspace.progress("figure-15: PPL_d on held-out documents")
    pair = workspace.pair
    ppl = perplexity.measure_dynamic_perplexity(
        pair.dynamo,
        pair.table,
        workspace.documents,
        sweeps.THRESHOLDS,
        positions=workspace.sizes.positions,
        per_document=PLACES_PER_DOCUMENT,
        special_ids=special_ids(pair.tokenizer),
        seed=workspace.seed,
    )
    return {"points": points, "ppl_d": [each.to_json() for each in ppl]}


def show_curves(result: dict[str, Any]) -> Shown:
    points, ppl = result["points"], [row["ppl"] for row in result["ppl_d"]]
    speed = [point["speed_up"] for point in points]
    thresholds = [point["threshold"] for point in points]
    tokens = [point["tokens_per_forward"] for point in points]
    falls = {
        "PPL_d falls throughout": falls_beyond_doubt(ppl),
        "tokens a pass fall throughout": falls_beyond_doubt(tokens),
        "the first speed-up is above the last": speed[0]["low"] > speed[-1]["high"],
    }
    rows = tuple(
        (threshold, with_interval(p), row["tokens_per_place"]["value"], with_interval(s),
         point["tokens_per_forward"]["value"])
        for threshold, p, row, s, point in zip(thresholds, ppl, result["ppl_d"], speed, points, strict=True)
    )  # fmt: skip
    columns = ("threshold", "PPL_d", "tokens a place", "speed-up", "tokens a pass")
    sentence = (
        f"From threshold {thresholds[0]:g} to {thresholds[-1]:g} PPL_d goes from {ppl[0]['value']:.2f} to "
        f"{ppl[-1]['value']:.2f} and speed-up from {speed[0]['value']:.2f}× to {speed[-1]['value']:.2f}×; "
        + "; ".join(f"{what}: {'yes' if does else 'no'}" for what, does in falls.items())
        + "."
    )
    figures = {
        "PPL_d against the threshold": lines([curve("PPL_d", thresholds, ppl)], "threshold", "PPL_d"),
        "Speed-up against the threshold": lines(
            [curve("wall-clock speed-up", thresholds, speed)], "threshold", "speed-up"
        ),
        "PPL_d against speed-up": lines(
            [curve("PPL_d", [s["value"] for s in speed], ppl)], "wall-clock speed-up", "PPL_d"
        ),
    }
    table = Table("PPL_d on held-out documents, speed-up on replies, 95 % intervals", columns, rows)
    return Shown((table,), Finding("holds" if all(falls.values()) else "differs", sentence), figures)


def falls_beyond_doubt(estimates: Sequence[Mapping[str, float]]) -> bool:
    """The last interval lies below the first, and no value is above the interval before it."""
    apart = estimates[-1]["high"] < estimates[0]["low"]
    return apart and all(after["value"] <= before["high"] for before, after in pairwise(estimates))


FIGURE_5 = Experiment(
    name="figure-5",
    title="Figure 5: how many tokens a pass emits",
    paper="All passes emit three tokens at threshold 0 and one at threshold 1; in between the model moves "
    "between three and one, and two-token passes are few.",
    rule=f"Holds if at the smallest threshold {100 * MOST:.0f} % or more of the passes emit all tokens and "
    "at the largest all emit one, the share of full passes nowhere rises by more than "
    f"{100 * ROOM:.0f} % from a threshold to the next, and two-token passes are at most {100 * FEW:.0f} % at "
    "every threshold.",
    run=measure_shares,
    show=show_shares,
    depends=sweeps.DEPENDS,
)
FIGURE_15 = Experiment(
    name="figure-15",
    title="Figure 15: perplexity and speed-up against the threshold",
    paper="PPL_d and speed-up both fall as the threshold rises, and a higher speed-up costs a higher PPL_d.",
    rule="Holds if for PPL_d and for tokens a pass the last 95 % interval lies below the first and no value "
    "is above the interval of the threshold before it, and the interval of speed-up at the first threshold "
    "lies above that at the last (in between the clock is noisier than the steps).",
    run=measure_curves,
    show=show_curves,
    depends=(*sweeps.DEPENDS, "validation", "documents", "positions", "seed"),
)
