"""How fast lanes are against the length of context, for a page of figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dynamo.charts.files import write_figures
from dynamo.charts.lines import lines


def draw_speeds(by_lane: Mapping[str, Mapping[int, float]], folder: Path, name: str) -> Path:
    """Tokens a second by length of context, a line for each lane; the file in the folder."""
    series = [{"name": lane, "x": list(each), "y": list(each.values())} for lane, each in by_lane.items()]
    figure = lines(series, "tokens of context", "tokens a second")
    figure.update_layout(height=380 + 20 * max(len(series) - 4, 0))  # room for the names
    figure.update_yaxes(type="log", tickvals=[step * 10**power for power in range(5) for step in (1, 2, 5)])
    figure.update_xaxes(type="log", tickvals=sorted({length for each in by_lane.values() for length in each}))
    return write_figures({name: figure}, folder)[name]
