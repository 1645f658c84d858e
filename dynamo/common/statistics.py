"""Confidence intervals of measured numbers: bootstrap over prompts, Wilson for shares.

Replies to the same prompt are not independent, so prompts are resampled, with all their replies. Numbers are
pooled: a ratio of sums, never a mean of ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dynamo.common.validation import number

Z = 1.959963984540054  # two-sided 95 %
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, float]) -> Estimate:
        return cls(*(number(name, fields[name]) for name in ("value", "low", "high")))


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """numerator / denominator element by element, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def bootstrap(
    sums: NDArray[np.floating], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Estimate:
    """A statistic of pooled counts and its percentile interval over resampled prompts.

    sums: (prompts, columns), what each prompt adds to each column; statistic: pooled sums (samples, columns)
    -> (samples,). A single prompt has no spread: its interval is the value itself.
    """
    sums = np.asarray(sums, dtype=np.float64)
    prompts = len(sums)
    times = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    low, high = np.percentile(statistic(times @ sums), [2.5, 97.5])
    return Estimate(float(statistic(sums.sum(axis=0, keepdims=True))[0]), float(low), float(high))


def bootstrap_ratio(numerators: NDArray[np.floating], denominators: NDArray[np.floating]) -> Estimate:
    """sum(numerators) / sum(denominators), each (prompts,), with its interval."""
    sums = np.stack([numerators, denominators], axis=1)
    return bootstrap(sums, lambda pooled: ratio(pooled[:, 0], pooled[:, 1]))


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of independent trials (Wilson, 1927); (0, 1) without any."""
    if not 0 <= successes <= count:
        raise ValueError(f"successes: expected 0 to {count}, got {successes}")
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, Z * Z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
