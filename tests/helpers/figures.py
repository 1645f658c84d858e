"""Every figure, and what its data looks like."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from sweep_rows import report

from dynamo import charts
from dynamo.sampling.records import BackOff, Joint, StepRecord
from dynamo.trace.joint_line import JointLine
from dynamo.trace.ndjson import PassLine


def marks(figure: go.Figure, name: str) -> go.Scatter:
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def standing(threshold=0.5, wins=6, losses=3, speed_up=2.0):
    decided = wins + losses
    return {
        "threshold": threshold, "votes": decided + 1, "wins": wins, "ties": 1, "losses": losses,
        "speed_up": speed_up, "tokens_per_forward": 2.2,
        "win_rate": wins / losses if losses else None, "share": wins / decided if decided else None,
        "low": 0.3, "high": 0.9,
    }  # fmt: skip


def joint_line(size=25, picked=(0, 12, 24), order=3, masked=True) -> JointLine:
    rng = np.random.default_rng(4)
    candidates = np.arange(12 * order).reshape(order, 12)
    probabilities = np.sort(rng.dirichlet(np.ones(12), order))[:, ::-1]
    ranks = np.indices((12,) * order).reshape(order, -1).T[:: 7 if masked else 1]
    ranks = ranks[(ranks[:, 0] != 5) | (ranks[:, 1] != 6)] if masked else ranks
    values = probabilities[np.arange(order), ranks].prod(axis=1)
    joint = Joint(candidates, probabilities, ranks, values / values.sum())
    return JointLine.from_record(
        0, StepRecord(tuple(picked), len(picked), 0.01, joint=joint), 0.5, lambda i: f" w{i}", size
    )


def every_figure(text: str = " cat") -> list[go.Figure]:
    sweep = report()
    line = joint_line()
    line = JointLine(**{**line.__dict__, "texts": tuple(tuple(text for _ in head) for head in line.texts)})
    lines = [PassLine(0, (1, 2, 3), (text,) * 3, 3, 1.0, backoffs=(BackOff(2, text, 0.1, 0.5),), best=0.4)]
    renamed = [{**point, "quality": {text: point["speed_up"]}} for point in sweep["points"]]
    return [
        charts.joint_heatmap(line),
        charts.joint_heatmap(line, "product"),
        charts.backoff_timeline(lines, 0.5),
        charts.sweep_speed_quality(renamed, text, 0.5),
        charts.sweep_shares(sweep["points"]),
        charts.calibration([{**row, "event": text} for row in sweep["calibration"]]),
        charts.votes_chart([standing()]),
    ]
