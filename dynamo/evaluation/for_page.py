"""The evaluations that the page offers, bound to one pair and to prompts, as plain values.

`app.py` hands these to the page, which does not import this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from dynamo.evaluation.machine import describe
from dynamo.evaluation.profile import profile_lanes
from dynamo.evaluation.sweep import Point, sweep, sweep_replies
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.loading import Pair

THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
PROFILED_PROMPTS = 6
MAX_NEW_TOKENS = 96


def time_split(pair: Pair, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Where a pass's time goes in both lanes, profiled on a few prompts (ids)."""
    lanes = profile_lanes(pair, prompts[:PROFILED_PROMPTS])
    return {lane: each.to_json() for lane, each in lanes.items()}


def sweep_reports(
    pair: Pair, prompts: Sequence[Sequence[int]], count: int, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """A sweep over the first `count` prompts (ids), one reply each: the report so far, after the base and
    after each threshold. progress: called with (done, total) after every reply; it may raise to cancel.
    """
    prompts = prompts[:count]
    options = replace(pair.options, exact=False)
    done, total = 0, sweep_replies(len(THRESHOLDS), len(prompts), 1)

    def replied() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    points: list[Point] = []
    for point in sweep(pair, THRESHOLDS, prompts, options, 1, MAX_NEW_TOKENS, replied):
        points.append(point)
        yield SweepReport(
            model=pair.name if pair.weights == "own" else f"{pair.name} in {pair.weights}",
            options={name: value for name, value in asdict(options).items() if name != "threshold"},
            prompts=len(prompts),
            seeds=1,
            max_new_tokens=MAX_NEW_TOKENS,
            machine=describe(pair.dynamo),
            base=points[0],
            points=tuple(points[1:]),
        ).to_json()
