"""Lines over a number and bars over names: the plain forms that a report's figures take.

A series is a row with "name", "x" and "y" (numbers, or None where there is none) and, where it is known how
sure they are, "low" and "high" (the ends of each y's 95 % interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dynamo.charts.look import BACK_OFF, MUTED, ORDERS, dress, plain

Series = Mapping[str, Any]

COLOURS = (ORDERS[2], ORDERS[3], ORDERS[4], BACK_OFF, ORDERS[5], MUTED, "#8c6d1f")
DASHES = ("solid", "dash", "dot", "dashdot")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "pentagon", "star")


def lines(series: Sequence[Series], x_title: str, y_title: str) -> go.Figure:
    """One line with marks for each series, in a colour, dash and mark of its own."""
    figure = go.Figure()
    for number, each in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=list(each["x"]),
            y=list(each["y"]),
            error_y=_intervals(each, colour),
            mode="lines+markers",
            name=plain(each["name"]),
            line={"color": colour, "width": 1.5, "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
            marker={"color": colour, "size": 8, "symbol": MARKS[number % len(MARKS)]},
        )
    dress(figure)
    figure.update_xaxes(title={"text": x_title, "standoff": 8})
    figure.update_yaxes(title={"text": y_title, "standoff": 8})
    return figure


def bars(series: Sequence[Series], y_title: str) -> go.Figure:
    """Bars side by side over names (x) on a logarithmic scale, one colour for each series."""
    figure = go.Figure()
    for number, each in enumerate(series):
        figure.add_bar(
            x=[plain(str(name)) for name in each["x"]],
            y=list(each["y"]),
            error_y=_intervals(each, MUTED),
            name=plain(each["name"]),
            marker={"color": COLOURS[number % len(COLOURS)], "line": {"width": 0}},
        )
    dress(figure, barmode="group")
    figure.update_yaxes(title={"text": y_title, "standoff": 8}, type="log", dtick="D2")
    return figure


def _intervals(series: Series, colour: str) -> dict[str, Any] | None:
    if "low" not in series:
        return None
    known = [
        (y or 0.0, low, high) for y, low, high in zip(series["y"], series["low"], series["high"], strict=True)
    ]
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if high is None else high - y for y, _, high in known],
        "arrayminus": [0.0 if low is None else y - low for y, low, _ in known],
        "thickness": 1,
        "width": 2,
        "color": colour,
    }
