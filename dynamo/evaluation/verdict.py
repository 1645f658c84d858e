"""What verdicts add up to: ratings, win rates against speed-up, and the speed-up at the same quality.

Win rate is wins over losses, ties and missing verdicts left out. A line is fitted to win rate against
wall-clock speed-up over the thresholds; where it falls through 1, DynaMo's texts are as good as the base's
(paper, section 4). Intervals come from resampling prompts, with all texts and clocks of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamo.common.statistics import RESAMPLES, Estimate, bootstrap_ratio

WINNERS = ("dynamo", "base", "tie", None)
CLOCKS = ("tokens", "seconds", "base_tokens", "base_seconds")


@dataclass(frozen=True)
class Comparison:
    """One threshold. win_rate: None without a loss; speed_up: decode tokens per second over the base's, None
    if no text was longer than its first pass."""

    threshold: float
    wins: int
    losses: int
    ties: int
    no_verdict: int
    win_rate: Estimate | None
    speed_up: Estimate | None


@dataclass(frozen=True)
class SameQuality:
    """slope, intercept: of win rate on speed-up. theoretical: where the line falls through 1, at most `heads`
    and at least 1, extrapolated if need be; measured: the same, but no more than the fastest measured.

    undefined: share of resamples without a line (fewer than two thresholds with a loss).
    """

    slope: float
    intercept: float
    measured: Estimate
    theoretical: Estimate
    undefined: float


def final_winners(rows: Iterable[dict[str, Any]], orders: int = 1) -> list[dict[str, Any]]:
    """One row for each pair of texts that was judged in `orders` orders, 1 or 2.

    If judged in both orders, a text must win in both; otherwise it is a tie, and no verdict if either has
    none.
    """
    pairs: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["prompt_id"], row["seed"], row["threshold"]), []).append(row)
    final = []
    for judged in pairs.values():
        if len(judged) < orders:
            continue
        winners = {row["winner"] for row in judged}
        both = None if None in winners else "tie"
        final.append({**judged[0], "winner": winners.pop() if len(winners) == 1 else both})
    return final


def compare(
    judgements: Iterable[dict[str, Any]],
    completions: Sequence[dict[str, Any]],
    heads: int,
    orders: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[list[Comparison], SameQuality | None]:
    """Win rates and speed-ups by threshold, and the same-quality speed-up; None if there is no line.

    judgements: pairwise rows (`dynamo.evaluation.judge`), in `orders` orders for each pair; completions: the
    texts' rows with their clocks. Raises ValueError without a pair.
    """
    final = final_winners(judgements, orders)
    if not final:
        raise ValueError("judgements: expected one pair or more, got none")
    thresholds = sorted({row["threshold"] for row in final}, reverse=True)
    sums = _sums(final, completions, thresholds)  # (prompts, thresholds, columns)
    prompts = len(sums)
    times = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    samples = np.tensordot(times.astype(float), sums, axes=1)  # (resamples, thresholds, columns)
    pooled = sums.sum(axis=0, keepdims=True)
    points = []
    for number, threshold in enumerate(thresholds):
        wins, losses, ties, missing = pooled[0, number, : len(WINNERS)].astype(int).tolist()
        rate, speed = (
            _estimate(pooled[:, number], samples[:, number], each) for each in (win_rate, speed_up)
        )
        points.append(Comparison(threshold, wins, losses, ties, missing, rate, speed))
    return points, _same_quality(pooled, samples, heads)


def _sums(
    final: Sequence[dict[str, Any]], completions: Sequence[dict[str, Any]], thresholds: Sequence[float]
) -> NDArray[np.float64]:
    prompts = sorted({row["prompt_id"] for row in final})
    place = {threshold: number for number, threshold in enumerate(thresholds)}
    clocks = {(row["prompt_id"], row["seed"], row["threshold"]): row for row in completions}
    sums = np.zeros((len(prompts), len(thresholds), len(WINNERS) + len(CLOCKS)))
    for row in final:
        cell = sums[prompts.index(row["prompt_id"]), place[row["threshold"]]]
        cell[WINNERS.index(row["winner"])] += 1
        key = (row["prompt_id"], row["seed"])
        own, base = clocks[(*key, row["threshold"])], clocks[(*key, None)]
        cell[len(WINNERS) :] += (
            own["decode_tokens"], own["decode_seconds"], base["decode_tokens"], base["decode_seconds"],
        )  # fmt: skip
    return sums


def win_rate(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wins over losses of sums (.., columns); nan without a loss."""
    return _divided(sums[..., 0], sums[..., 1])


