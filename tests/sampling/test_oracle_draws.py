"""The oracle's draws by hand: greedy, at the ends of the threshold, and cell by cell."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import (
    OracleOptions,
    choose,
    draw,
)
from oracle_cases import PLAIN, RATIO, TWO_HEADS, flat_heads, ratio_of

ALMOST_ONE = float(np.nextafter(1.0, 0.0))


# --- greedy ---


def test_temperature_zero_takes_the_largest_cell():
    """Temperature zero takes the largest cell of the joint at temperature one."""
    options = replace(PLAIN, temperature=0.0)
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0)
    assert decision.tokens == (1, 2)  # a draw at uniform 0 would give (0, 2)
    assert decision.cells == pytest.approx({(0, 2): 3 / 11, (1, 2): 8 / 11})
    decision = choose(TWO_HEADS, [], None, replace(options, threshold=0.5), uniform=ALMOST_ONE)
    assert decision.tokens == (0,)
    assert decision.backoffs[0][2] == pytest.approx(0.42)


def test_greedy_choice_comes_after_the_penalty():
    """Greedy choice comes after the penalty and takes the lowest rank on ties."""
    # All cells .25. (0, 0) and (1, 1) repeat themselves; (0, 1) and (1, 0) tie.
    options = replace(PLAIN, temperature=0.0, repetition_penalty=1.1)
    assert choose(flat_heads(2, 2), [], None, options, uniform=0.9).tokens == (0, 1)
    unpenalised = replace(options, repetition_penalty=1.0)
    assert choose(flat_heads(2, 2), [], None, unpenalised, uniform=0.9).tokens == (0, 0)
    # m = 1: .6 / 2 = .3 < .4
    options = replace(options, threshold=1.0, repetition_penalty=2.0)
    assert choose(TWO_HEADS, [0], None, options, uniform=0.0).tokens == (1,)


# --- the ends of the threshold ---


@pytest.mark.parametrize("adaptive_first", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_threshold_zero_emits_every_head_and_threshold_one_emits_one_token(heads, adaptive_first):
    rng = np.random.default_rng(heads)
    options = OracleOptions(threshold=0.0, top_k=4, max_order=4, adaptive_first=adaptive_first)
    for _ in range(5):
        logits = rng.normal(scale=3.0, size=(heads, 9))
        mask = rng.uniform(0.1, 10.0, size=(9,) * 4)

        def ratio(tokens, mask=mask):
            return float(mask[tokens + (0,) * (4 - len(tokens))])

        uniform = rng.uniform()
        decision = choose(logits, [0, 1, 2], ratio, options, uniform)
        assert len(decision.tokens) == decision.order == heads
        assert decision.backoffs == ()

        decision = choose(logits, [0, 1, 2], ratio, replace(options, threshold=1.0), uniform)
        assert len(decision.tokens) == decision.order == 1
        assert decision.backoffs == ()
        assert decision.kept_mass is None
        alone = choose(logits[:1], [0, 1, 2], None, options, uniform)
        assert (decision.tokens, decision.cells) == (alone.tokens, alone.cells)


def test_threshold_one_builds_no_joint():
    """Threshold one builds no joint so even an empty mask leaves no back off."""
    decision = choose(TWO_HEADS, [], ratio_of({}), replace(PLAIN, threshold=1.0), uniform=0.0)
    assert decision.backoffs == ()
    assert decision.kept_mass is None


@pytest.mark.parametrize("max_order, heads, order", [(3, 2, 2), (2, 3, 2), (1, 3, 1), (3, 3, 3)])
def test_the_order_is_the_smaller_of_max_order_and_the_number_of_heads(max_order, heads, order):
    options = replace(PLAIN, threshold=0.0, max_order=max_order)
    assert choose(flat_heads(heads, 3), [], None, options, uniform=0.3).order == order


# --- the draw ---


@pytest.mark.parametrize(
    "uniform, tokens",
    [
        (0.0, (0, 2)),
        (0.4199, (0, 2)),
        (0.4201, (0, 3)),
        (0.5999, (0, 3)),
        (0.6001, (1, 2)),
        (0.8799, (1, 2)),
        (0.8801, (1, 3)),
        (ALMOST_ONE, (1, 3)),
    ],
)
def test_cells_are_laid_out_in_row_major_rank_order(uniform, tokens):
    # .42 | .18 | .28 | .12 accumulate to .42, .60, .88, 1.
    decision = choose(TWO_HEADS, [], None, replace(PLAIN, threshold=0.0), uniform)
    assert decision.tokens == tokens
    assert list(decision.cells) == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_draw_takes_the_first_cell_whose_cumulative_weight_exceeds_the_share():
    weights = np.array([[0.0, 2.0], [0.0, 2.0], [4.0, 0.0]])
    assert draw(weights, 0.0) == 1  # a cell without weight is never drawn, not even by 0
    assert draw(weights, np.nextafter(0.25, 0)) == 1
    assert draw(weights, 0.25) == 3  # 2 of 8 are reached, not exceeded
    assert draw(weights, 0.5) == 4
    assert draw(weights, ALMOST_ONE) == 4


def test_ties_reach_the_chunk_as_the_lower_ids():
    decision = choose(flat_heads(2, 5), [], None, replace(PLAIN, threshold=0.0), uniform=0.3)
    assert list(decision.cells) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert decision.tokens == (0, 1)


def test_the_adaptive_stage_is_skipped_for_one_value():
    # Unblurred flat joint: all four cells stay.
    options = replace(PLAIN, adaptive=True, blur=1)
    assert len(choose(flat_heads(2, 2), [], None, options, uniform=0.0).cells) == 4


def test_context_may_be_any_iterable_of_ids():
    options = replace(PLAIN, threshold=0.25, repetition_penalty=2.0)
    expected = choose(TWO_HEADS, [1], None, options, uniform=0.8)
    assert choose(TWO_HEADS, (token for token in [3, 1, 1]), None, options, uniform=0.8) == expected
    assert choose(TWO_HEADS, np.array([1]), None, options, uniform=0.8) == expected
