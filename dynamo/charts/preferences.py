"""Blind votes: how often DynaMo was preferred, against how much faster it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dynamo.charts.look import MUTED, ORDERS, dress, percent, plain


def votes_chart(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One mark per threshold: the share of decided votes that went to DynaMo, against its mean speed-up.

    rows: plain `dynamo.ui.compare.votes.Standing`s, with a 95 % Wilson interval ("low", "high"); those
    without a decided vote or a speed-up are left out. On the dashed line both are liked alike.
    """
    shown = [row for row in rows if row["share"] is not None and row["speed_up"] is not None]
    figure = go.Figure()
    figure.add_hline(0.5, line={"dash": "dash", "width": 1.5, "color": MUTED}, opacity=1)
    figure.add_scatter(
        x=[row["speed_up"] for row in shown],
        y=[row["share"] for row in shown],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["share"] for row in shown],
            "arrayminus": [row["share"] - row["low"] for row in shown],
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers+text",
        marker={
            "color": ORDERS[2],
            "size": [7 + 3 * math.log10(row["votes"]) for row in shown],
            "opacity": 1,
            "line": {"width": 0},
        },
        text=[f"ε {row['threshold']:g}" for row in shown],
        textposition="top right",
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[_in_words(row) for row in shown],
    )
    dress(figure, height=340, showlegend=False, margin={"t": 20, "l": 48, "r": 40})
    figure.update_xaxes(title={"text": "wall-clock speed-up in the duel", "standoff": 8}, ticksuffix="×")
    figure.update_yaxes(
        title={"text": "votes for DynaMo", "standoff": 8}, tickformat=".0%", range=[-0.03, 1.03]
    )
    if not shown:
        figure.update_xaxes(range=[0.5, 2.5])
        figure.add_annotation(
            text="No decided votes yet.", showarrow=False, x=0.5, y=0.7, xref="paper", yref="paper"
        )
    return figure


def _in_words(row: Mapping[str, Any]) -> str:
    rate = "no loss" if row["win_rate"] is None else f"{row['win_rate']:.2f} wins per loss"
    return "<br>".join(
        [
            f"ε = {row['threshold']:g}: {row['wins']} won, {row['ties']} tied, {row['losses']} lost ({rate})",
            f"{plain(percent(row['share']))} of the decided "
            f"({plain(percent(row['low']))} to {plain(percent(row['high']))})",
            f"{row['speed_up']:.2f}× faster, {row['tokens_per_forward']:.2f} tokens per forward pass",
        ]
    )
