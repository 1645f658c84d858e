"""The oracle against pencil and paper: an oracle nobody checked is only a second opinion.

Cells are worked out in the comments from the written method (Algorithm 1 of arXiv 2405.00888 and the
project's readings of it). Most cases write a head as unnormalised weights: logits are their logarithms,
sampled at temperature 1.
"""

from dataclasses import replace

import numpy as np
import pytest
from oracle import (
    choose,
)
from oracle_cases import PLAIN, RATIO, TWO_HEADS, flat_heads, ratio_of


def grid_ratio(grid):
    """With heads of equal logits the ranks are the ids and J is constant: the masked joint is this grid."""
    grid = np.asarray(grid, dtype=float)
    return lambda tokens: float(grid[tokens])


# --- whole steps ---


def test_the_mask_turns_the_winner_and_two_tokens_come_out():
    # Without the mask (0, 2) leads with .42; with it (1, 2) with 56/89 = .629. Above eps = .2 stay
    # 21/89 = .236 and 56/89; 12/89 = .135 does not. Weights 21 : 56, so 3/11 and 8/11.
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), PLAIN, uniform=0.5)
    assert decision.tokens == (1, 2)
    assert decision.order == 2
    assert decision.backoffs == ()
    assert decision.cells == pytest.approx({(0, 2): 3 / 11, (1, 2): 8 / 11})
    # All of J but the .18 of the unseen (0, 3).
    assert decision.kept_mass == pytest.approx(0.82)

    # The same draw without a mask: .42 and .28 pass, weights 3 : 2, and .5 < .6 falls into the first.
    decision = choose(TWO_HEADS, [], None, PLAIN, uniform=0.5)
    assert decision.tokens == (0, 2)
    assert decision.cells == pytest.approx({(0, 2): 0.6, (1, 2): 0.4})
    assert decision.kept_mass == 1.0


def test_otsu_and_blur_decide_which_cells_survive_but_not_their_values():
    # After the static threshold, in units of 1/89:
    #   21  0   blurred down the rows  29.75  0   and across  22.3125   7.4375   bins  161   53
    #   56  0   (.75/.25 at an edge)   47.25  0               35.4375  11.8125         255   85
    # n_low * n_high * (difference of means)^2 for the splits after 53, 85, 161:
    #   3 * (167 - 53)^2 = 38988; 4 * (208 - 69)^2 = 77284; 3 * (255 - 99.67)^2 = 72385. So b = 85.
    # Cells (0, 2) and (1, 2) survive, with 21 : 56, not 22.3 : 35.4.
    options = replace(PLAIN, adaptive=True)
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.5)
    assert decision.cells == pytest.approx({(0, 2): 3 / 11, (1, 2): 8 / 11})

    # Unblurred the bins are 96 (21/56 of 256), 0, 255, 0. Splits after 0 and 96:
    #   4 * (175.5 - 0)^2 = 123201; 3 * (255 - 32)^2 = 149187. So b = 96 and only (1, 2) survives.
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), replace(options, blur=1), uniform=0.0)
    assert decision.cells == {(1, 2): 1.0}


def test_adaptive_first_sees_the_cells_below_the_static_threshold():
    # Before the static threshold the 12 is still there:
    #   21   0   blurred  23.0625   9.6875   bins  156   65
    #   56  12            37.6875  18.5625         255  126
    # Splits after 65, 126, 156: 3 * (179 - 65)^2 = 38988; 4 * (205.5 - 95.5)^2 = 48400;
    # 3 * (255 - 115.67)^2 = 58241. So b = 156 and (0, 2) falls, though 21/89 is above eps = .2.
    options = replace(PLAIN, adaptive=True, adaptive_first=True)
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0)
    assert decision.cells == {(1, 2): 1.0}
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), replace(options, adaptive_first=False), uniform=0.0)
    assert decision.tokens == (0, 2)