def speed_up(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decode tokens per second over the base's, of sums (.., columns); nan if nothing was timed."""
    tokens, seconds, base_tokens, base_seconds = np.moveaxis(sums[..., len(WINNERS) :], -1, 0)
    return _divided(tokens * base_seconds, seconds * base_tokens)


def _divided(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under != 0)


def fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and intercept of the least-squares line through each row's points (rows, points) that are
    numbers; nan where two different x are missing."""
    known = np.isfinite(x) & np.isfinite(y)
    count = known.sum(axis=-1).astype(float)
    mean_x, mean_y = (_divided(np.where(known, each, 0.0).sum(axis=-1), count) for each in (x, y))
    dx, dy = (np.where(known, each - mean[..., None], 0.0) for each, mean in ((x, mean_x), (y, mean_y)))
    spread = (dx * dx).sum(axis=-1)
    # Equal speeds differ by rounding only, and a line through them would say nothing.
    slope = _divided((dx * dy).sum(axis=-1), np.where(spread > 1e-12, spread, 0.0))
    return slope, mean_y - slope * mean_x


def crossing(slope: NDArray[np.float64], intercept: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """Speed-up at which the line falls through a win rate of 1, kept between 1 and `heads`.

    A line that does not fall is above 1 at the end or never was: then it is `heads` or 1.
    """
    falls = slope < 0
    at = np.where(falls, _divided(1.0 - intercept, np.where(falls, slope, 1.0)), np.nan)
    flat = np.where(intercept + slope * heads >= 1.0, float(heads), 1.0)
    found = np.where(falls, np.clip(at, 1.0, heads), flat)
    return np.where(np.isnan(slope), np.nan, found)


def _same_quality(
    pooled: NDArray[np.float64], samples: NDArray[np.float64], heads: int
) -> SameQuality | None:
    def theoretical(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return crossing(*fit(speed_up(sums), win_rate(sums)), heads)

    def measured(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        fastest = np.nan_to_num(speed_up(sums), nan=1.0).max(axis=-1)
        return np.minimum(theoretical(sums), np.maximum(fastest, 1.0))

    slope, intercept = (float(each[0]) for each in fit(speed_up(pooled), win_rate(pooled)))
    if np.isnan(slope):
        return None
    undefined = float(np.isnan(theoretical(samples)).mean())
    return SameQuality(
        slope,
        intercept,
        _estimate(pooled, samples, measured),
        _estimate(pooled, samples, theoretical),
        undefined,
    )


def _estimate(
    pooled: NDArray[np.float64],
    samples: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Estimate | None:
    """The statistic of all prompts, None if undefined, and the interval of the resamples that define it."""
    value = float(statistic(pooled)[0])
    if not np.isfinite(value):
        return None
    found = statistic(samples)
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (value, value)
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Rating:
    """One threshold (None: the base): mean rating and how many texts have one or none."""

    threshold: float | None
    rated: int
    no_verdict: int
    mean: Estimate | None


def ratings(judgements: Iterable[dict[str, Any]]) -> list[Rating]:
    """Mean ratings by threshold, the base's first, with intervals over prompts."""
    groups: dict[float | None, list[dict[str, Any]]] = {}
    for row in judgements:
        groups.setdefault(row["threshold"], []).append(row)
    result = []
    for threshold in sorted(groups, key=lambda each: (each is not None, -(each or 0.0))):
        rows = groups[threshold]
        known = [row for row in rows if row["rating"] is not None]
        prompts = sorted({row["prompt_id"] for row in known})
        totals, counts = np.zeros(len(prompts)), np.zeros(len(prompts))
        for row in known:
            totals[prompts.index(row["prompt_id"])] += row["rating"]
            counts[prompts.index(row["prompt_id"])] += 1
        mean = bootstrap_ratio(totals, counts) if known else None
        result.append(Rating(threshold, len(known), len(rows) - len(known), mean))
    return result
