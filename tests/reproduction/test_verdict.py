import numpy as np
import pytest
from scipy import stats

from dynamo.evaluation import verdict
from dynamo.evaluation.judge import parse_choice, parse_rating


@pytest.mark.parametrize(
    "answer, rating",
    [
        ("Good. [[7]]", 7.0),
        ("[[ 8.5 ]]", 8.5),
        ("I say [[7]]. Final verdict: [[7]]", 7.0),
        ("First [[7]], no, [[8]]", None),  # which one is meant would be a guess
        ("Its text says [[A]], I say [[7]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[7/10]]", None),
        ("Rating: 7", None),
        ("[7]", None),
        ("[[number]]", None),
        ("", None),
    ],
)
def test_a_rating_is_read_or_there_is_none(answer, rating):
    assert parse_rating(answer) == rating


@pytest.mark.parametrize(
    "answer, choice",
    [
        ("B is dull. [[A]]", "A"),
        ("[[C]]", "C"),
        ("[[A]] .. [[A]]", "A"),
        ("[[A]] or [[B]]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("A", None),
        ("[[A]] though [[8]]", None),
    ],
)
def test_a_choice_is_read_or_there_is_none(answer, choice):
    assert parse_choice(answer) == choice


def rows_of(outcomes, speeds, prompts=6):
    """Judgements and texts: outcomes {threshold: (wins, losses, ties, none)} for every prompt alike."""
    judgements, completions = [], []
    for number in range(prompts):
        name = f"p{number}"
        seeds = max(map(sum, outcomes.values()))
        for seed in range(seeds):
            completions.append(clock(name, seed, None, 100, 1.0))
        for threshold, counts in outcomes.items():
            winners = [w for w, count in zip(verdict.WINNERS, counts, strict=True) for _ in range(count)]
            for seed, winner in enumerate(winners):
                judgements.append({"prompt_id": name, "seed": seed, "threshold": threshold, "winner": winner})
                completions.append(clock(name, seed, threshold, 100, 1.0 / speeds[threshold]))
    return judgements, completions


def clock(name, seed, threshold, tokens, seconds):
    return {"prompt_id": name, "seed": seed, "threshold": threshold,
            "decode_tokens": tokens, "decode_seconds": seconds}  # fmt: skip


def test_counts_win_rates_and_speed_ups_by_hand():
    judgements, completions = rows_of({1.0: (2, 2, 1, 0), 0.5: (1, 2, 0, 2)}, {1.0: 0.8, 0.5: 2.0})
    first, second = verdict.compare(judgements, completions, heads=3)[0]
    assert (first.threshold, first.wins, first.losses, first.ties, first.no_verdict) == (1.0, 12, 12, 6, 0)
    assert (second.wins, second.losses, second.ties, second.no_verdict) == (6, 12, 0, 12)
    assert first.win_rate.value == 1.0 and second.win_rate.value == 0.5
    assert first.speed_up.value == pytest.approx(0.8) and second.speed_up.value == pytest.approx(2.0)
    # Every prompt says the same, so resampling them changes nothing.
    assert second.win_rate.low == second.win_rate.high == 0.5


def test_same_quality_is_where_the_line_falls_through_one():
    """Win rates 2, 1, .5 at speed-ups 1, 2, 3: scipy's line, solved by hand."""
    outcomes = {1.0: (2, 1, 0, 0), 0.5: (1, 1, 0, 0), 0.0: (1, 2, 0, 0)}
    _, same = verdict.compare(*rows_of(outcomes, {1.0: 1.0, 0.5: 2.0, 0.0: 3.0}), heads=3)
    line = stats.linregress([1, 2, 3], [2, 1, 0.5])
    assert (same.slope, same.intercept) == pytest.approx((line.slope, line.intercept))
    assert same.theoretical.value == pytest.approx((1 - line.intercept) / line.slope)
    assert same.measured.value == same.theoretical.value and same.undefined == 0.0


def test_a_line_still_above_one_is_extrapolated_and_capped():
    """A line still above one is extrapolated but not measured and capped at the heads."""
    outcomes = {1.0: (4, 2, 0, 0), 0.0: (3, 2, 0, 0)}
    _, same = verdict.compare(*rows_of(outcomes, {1.0: 1.0, 0.0: 1.5}), heads=3)
    assert same.theoretical.value == pytest.approx(2.0)  # 2 - (x - 1): through 1 at 2
    assert same.measured.value == pytest.approx(1.5)
    _, capped = verdict.compare(*rows_of({1.0: (40, 20, 0, 0), 0.0: (39, 20, 0, 0)}, {1.0: 1.0, 0.0: 1.5}), 3)
    assert capped.theoretical.value == 3.0 and capped.measured.value == pytest.approx(1.5)


def test_a_line_below_one_or_rising_has_its_own_ends():
    slopes, intercepts = np.array([-1.0, 0.5, 0.0, np.nan]), np.array([1.5, 0.2, 1.2, np.nan])
    np.testing.assert_array_equal(verdict.crossing(slopes, intercepts, 3), [1.0, 3.0, 3.0, np.nan])
    assert verdict.crossing(np.array([0.1]), np.array([0.2]), 3) == [1.0]


def test_thresholds_without_a_loss_are_no_points_of_the_line():
    outcomes = {1.0: (2, 0, 0, 0), 0.5: (2, 1, 0, 0), 0.0: (1, 1, 0, 0)}
    points, same = verdict.compare(*rows_of(outcomes, {1.0: 1.0, 0.5: 2.0, 0.0: 3.0}), heads=3)
    assert points[0].win_rate is None and (same.slope, same.intercept) == pytest.approx((-1.0, 4.0))
    assert verdict.compare(*rows_of({1.0: (1, 0, 0, 0)}, {1.0: 1.0}), heads=3)[1] is None


def test_the_interval_covers_the_spread_between_prompts():
    """Half of the prompts win twice as often as they lose, half the other way round."""
    one = rows_of({1.0: (1, 1, 0, 0), 0.5: (4, 2, 0, 0)}, {1.0: 1.0, 0.5: 2.0}, prompts=4)
    other = rows_of({1.0: (1, 1, 0, 0), 0.5: (2, 4, 0, 0)}, {1.0: 1.0, 0.5: 2.0}, prompts=4)
    renamed = [[row | {"prompt_id": "q" + row["prompt_id"]} for row in rows] for rows in other]
    judgements, completions = (a + b for a, b in zip(one, renamed, strict=True))
    (_, point), _ = verdict.compare(judgements, completions, heads=3)
    assert point.win_rate.value == 1.0
    assert 0.5 <= point.win_rate.low < 0.75 and 1.35 < point.win_rate.high <= 2.0


def test_both_orders_must_agree_on_a_winner():
    def pair(*winners):
        return [{"prompt_id": "p", "seed": 0, "threshold": 0.5, "winner": each} for each in winners]

    def final(*winners):
        return [row["winner"] for row in verdict.final_winners(pair(*winners), orders=2)]

    assert final("dynamo", "dynamo") == ["dynamo"]
    assert final("dynamo", "base") == final("dynamo", "tie") == ["tie"]
    assert final("dynamo", None) == final(None, None) == [None]
    assert final("dynamo") == []  # the other order is not judged yet


def test_ratings_are_means_by_threshold_with_the_base_first():
    rows = [
        {"prompt_id": p, "threshold": t, "rating": r}
        for p, t, r in [("a", 0.5, 4), ("a", 0.5, None), ("b", 0.5, 8), ("a", None, 7), ("a", 1.0, None)]
    ]
    base, one, half = verdict.ratings(rows)
    assert (base.threshold, base.mean.value, base.rated) == (None, 7.0, 1)
    assert (one.mean, one.no_verdict) == (None, 1)
    assert (half.mean.value, half.no_verdict) == (6.0, 1)
    assert (half.mean.low, half.mean.high) == (4.0, 8.0)
