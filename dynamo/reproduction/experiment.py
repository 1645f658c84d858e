"""What an experiment is: a measurement that ends in plain JSON, and a reading of that JSON.

`run` measures and may take hours; `show` is a pure function of its result, so that a report is written anew
without measuring. A verdict is computed in `show` by the experiment's own `rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dynamo.reproduction.workspace import Workspace

Verdict = Literal["holds", "differs", "cannot be tested here"]
VERDICTS = get_args(Verdict)


@dataclass(frozen=True)
class Table:
    """Rows as wide as the columns; cells are text, numbers (written with four digits) or None (a dash)."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self):
        for row in self.rows:
            assert len(row) == len(self.columns), f"{self.caption}: {len(row)} cells in {self.columns}"


@dataclass(frozen=True)
class Finding:
    """verdict: one of `VERDICTS`; sentence: the numbers that it was computed from, in words."""

    verdict: Verdict
    sentence: str

    def __post_init__(self):
        assert self.verdict in VERDICTS, f"verdict: expected one of {VERDICTS}, got {self.verdict!r}"


@dataclass(frozen=True)
class Shown:
    """What the report says of a result. figures: by caption, `plotly.graph_objects.Figure`."""

    tables: tuple[Table, ...]
    finding: Finding
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table, figure or question.

    name: of its result file and its figures, such as "table-10"; paper: what the paper says of it, values or
    shape; rule: how the verdict follows from the numbers; run: Workspace -> what `json.dumps` takes,
    resumable if it is long; show: the result, read back from JSON -> Shown; depends: names of the workspace's
    settings (`workspace.SETTINGS`) that the result depends on besides the pair; version: raised when `run`
    measures something else, so that older results no longer count.
    """

    name: str
    title: str
    paper: str
    rule: str
    run: Callable[[Workspace], dict[str, Any]]
    show: Callable[[dict[str, Any]], Shown]
    depends: tuple[str, ...] = ()
    version: int = 1
