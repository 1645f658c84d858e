"""The back-off timeline of one run: how sure each pass was, what it needed, what it emitted.

The settled form of the page's live strip, from the same pass lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamo.charts.look import BACK_OFF, ORDERS, SYMBOLS, bar_in_words, dress, percent, plain, visible
from dynamo.trace.ndjson import PassLine

_LOW_BAR = 0.05  # below it a linear axis would press the bars onto its floor
_FLOOR = 1e-4
_EXACT = (
    "Exact mode: a mark is the likeliest chunk of the joint that drafts come from. It has no bar to exceed."
)

_REASONS = {
    "threshold": "not above the threshold",
    "penalty": "none left above it after the repetition penalty",
    "mask": "none occurs in the training text",
    "kept_mass": "too little survived the mask",
}


class _Try(NamedTuple):
    pass_: int
    order: int
    best: float
    kept: bool
    story: str


def backoff_timeline(passes: Sequence[PassLine], threshold: float | None) -> go.Figure:
    """Above, the best joint value of every order that a pass tried, against that order's threshold
    (threshold ** (order - 1), dashed); below, the tokens that the pass emitted.

    A pass that tried three and then two tokens has two marks over each other. Passes that built no joint (the
    base model's, or all at threshold 1) have none. threshold: None in exact mode, where a joint is what the
    next pass's drafts are drawn from, and need not exceed anything.
    """
    exact = threshold is None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.06)
    tries = [each for line in passes for each in _tries(line, exact)]
    orders = sorted({each.order for each in tries}, reverse=True)
    logarithmic = bool(orders) and not exact and threshold ** (max(orders) - 1) < _LOW_BAR
    for order in orders:
        for kept in (True, False):
            # "above the bar" and not "emitted": the text may end inside of what was drawn.
            name = _drafts(order) if exact else f"{order} {'above the bar' if kept else 'backed off'}"
            _add_tries(figure, name, order, kept, [t for t in tries if (t.order, t.kept) == (order, kept)])
        if not exact:
            _add_bar(figure, order, threshold, len(passes), logarithmic)
    _add_emitted(figure, passes, exact)
    dress(figure, height=400, dragmode="zoom", barmode="overlay")
    if exact:
        figure.update_layout(
            title={"text": _EXACT, "font": {"size": 13}, "x": 0, "y": 0.98, "yanchor": "top"}
        )
    figure.update_yaxes(
        title={"text": "best joint value", "standoff": 8}, row=1, col=1, **_value_axis(logarithmic)
    )
    most = max((len(line.tokens) for line in passes), default=1)
    figure.update_yaxes(
        title={"text": "tokens", "standoff": 8}, row=2, col=1, dtick=1, range=[0, most + 0.2], fixedrange=True
    )
    figure.update_xaxes(range=[0.4, len(passes) + 0.6])
    figure.update_xaxes(title={"text": "forward pass", "standoff": 8}, row=2, col=1)
    if not tries:
        figure.add_annotation(
            text="No pass built a joint.", showarrow=False, x=0.5, y=0.6, xref="paper", yref="paper"
        )
    return figure


def _tries(line: PassLine, exact: bool) -> list[_Try]:
    attempts = [(each.order, each.best, False) for each in line.backoffs]
    if _chosen(line, exact) > 1 and line.best is not None:
        attempts.append((_chosen(line, exact), line.best, True))
    story = _story(line, exact)
    return [_Try(line.index + 1, order, best, kept, story) for order, best, kept in attempts]


def _chosen(line: PassLine, exact: bool) -> int:
    """Tokens of the chunk that the pass's joint gave; in exact mode its own token and the drafts."""
    return 1 + len(line.drafted) if exact else line.order


def _drafts(order: int) -> str:
    return f"{order - 1} draft{'s' * (order > 2)}"


def _story(line: PassLine, exact: bool) -> str:
    """The pass in words, for the pointer that rests on any of its marks."""
    emitted = f"{len(line.tokens)} token{'s' * (len(line.tokens) > 1)}"
    lines = [f"Pass {line.index + 1}: {emitted}", " ".join(visible(text) for text in line.texts)]
    for each in line.backoffs:
        reason = _REASONS.get(each.reason, plain(each.reason))
        lines.append(
            f"tried {each.order}: best {plain(percent(each.best))} of {percent(each.threshold)}, {reason}"
        )
    if _chosen(line, exact) > 1 and line.best is not None:
        chosen = _chosen(line, exact)
        how = _drafts(chosen) if exact else f"{'kept' if line.backoffs else 'tried'} {chosen}"
        lines.append(f"{how}: best {plain(percent(line.best))}")
    if line.rejected:
        lines.append(f"rejected: {' '.join(visible(text) for text in line.rejected)}")
    return "<br>".join(lines)


def _add_tries(figure: go.Figure, name: str, order: int, kept: bool, tries: Sequence[_Try]) -> None:
    if not tries:
        return
    figure.add_scatter(
        x=[each.pass_ for each in tries],
        y=[max(each.best, _FLOOR) for each in tries],
        mode="markers",
        name=name,
        marker={
            "symbol": SYMBOLS[order] + ("" if kept else "-open"),
            "size": 9 if kept else 8,
            "color": ORDERS[order] if kept else BACK_OFF,
            "line": {"width": 0 if kept else 1.5},
        },
        hoverinfo="text",
        hovertext=[each.story for each in tries],
        row=1,
        col=1,
    )


def _add_bar(figure: go.Figure, order: int, threshold: float, passes: int, logarithmic: bool) -> None:
    # Named in the legend, as marks would cover a label beside the line.
    bar = threshold ** (order - 1)
    if logarithmic and bar < _FLOOR:
        return
    figure.add_scatter(
        x=[0.4, passes + 0.6],
        y=[bar, bar],
        mode="lines",
        name=f"{order} must exceed {bar_in_words(threshold, order)}",
        line={"dash": "dash", "width": 1.5, "color": ORDERS[order]},
        hoverinfo="skip",
        row=1,
        col=1,
    )


def _add_emitted(figure: go.Figure, passes: Sequence[PassLine], exact: bool) -> None:
    for emitted in sorted({len(line.tokens) for line in passes}):
        lines = [line for line in passes if len(line.tokens) == emitted]
        figure.add_bar(
            x=[line.index + 1 for line in lines],
            y=[emitted] * len(lines),
            width=0.85,
            marker={"color": ORDERS[emitted], "line": {"width": 0}},
            hoverinfo="text",
            hovertext=[_story(line, exact) for line in lines],
            showlegend=False,
            row=2,
            col=1,
        )


def _value_axis(logarithmic: bool) -> dict:
    if logarithmic:
        ticks = {
            "tickvals": [1e-4, 1e-3, 0.01, 0.1, 1],
            "ticktext": ["≤ 0.01 %", "0.1 %", "1 %", "10 %", "100 %"],
        }
        return {"type": "log", "range": [-4.1, 0.1], **ticks}
    return {"tickformat": ".0%", "range": [-0.03, 1.04]}
