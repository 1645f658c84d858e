"""Several joints of the same two heads side by side, on one scale of colours, to see what each stage does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamo.charts.look import HEAT, dress, plain, tick

_COLDEST = 1e-4
_COLUMNS = 3


def joint_grids(
    panels: Sequence[tuple[str, np.ndarray]], texts: tuple[Sequence[str], Sequence[str]]
) -> go.Figure:
    """panels: (title, values), each (rows, columns) of first tokens down and second tokens across; texts:
    both heads' tokens. Colour is logarithmic, .01 % to 1; a cell that is zero has none."""
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = make_subplots(
        rows=rows, cols=_COLUMNS, subplot_titles=[plain(title) for title, _ in panels], shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.3 / rows,
    )  # fmt: skip
    for number, (_, values) in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        figure.add_heatmap(
            z=[[math.log10(max(cell, _COLDEST)) if cell > 0 else None for cell in line] for line in values],
            zmin=math.log10(_COLDEST), zmax=0, xgap=1, ygap=1, showscale=number == 0,
            colorscale=[[i / (len(HEAT) - 1), colour] for i, colour in enumerate(HEAT)],
            colorbar={
                "tickvals": [-4, -3, -2, -1, 0], "ticktext": ["≤ 0.01 %", "0.1 %", "1 %", "10 %", "100 %"],
                "thickness": 9, "outlinewidth": 0, "tickfont": {"size": 10},
            },
            row=row + 1, col=column + 1,
        )  # fmt: skip
    dress(figure, height=90 + 320 * rows, showlegend=False, margin={"t": 40, "l": 48, "r": 16, "b": 60})
    small = {"size": 9}
    figure.update_xaxes(
        tickvals=list(range(len(texts[1]))), ticktext=[tick(text) for text in texts[1]], tickfont=small,
        tickangle=-90, showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(texts[0]))), ticktext=[tick(text) for text in texts[0]], tickfont=small,
        showgrid=False, autorange="reversed",
    )  # fmt: skip
    return figure
