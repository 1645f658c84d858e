"""The joint of one pass as a heatmap: what the heads multiply to, and what the mask leaves of it.

The settled, enlarged form of the page's live inspector, with its colours and its marks: a removed cell is
hatched, the sampled one has a black and white ring.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from dynamo.charts.look import HEAT, MUTED, dress, percent, plain, tick, visible
from dynamo.trace.joint_line import JointLine

_COLDEST = 1e-4
_CELL = 22  # pixels
_AROUND = 165


def joint_heatmap(line: JointLine, stage: Literal["mask", "product"] = "mask") -> go.Figure:
    """First tokens down, second tokens across, as many as the line has; colour is logarithmic, .01 % to 1.

    stage: "product" for the outer product of the first two heads, "mask" for the joint as it was corrected,
    before thresholds, later tokens summed out. A correlator's is drawn row by row: each is the second token's
    own distribution given the first.
    """
    if stage not in ("mask", "product"):
        raise ValueError(f'stage: expected "mask" or "product", got {stage!r}')
    product = np.outer(*line.probabilities)
    corrected = line.grid if line.given is None else line.given
    values = corrected if stage == "mask" else product
    figure = go.Figure(
        go.Heatmap(
            z=[[math.log10(max(cell, _COLDEST)) if cell > 0 else None for cell in row] for row in values],
            zmin=math.log10(_COLDEST),
            zmax=0,
            colorscale=[[i / (len(HEAT) - 1), colour] for i, colour in enumerate(HEAT)],
            colorbar=_COLOURS,
            xgap=1,
            ygap=1,
            hoverongaps=True,
            hoverinfo="text",
            hovertext=_hover_texts(line, values, product if stage == "mask" else None),
        )
    )
    rows, columns = values.shape
    removed = np.argwhere(values == 0) if line.correction == "table" else np.zeros((0, 2), int)
    _hatch(figure, removed)
    note = _ring(figure, line, values.shape, _stage_in_words(line, stage))
    figure.add_annotation(
        text=note, showarrow=False, align="left", x=0, xref="paper", xanchor="left", y=1, yref="paper",
        yanchor="bottom", yshift=46,
    )  # fmt: skip
    dress(figure, height=_AROUND + _CELL * max(rows, 8), showlegend=False, margin={"t": 96, "l": 48, "r": 16})
    small = {
        "size": 11 if columns <= 16 else 10,
        "family": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
    }
    figure.update_xaxes(
        title={"text": "second token", "standoff": 8}, tickvals=list(range(columns)),
        ticktext=[tick(text) for text in line.texts[1]], tickfont=small, tickangle=-90, showgrid=False,
        range=[-0.5, columns - 0.5],
    )  # fmt: skip
    figure.update_yaxes(
        title={"text": "first token", "standoff": 8}, tickvals=list(range(rows)),
        ticktext=[tick(text) for text in line.texts[0]], tickfont=small, showgrid=False,
        range=[rows - 0.5, -0.5],
    )  # fmt: skip
    return figure


_COLOURS = {
    "orientation": "h",
    "x": 0,
    "xanchor": "left",
    "xpad": 0,
    "y": 1,
    "yanchor": "bottom",
    "ypad": 6,
    "len": 0.9,
    "thickness": 9,
    "outlinewidth": 0,
    "tickvals": [-4, -3, -2, -1, 0],
    "ticktext": ["≤ 0.01 %", "0.1 %", "1 %", "10 %", "100 %"],
    "tickfont": {"size": 11},
}


def _hover_texts(line: JointLine, values: np.ndarray, product: np.ndarray | None) -> list[list[str]]:
    def text(row: int, column: int) -> str:
        pair = f"{visible(line.texts[0][row])} + {visible(line.texts[1][column])}"
        value = values[row, column]
        gone = "removed by the mask" if line.correction == "table" else "less than is recorded"
        words = f"{pair}: {plain(percent(value)) if value > 0 else gone}"
        return words if product is None else f"{words}<br>product {plain(percent(product[row, column]))}"

    rows, columns = values.shape
    return [[text(row, column) for column in range(columns)] for row in range(rows)]


def _hatch(figure: go.Figure, cells: np.ndarray) -> None:
    figure.add_scatter(
        x=cells[:, 1].tolist(),
        y=cells[:, 0].tolist(),
        mode="markers",
        marker={
            "symbol": "line-ne-open",
            "size": 9,
            "line": {"width": 1.2, "color": MUTED},
            "color": MUTED,
            "opacity": 0.6,
        },
        hoverinfo="skip",
        name="removed",
    )


def _stage_in_words(line: JointLine, stage: str) -> list[str]:
    if line.correction == "correlator" and stage == "mask":
        return ["given the token before: each row is its own distribution"]
    return ["hatched: removed" if line.correction == "table" else "reweighted by smoothed counts"]


def _ring(figure: go.Figure, line: JointLine, shape: tuple[int, int], notes: list[str]) -> str:
    """Rings the sampled pair where it is on show; in words what the marks mean."""
    if len(line.picked) == 1:
        notes.append("only the first token was drawn")
    elif not line.picked:
        notes.append("nothing was sampled from it")
    elif line.picked[0] >= shape[0] or line.picked[1] >= shape[1]:
        notes.append("the sampled pair is not shown")
    else:
        row, column = line.picked[:2]
        for width, colour in ((7, "#000"), (5, "#fff"), (2, "#000")):
            figure.add_shape(
                type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5,
                line={"width": width, "color": colour}, fillcolor="rgba(0, 0, 0, 0)", name="sampled",
            )  # fmt: skip
        notes.append("ring: sampled")
    summed = {2: "", 3: "<br>summed over the third token"}.get(line.order, "<br>summed over later tokens")
    if line.given is not None:
        summed = ""
    return " · ".join(notes) + summed
