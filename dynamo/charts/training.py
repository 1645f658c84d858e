"""Training of token heads while it goes on: the loss of every head, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dynamo.charts.look import ORDERS, dress

Row = Mapping[str, Any]


def training_losses(rows: Sequence[Row], steps: int) -> go.Figure:
    """Mean nats per target of each head over the steps of a run.

    rows: of a training's log, with "step" and "losses", a loss for each head; steps: where the run will end.
    Head 1 is the base's own output, which training the extra heads alone leaves as it is.
    """
    figure = go.Figure()
    heads = len(rows[-1]["losses"]) if rows else 0
    at = [row["step"] for row in rows]
    for head in range(heads):
        losses = [row["losses"][head] for row in rows]
        figure.add_scatter(
            x=at,
            y=losses,
            mode="lines+markers" if len(rows) < 40 else "lines",
            name="head 1, the base's own" if head == 0 else f"head {head + 1}",
            line={"color": ORDERS[head + 1], "width": 2, "dash": "dot" if head == 0 else "solid"},
            marker={"size": 5},
            hoverinfo="text",
            hovertext=[
                f"step {step}: head {head + 1}, {loss:.2f} nats"
                for step, loss in zip(at, losses, strict=True)
            ],
        )
    dress(figure, height=320, showlegend=True)
    figure.update_xaxes(title={"text": "step", "standoff": 8}, range=[0, max(1, steps)])
    figure.update_yaxes(title={"text": "nats per token", "standoff": 8})
    return figure
