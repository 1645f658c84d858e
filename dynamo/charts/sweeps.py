"""A sweep over thresholds: speed against quality, how many tokens a pass, how honest the confidence.

Points and curves are plain rows as `python -m dynamo sweep` writes them (`dynamo.evaluation`), so that a
figure needs neither a model nor the code that measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamo.charts.look import BACK_OFF, MUTED, ORDERS, SYMBOLS, dress, percent, plain

Row = Mapping[str, Any]

_LABEL_DISTANCE = 0.09  # of a figure's width or height; closer labels would cover each other
_FAINT = "rgba(138,148,163,0.45)"  # intervals stand behind the path
_RARE = ("share_", "repetition")  # shares whose distance from zero matters
_SHARES = (*_RARE, "distinct_")


def sweep_speed_quality(
    points: Sequence[Row], measure: str, current_threshold: float | None = None, base: Row | None = None
) -> go.Figure:
    """A measure of quality against wall-clock speed-up, one mark per threshold, with 95 % intervals.

    points: rows of a sweep with "threshold", "speed_up" and "quality"; measure: a key of "quality";
    current_threshold: the mark nearest to it is enlarged; base: the base model's own row, a dotted line.
    """
    if points and measure not in points[0]["quality"]:
        raise ValueError(f"measure: expected one of {', '.join(points[0]['quality'])}, got {measure!r}")
    points = sorted(points, key=lambda point: point["threshold"])
    x, y = [point["speed_up"] for point in points], [point["quality"][measure] for point in points]
    current = _nearest(points, current_threshold)
    figure = go.Figure()
    if base is not None:
        level = base["quality"][measure]
        words = f"base model {_written(measure, level['value'])}"
        figure.add_hline(level["value"], line={"dash": "dot", "width": 1.5, "color": MUTED}, opacity=1)
        figure.add_scatter(
            x=[1.0], y=[level["value"]], error_y=_error([level], MUTED), mode="markers", name="base model",
            marker={"symbol": "circle", "size": 9, "color": MUTED}, hoverinfo="text", hovertext=[words],
        )  # fmt: skip
    figure.add_scatter(
        x=[each["value"] for each in x],
        y=[each["value"] for each in y],
        error_x=_error(x, _FAINT),
        error_y=_error(y, _FAINT),
        mode="lines+markers+text",
        name="DynaMo at threshold ε",
        line={"color": ORDERS[2], "width": 1.5},
        # A path, not a curve: its arrows point to the next higher threshold.
        marker={
            "symbol": ["circle", *["arrow"] * (len(points) - 1)],
            "angleref": "previous",
            "size": 11,
            "color": ORDERS[2],
        },
        text=_sparse_labels(points, x, y, current),
        textposition="top right",
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[_point_in_words(point, measure) for point in points],
    )
    if current is not None:
        figure.add_scatter(
            x=[x[current]["value"]], y=[y[current]["value"]], mode="markers", hoverinfo="skip",
            name=f"nearest to Compare's {current_threshold:g}",
            marker={"symbol": "diamond", "size": 16, "color": ORDERS[3], "line": {"width": 0}},
        )  # fmt: skip
    dress(figure)
    figure.update_xaxes(title={"text": "wall-clock speed-up", "standoff": 8}, ticksuffix="×")
    figure.update_yaxes(title={"text": _title(measure), "standoff": 8})
    if _is_share(measure):
        figure.update_yaxes(tickformat=".3~p")
    if measure.startswith(_RARE):
        most = max([0.02, *(each["high"] for each in y)])
        figure.update_yaxes(range=[-0.04 * most, 1.08 * most])
    return figure


def sweep_shares(points: Sequence[Row]) -> go.Figure:
    """Above, the shares of passes that decided on 1, 2, 3.. tokens, stacked; below, the share of passes that
    gave up at least one order. Both against the threshold."""
    points = sorted(points, key=lambda point: point["threshold"])
    thresholds = [point["threshold"] for point in points]
    gaps = [after - before for before, after in pairwise(thresholds) if after > before]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.07)
    width = 0.8 * min(gaps, default=0.1)
    most = max((int(order) for point in points for order in point["share_by_order"]), default=1)
    for order in range(1, most + 1):
        shares = [point["share_by_order"].get(str(order), 0.0) for point in points]
        figure.add_bar(
            x=thresholds,
            y=shares,
            width=width,
            name=f"{order} token{'s' * (order > 1)}",
            marker={"color": ORDERS[order], "line": {"width": 0}},
            hoverinfo="text",
            hovertext=[
                f"ε = {threshold:g}: {plain(percent(share))} of the passes emit {order}"
                for threshold, share in zip(thresholds, shares, strict=True)
            ],
            row=1,
            col=1,
        )
    trying = [point for point in points if point["threshold"] < 1]  # at 1 there is nothing to give up
    figure.add_scatter(
        x=[point["threshold"] for point in trying],
        y=[point["backoff_rate"] for point in trying],
        mode="lines+markers",
        name="backed off",
        cliponaxis=False,
        line={"color": BACK_OFF, "width": 1.5, "dash": "dot"},
        marker={"symbol": "diamond-open", "size": 8, "line": {"width": 1.5}},
        hoverinfo="text",
        hovertext=[
            f"ε = {point['threshold']:g}: {plain(percent(point['backoff_rate']))} of the passes backed off"
            for point in trying
        ],
        row=2,
        col=1,
    )
    dress(figure, barmode="stack")
    figure.update_layout(legend={"traceorder": "normal"})
    ticks = thresholds if len(thresholds) <= 8 else thresholds[::2]
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks], tickangle=0, showgrid=False)
    figure.update_xaxes(range=[min(thresholds, default=0) - 0.08, 1.08])
    figure.update_xaxes(title={"text": "back-off threshold ε", "standoff": 8}, row=2, col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title={"text": "passes", "standoff": 8}, row=1, col=1)
    figure.update_yaxes(title={"text": "backed off", "standoff": 8}, tickvals=[0, 0.5, 1], row=2, col=1)
    return figure


def calibration(curves: Sequence[Row]) -> go.Figure:
    """A reliability diagram: how often the joint's largest cell was right, against its value; on the diagonal
    confidence is honest. Bars are 95 % Wilson intervals, marks grow with the positions in their bin.

    curves: rows with "order", "event" ("text": right is what held-out text says; "base": what the base model
    would write), "expected_calibration_error" and "bins" (confidence, accuracy, interval, count).
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="honest", hoverinfo="skip",
        line={"dash": "dash", "width": 1.5, "color": MUTED},
    )  # fmt: skip
    names = {"text": "held-out text", "base": "base model"}
    for curve in curves:
        order, own_text = curve["order"], curve["event"] == "text"
        bins = [each for each in curve["bins"] if each["count"]]
        accuracy = [
            {"value": each["accuracy"], "low": each["interval"][0], "high": each["interval"][1]}
            for each in bins
        ]
        figure.add_scatter(
            x=[each["confidence"] for each in bins],
            y=[each["value"] for each in accuracy],
            error_y=_error(accuracy, ORDERS[order]),
            mode="lines+markers",
            name=f"{order} tokens, {names.get(curve['event'], plain(str(curve['event'])))}: "
            f"off by {percent(curve['expected_calibration_error'])}",
            line={"color": ORDERS[order], "width": 1.5, "dash": "solid" if own_text else "dot"},
            marker={
                "symbol": SYMBOLS[order] + ("" if own_text else "-open"),
                "size": [5 + 2 * math.log10(each["count"]) for each in bins],
                "opacity": 1,
                "color": ORDERS[order],
                "line": {"width": 0 if own_text else 1.5},
            },
            hoverinfo="text",
            hovertext=[
                f"{order} tokens: right {plain(percent(each['accuracy']))} of the time "
                f"({plain(percent(each['interval'][0]))} to {plain(percent(each['interval'][1]))})"
                f"<br>at a confidence of {plain(percent(each['confidence']))}, {each['count']} positions"
                for each in bins
            ],
        )
    dress(figure, height=460)
    share = {"tickformat": ".0%", "range": [-0.02, 1.02]}
    figure.update_xaxes(title={"text": "value of the joint's largest cell", "standoff": 8}, **share)
    figure.update_yaxes(title={"text": "how often it was right", "standoff": 8}, **share)
    return figure


