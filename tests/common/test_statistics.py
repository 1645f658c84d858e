import numpy as np
import pytest
from scipy import stats

from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, wilson


@pytest.mark.parametrize("successes, count", [(0, 10), (3, 10), (10, 10), (481, 1000), (1, 1)])
def test_wilson_equals_scipys(successes, count):
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_nothing_was_tried_so_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_ratio_is_pooled_and_agrees_with_scipys_interval():
    random = np.random.default_rng(1)
    tokens, passes = random.integers(5, 60, 40), random.integers(5, 30, 40)
    ours = bootstrap_ratio(tokens, passes)
    assert ours.value == tokens.sum() / passes.sum()
    theirs = stats.bootstrap(
        (tokens, passes), lambda t, p, axis: t.sum(axis) / p.sum(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.1 * width and abs(ours.high - theirs.high) < 0.1 * width


def test_one_prompt_has_an_interval_of_no_width():
    assert bootstrap_ratio(np.array([6]), np.array([4])) == Estimate(1.5, 1.5, 1.5)


def test_nothing_divided_by_nothing_is_zero():
    assert bootstrap_ratio(np.zeros(3), np.zeros(3)) == Estimate(0.0, 0.0, 0.0)


def test_same_prompts_same_interval():
    sums = np.arange(12.0).reshape(6, 2) + 1
    first = bootstrap(sums, lambda pooled: pooled[:, 0] / pooled[:, 1])
    assert first == bootstrap(sums, lambda pooled: pooled[:, 0] / pooled[:, 1])
    assert Estimate.from_json(first.to_json()) == first


@pytest.mark.parametrize("successes", [-1, 4])
def test_an_impossible_count_has_no_interval(successes):
    with pytest.raises(ValueError, match="expected 0 to 3"):
        wilson(successes, 3)