def test_adaptive_first_runs_the_adaptive_stage_once_and_only_if_it_is_on():
    # Of 258, unblurred; bins 255 104 99 99 99 0 0 0 0; eps = .155 lies between 39/258 and 41/258.
    grid = [[100, 41, 39], [39, 39, 0], [0, 0, 0]]
    # Otsu first: splits after 0, 99, 104: 20 * (131.2 - 0)^2 = 344 269; 14 * (179.5 - 42.43)^2 = 263 040;
    # 8 * (255 - 50.125)^2 = 335 790. b = 0 cuts only the zeros, then the static threshold cuts the 39s.
    options = replace(PLAIN, threshold=0.155, top_k=3, adaptive=True, blur=1, adaptive_first=True)
    decision = choose(flat_heads(2, 3), [], grid_ratio(grid), options, uniform=0.0)
    assert decision.cells == pytest.approx({(0, 0): 100 / 141, (0, 1): 41 / 141})
    # Static first: bins 255 104 and seven 0s: 14 * (179.5 - 0)^2 = 451 084; 8 * (255 - 13)^2 = 468 512.
    # b = 104 leaves the 100 alone.
    options = replace(options, adaptive_first=False)
    decision = choose(flat_heads(2, 3), [], grid_ratio(grid), options, uniform=0.0)
    assert decision.cells == {(0, 0): 1.0}

    options = replace(PLAIN, adaptive=False, adaptive_first=True)
    expected = choose(TWO_HEADS, [], ratio_of(RATIO), PLAIN, uniform=0.0)
    assert choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0) == expected


def test_adaptive_first_can_remove_the_only_cell_above_the_static_threshold():
    # A lone peak of 4/16 against a ridge of 3/16; only the peak exceeds eps = .2.
    grid = [[3, 3, 3, 3], [0, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]
    # Blurred (times 1/16) the peak is 4 * .5 * .5 = 1, the ridge 3 * .75 = 2.25 = the largest. Bins:
    #   255 255 255 255 |  85 113 142 113 |  0  56 113  56 |  0  28  56  28
    # The best splits: after 113, 55 * (232.4 - 58.91)^2 = 1.655e6; after 142, 48 * (255 - 65.83)^2 = 1.718e6.
    # b = 142: the peak (113) falls to Otsu, the ridge to the static threshold.
    options = replace(PLAIN, adaptive=True, adaptive_first=True, top_k=4)
    decision = choose(flat_heads(2, 4), [], grid_ratio(grid), options, uniform=0.0)
    assert decision.order == 1
    assert decision.backoffs == ((2, "threshold", 0.25, 0.2),)
    # The other way round the ridge is gone before Otsu looks.
    options = replace(options, adaptive_first=False)
    decision = choose(flat_heads(2, 4), [], grid_ratio(grid), options, uniform=0.0)
    assert decision.cells == {(2, 2): 1.0}
    assert decision.backoffs == ()


def test_no_cell_above_the_threshold_backs_off_to_the_first_head():
    """A joint without a cell above the threshold backs off to the first head."""
    # Largest cell .42 <= .5. At m = 1: .6, .4, and .7 of the way lies in the second.
    decision = choose(TWO_HEADS, [], None, replace(PLAIN, threshold=0.5), uniform=0.7)
    assert decision.tokens == (1,)
    assert decision.order == 1
    assert len(decision.backoffs) == 1
    assert decision.backoffs[0][:2] == (2, "threshold")
    assert decision.backoffs[0][2:] == pytest.approx((0.42, 0.5))
    assert decision.kept_mass == 1.0
    assert decision.cells == pytest.approx({(0,): 0.6, (1,): 0.4})


def test_the_threshold_is_a_power_of_the_order():
    # f_3 is flat over three tokens. Order 3: .42 / 3 = .14 <= .41^2 = .1681. Order 2: .42 > .41.
    f = [[0.6, 0.4, 1e-12], [0.7, 0.3, 1e-12], [1, 1, 1]]
    options = replace(PLAIN, threshold=0.41, top_k=3, max_order=3)
    decision = choose(np.log(f), [], None, options, uniform=0.9)
    assert decision.tokens == (0, 0)
    assert [step[:2] for step in decision.backoffs] == [(3, "threshold")]
    assert decision.backoffs[0][2:] == pytest.approx((0.14, 0.1681))
    # .37^2 = .1369 < .14: three tokens; the three cells share the draw, the third has the last third.
    decision = choose(np.log(f), [], None, replace(options, threshold=0.37), uniform=0.9)
    assert decision.tokens == (0, 0, 2)
    assert decision.cells == pytest.approx({(0, 0, 0): 1 / 3, (0, 0, 1): 1 / 3, (0, 0, 2): 1 / 3})


def test_the_threshold_must_be_exceeded_not_met():
    # Two flat heads over two tokens: every cell is exactly .25.
    options = replace(PLAIN, threshold=0.25)
    decision = choose(flat_heads(2, 2), [], None, options, uniform=0.0)
    assert decision.backoffs == ((2, "threshold", 0.25, 0.25),)
    assert choose(flat_heads(2, 2), [], None, replace(options, threshold=0.2499), uniform=0.0).order == 2


def test_the_penalised_cell_must_also_exceed_the_threshold():
    # (0, 0) and (1, 1) hold .5 each; each repeats its token: .5 / 2 = .25 exactly.
    options = replace(PLAIN, threshold=0.25, repetition_penalty=2.0)
    decision = choose(flat_heads(2, 2), [], grid_ratio([[1, 0], [0, 1]]), options, uniform=0.0)
    assert decision.backoffs == ((2, "penalty", 0.25, 0.25),)


def test_the_repetition_penalty_can_turn_a_chunk_into_a_back_off():
    # .42 > .4 alone. Token 0 is in the context: .42 / 1.1 = .381818 <= .4.
    # At m = 1: .6 / 1.1 against .4, that is 6 : 4.4 = 15/26 : 11/26.
    options = replace(PLAIN, threshold=0.4, repetition_penalty=1.1, adaptive=True)
    decision = choose(TWO_HEADS, [0], None, options, uniform=0.58)
    assert decision.order == 1
    assert [step[:2] for step in decision.backoffs] == [(2, "penalty")]
    assert decision.backoffs[0][2:] == pytest.approx((0.42 / 1.1, 0.4))
    assert decision.cells == pytest.approx({(0,): 15 / 26, (1,): 11 / 26})
    assert decision.tokens == (1,)  # 15/26 = .577; without the penalty .58 would have drawn token 0

    assert choose(TWO_HEADS, [], None, options, uniform=0.0).tokens == (0, 2)
    assert choose(TWO_HEADS, [0], None, options, uniform=0.0, special_ids={0}).tokens == (0, 2)
    # As a special token 0 is not penalised at m = 1 either.
    decision = choose(TWO_HEADS, [0], None, replace(options, max_order=1), uniform=0.0, special_ids={0})
    assert decision.cells == pytest.approx({(0,): 0.6, (1,): 0.4})


def test_a_cell_penalised_below_the_threshold_is_still_drawn():
    """A cell that the penalty pushes below the threshold still takes part in the draw."""
    # Above .25 stand .42 and .28; token 1 is in the context: .28 / 2 = .14 < .25 keeps its weight, 42 : 14.
    options = replace(PLAIN, threshold=0.25, repetition_penalty=2.0)
    decision = choose(TWO_HEADS, [1], None, options, uniform=0.8)
    assert decision.tokens == (1, 2)
    assert decision.cells == pytest.approx({(0, 2): 0.75, (1, 2): 0.25})


def test_a_mask_that_removes_everything_backs_off_with_that_reason():
    decision = choose(TWO_HEADS, [], ratio_of({}), replace(PLAIN, threshold=0.0), uniform=0.0)
    assert decision.tokens == (0,)
    assert decision.backoffs == ((2, "mask", 0.0, 0.0),)
    assert decision.kept_mass == 0.0


def test_too_little_kept_mass_backs_off_before_the_threshold_is_asked():
    # kept_mass .82; best is the normalised 56/89. eps = .7 would refuse it too, but later.
    options = replace(PLAIN, threshold=0.7, min_kept_mass=0.83)
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0)
    assert decision.order == 1
    assert [step[:2] for step in decision.backoffs] == [(2, "kept_mass")]
    assert decision.backoffs[0][2:] == pytest.approx((56 / 89, 0.7))
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), replace(options, threshold=0.2), uniform=0.0)
    assert decision.order == 1
    options = replace(options, threshold=0.2, min_kept_mass=0.81)
    assert choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0).order == 2