def _error(estimates: Sequence[Row], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [each["high"] - each["value"] for each in estimates],
        "arrayminus": [each["value"] - each["low"] for each in estimates],
        "thickness": 1,
        "width": 2,
        "color": colour,
    }


def _nearest(points: Sequence[Row], threshold: float | None) -> int | None:
    if threshold is None or not points:
        return None
    return min(range(len(points)), key=lambda i: abs(points[i]["threshold"] - threshold))


def _sparse_labels(
    points: Sequence[Row], x: Sequence[Row], y: Sequence[Row], current: int | None
) -> list[str]:
    """A label for the current point and for every other that is not too near to a labelled one."""
    places = list(zip(_spread(x), _spread(y), strict=True))
    first = [] if current is None else [current]
    labelled: list[int] = []
    for i in [*first, *(i for i in range(len(points)) if i != current)]:
        if all(math.dist(places[i], places[j]) > _LABEL_DISTANCE for j in labelled):
            labelled.append(i)
    return [f"{points[i]['threshold']:g}" if i in labelled else "" for i in range(len(points))]


def _spread(estimates: Sequence[Row]) -> list[float]:
    """Where values lie between the smallest and the largest, 0 to 1."""
    values = [each["value"] for each in estimates]
    low, extent = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
    return [(value - low) / extent if extent else 0.0 for value in values]


def _point_in_words(point: Row, measure: str) -> str:
    speed, quality = point["speed_up"], point["quality"][measure]
    low, high = _written(measure, quality["low"]), _written(measure, quality["high"])
    return "<br>".join(
        [
            f"ε = {point['threshold']:g}",
            f"speed-up {speed['value']:.2f}× ({speed['low']:.2f} to {speed['high']:.2f})",
            f"{plain(_title(measure))} {_written(measure, quality['value'])} ({low} to {high})",
            f"{point['tokens_per_forward']['value']:.2f} tokens per forward pass",
        ]
    )


def _is_share(measure: str) -> bool:
    return measure.startswith(_SHARES)


def _written(measure: str, value: float) -> str:
    return plain(percent(value)) if _is_share(measure) else f"{value:.2f}"


def _title(measure: str) -> str:
    if measure.startswith("share_outside_top_"):
        return f"tokens outside the base's top {measure.rpartition('_')[2]}"
    return {
        "nats_per_token": "nats per token under the base",
        "share_below_1_percent": "tokens below 1 % under the base",
        "repetition": "repeated 4-grams",
        "distinct_2": "distinct bigrams",
    }.get(measure, plain(measure.replace("_", " ")))
