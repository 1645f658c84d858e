"""Estimates in stored results: read back, written in tables and sentences, drawn as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo.common.statistics import Estimate

Stored = Mapping[str, float]  # `Estimate.to_json`


def read(stored: Mapping[str, dict[str, float]]) -> dict[str, Estimate]:
    return {name: Estimate.from_json(fields) for name, fields in stored.items()}


def interval(estimate: Estimate, form: str = ".4g") -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def signed(estimate: Estimate, digits: int = 4) -> tuple[str, str]:
    """A difference with its sign, and its interval."""
    return f"{estimate.value:+.{digits}f}", interval(estimate, f"+.{digits}f")


def with_interval(stored: Stored, times: float = 1) -> str:
    value, low, high = (times * stored[key] for key in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def curve(name: str, x: Sequence[float], stored: Sequence[Stored], times: float = 1) -> dict[str, Any]:
    """A series of `charts.lines` with a band, each number multiplied by `times`."""
    values = {key: [times * each[key] for each in stored] for key in ("value", "low", "high")}
    return {"name": name, "x": list(x), "y": values.pop("value"), **values}