def test_kept_mass_is_of_the_last_joint_tried():
    # Order 3: nothing seen. Order 2: .82 as above.
    heads = np.concatenate([TWO_HEADS, TWO_HEADS[:1]])
    decision = choose(heads, [], ratio_of(RATIO), replace(PLAIN, max_order=3), uniform=0.5)
    assert decision.tokens == (1, 2)
    assert decision.backoffs == ((3, "mask", 0.0, pytest.approx(0.04)),)
    assert decision.kept_mass == pytest.approx(0.82)


def test_mask_strength_zero_does_not_read_the_table():
    def unreadable(tokens):
        raise AssertionError("the table was read")

    decision = choose(TWO_HEADS, [], unreadable, replace(PLAIN, mask_strength=0.0), uniform=0.5)
    assert decision == choose(TWO_HEADS, [], None, PLAIN, uniform=0.5)
    with pytest.raises(AssertionError, match="was read"):
        choose(TWO_HEADS, [], unreadable, PLAIN, uniform=0.5)


def test_a_rare_seen_tuple_looks_certain_after_the_mask_and_kept_mass_says_so():
    decision = choose(TWO_HEADS, [], ratio_of({(1, 3): 5.0}), replace(PLAIN, threshold=0.99), uniform=0.0)
    assert decision.tokens == (1, 3)
    assert decision.kept_mass == pytest.approx(0.12)
