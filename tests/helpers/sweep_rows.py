"""A made-up sweep in the form that `python -m dynamo sweep` writes: smooth curves, no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dynamo.common.statistics import Estimate, wilson
from dynamo.evaluation.calibration import Bin, Reliability
from dynamo.evaluation.sweep import QUALITY, Point
from dynamo.evaluation.sweep_report import SweepReport

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 1.0)


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half)


def point(threshold: float | None) -> Point:
    level = 1.0 if threshold is None else threshold
    three = 0.9 * (1 - level)
    return Point(
        threshold=threshold,
        replies=40,
        tokens=1000,
        passes=500,
        tokens_per_forward=estimate(1 + 2 * three),
        speed_up=estimate(1 + three, 0.05),
        tokens_per_second=100.0,
        share_by_order={"1": level, "2": 1 - level - three, "3": three} if level < 1 else {"1": 1.0},
        backoff_rate=level if level < 1 else 0.0,
        reasons={},
        quality={name: estimate(0.3 + 0.1 * i + 0.2 * level, 0.02) for i, name in enumerate(QUALITY)},
    )


def curve(order: int, event: str) -> Reliability:
    rights = [(0.05, 0, 0), (0.25, 40, 6), (0.55, 90, 40), (0.95, 200, 170)]
    bins = tuple(Bin(c - 0.05, c + 0.05, n, c, right, wilson(right, n)) for c, n, right in rights)
    return Reliability(order, event, bins, without_joint=3)


def report(thresholds: Sequence[float] = THRESHOLDS, calibrated: bool = True) -> dict[str, Any]:
    curves = [curve(order, event) for order in (2, 3) for event in ("text", "base")]
    return SweepReport(
        model="embedded",
        options={"top_k": 50},
        prompts=40,
        seeds=1,
        max_new_tokens=96,
        machine={
            "device": "A <b>processor</b>", "device_type": "cpu", "threads": 2, "dtype": "float32",
            "python": "3.12", "torch": "2.13.0", "transformers": "5.23.0", "system": "Linux",
            "date": "2026-11-21",
        },
        base=point(None),
        points=tuple(point(threshold) for threshold in thresholds),
        calibration=tuple(curves) if calibrated else (),
    ).to_json()  # fmt: skip


def growing(prompts: int, progress: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    """A sweep that is being run: the base first, then a threshold more each time."""
    total = prompts * (1 + len(THRESHOLDS))
    for count in range(1 + len(THRESHOLDS)):
        for reply in range(prompts):
            progress(count * prompts + reply + 1, total)
        yield {**report(THRESHOLDS[:count], calibrated=False), "prompts": prompts}
