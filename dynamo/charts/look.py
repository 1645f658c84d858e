"""What all figures share: the palette, the layout, how numbers and tokens are written.

Backgrounds are transparent and every mark has a contrast of 3:1 or more on the page's light and on its dark
cards, so that one figure serves both; text has the colour that `assets/explore/explore.css` gives it there.
Only attributes that plotly.js 3 knows are used, as that is what Gradio draws with.
"""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from dynamo.common.bidi import bidi_isolate

INK = "#1b1f24"
MUTED = "#8a94a3"
BACK_OFF = "#a64d97"
ORDERS = {1: MUTED, 2: "#0072b2", 3: "#b35900", 4: "#00796b", 5: "#7a5ab8"}
SYMBOLS = {2: "square", 3: "diamond", 4: "triangle-up", 5: "pentagon"}

# From cold to hot in even steps of OKLab, as the page mixes the cells of its live heatmaps.
HEAT = (
    "#00224e", "#1d3b56", "#3a535b", "#586b5f", "#778360", "#979b5e", "#b9b559", "#dbce4e", "#fee838",
)  # fmt: skip

_FONT = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"
_GRID = "rgba(138, 148, 163, 0.25)"
_CLEAR = "rgba(0, 0, 0, 0)"
_UNUSED = ["select2d", "lasso2d", "autoScale2d"]  # of the toolbar
_LONGEST_LABEL = 16


def dress(figure: go.Figure, *, height: int = 380, **layout: Any) -> go.Figure:
    """Gives a figure the common layout; keywords go to `update_layout` after it."""
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        autosize=True,
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        font={"family": _FONT, "size": 13, "color": INK},
        margin={"l": 48, "r": 16, "t": 40, "b": 44},
        # Below the figure: above it is the toolbar.
        legend={
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": _CLEAR,
        },
        hoverlabel={"bgcolor": INK, "bordercolor": MUTED, "font": {"color": "#f2f4f7", "family": _FONT}},
        hovermode="closest",
        modebar={"bgcolor": _CLEAR, "color": MUTED, "activecolor": ORDERS[2], "remove": _UNUSED},
        dragmode=False,  # a finger that scrolls past a figure must not zoom it
    )
    axis = {"gridcolor": _GRID, "linecolor": MUTED, "zeroline": False, "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(**layout)


def plain(text: str) -> str:
    """Text as Plotly has to be given it, which reads `<b>` and `&amp;` in every label."""
    return bidi_isolate(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def visible(text: str) -> str:
    """A token that stands alone: spaces, tabs and line breaks made visible, then `plain`."""
    return plain(text.replace(" ", "·").replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥"))


def tick(text: str) -> str:
    """`visible`, cut to what fits beside an axis."""
    cut = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    return visible(cut)


def percent(share: float) -> str:
    """0.0912 -> "9.1 %", keeping two digits that mean something, as the page's scripts write it."""
    hundred = 100 * share
    if hundred == 0:
        return "0 %"
    if hundred < 0.001:
        return "< 0.001 %"
    if hundred >= 99.95:
        digits = 0
    elif hundred >= 1:
        digits = 1
    else:
        digits = min(3, 1 - math.floor(math.log10(hundred)))
    return f"{float(f'{hundred:.{digits}f}'):g} %"


def bar_in_words(threshold: float, order: int) -> str:
    """What a chunk of `order` tokens has to exceed, and where it comes from: "25 % = 0.5²"."""
    bar = percent(threshold ** (order - 1))
    return f"{bar} = ε" if order == 2 else f"{bar} = {threshold:.4g}{'²³⁴'[order - 3]}"
