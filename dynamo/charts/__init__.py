"""Plotly figures from traces, sweeps and votes, for the page and for reports.

Pure functions: records or plain rows in, a `go.Figure` out. Nothing here measures, loads or knows the page.
A figure shows only what is in its data, and the same numbers are in a table beside it.
"""

from dynamo.charts.joints import joint_heatmap
from dynamo.charts.passes import backoff_timeline
from dynamo.charts.preferences import votes_chart
from dynamo.charts.sweeps import calibration, sweep_shares, sweep_speed_quality
from dynamo.charts.training import training_losses

__all__ = [
    "backoff_timeline",
    "calibration",
    "joint_heatmap",
    "sweep_shares",
    "sweep_speed_quality",
    "training_losses",
    "votes_chart",
]
