"""Table 4: what three token heads add to each of the seven Pythia sizes.

Shapes alone decide this, so the models are made without memory for their weights.
"""

from __future__ import annotations

from typing import Any

from dynamo.loading.sizes import pythia_shape
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

PAPER_PERCENT = {
    "pythia-70m": 8.95,
    "pythia-160m": 8.73,
    "pythia-410m": 6.22,
    "pythia-1b": 9.95,
    "pythia-1.4b": 7.12,
    "pythia-2.8b": 5.67,
    "pythia-6.9b": 5.87,
}
ROUNDING = 0.005  # the paper prints two digits


def measure_extra_parameters(_: Workspace) -> dict[str, Any]:
    shapes = {name: pythia_shape(name.removeprefix("pythia-"), heads=3) for name in PAPER_PERCENT}
    shares = {name: shape.extra_parameters / shape.base_parameters for name, shape in shapes.items()}
    return {"extra_parameter_share": shares}


def show_extra_parameters(result: dict[str, Any]) -> Shown:
    percent = {name: 100 * share for name, share in result["extra_parameter_share"].items()}
    gaps = {name: abs(percent[name] - paper) for name, paper in PAPER_PERCENT.items()}
    same = sum(gap <= ROUNDING + 1e-9 for gap in gaps.values())
    rows = tuple((name, paper, round(percent[name], 3)) for name, paper in PAPER_PERCENT.items())
    finding = Finding(
        "holds" if same == len(gaps) else "differs",
        f"{same} of {len(gaps)} sizes agree with the paper's two digits; the largest gap is "
        f"{max(gaps.values()):.3f} percentage points.",
    )
    caption = "Extra parameters of two further heads, % of the base's"
    return Shown((Table(caption, ("base", "paper", "here"), rows),), finding)


TABLE_4 = Experiment(
    name="table-4",
    title="Table 4: parameters of the extra heads",
    paper="A T3 model has between 5.67 % (2.8B) and 9.95 % (1B) more parameters than its base.",
    rule="Holds if every share, rounded to the paper's two digits, is the paper's.",
    run=measure_extra_parameters,
    show=show_extra_parameters,
)
