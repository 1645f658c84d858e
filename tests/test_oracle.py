"""The oracle against pencil and paper: an oracle nobody checked is only a second opinion.

Cells are worked out in the comments from the written method (Algorithm 1 of arXiv 2405.00888 and the
project's readings of it). Blur and Otsu are held against scipy and scikit-image. Most cases write a head as
unnormalised weights: logits are their logarithms, sampled at temperature 1.
"""

from dataclasses import replace

import numpy as np
import pytest
from oracle import (
    OracleOptions,
    adaptive_threshold,
    apply_mask,
    bins_of,
    blur,
    choose,
    draw,
    otsu_bin,
    penalise,
    product,
    top_k,
)
from scipy import ndimage
from skimage.filters import threshold_otsu

ALMOST_ONE = float(np.nextafter(1.0, 0.0))

# Top-2 of each head: f_1 = (0: .6, 1: .4), f_2 = (2: .7, 3: .3). The weights of 1 do not survive top_k = 2.
#
#   J     2    3          M    2    3          J * M    2    3    sum .89
#   0    .42  .18         0   .5    0          0       .21   0
#   1    .28  .12         1    2    1          1       .56  .12
TWO_HEADS = np.log([[6, 4, 1, 1], [1, 1, 7, 3]])
RATIO = {(0, 2): 0.5, (1, 2): 2.0, (1, 3): 1.0}
PLAIN = OracleOptions(
    threshold=0.2, top_k=2, temperature=1.0, repetition_penalty=1.0, max_order=2, adaptive=False, blur=3
)


def ratio_of(table):
    return lambda tokens: table.get(tokens, 0.0)


def grid_ratio(grid):
    """With heads of equal logits the ranks are the ids and J is constant: the masked joint is this grid."""
    grid = np.asarray(grid, dtype=float)
    return lambda tokens: float(grid[tokens])


def flat_heads(heads, vocab):
    return np.zeros((heads, vocab))


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


def test_a_joint_without_a_cell_above_the_threshold_backs_off_to_the_first_head():
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


def test_a_cell_that_the_penalty_pushes_below_the_threshold_still_takes_part_in_the_draw():
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


# --- greedy ---


def test_temperature_zero_takes_the_largest_cell_of_the_joint_at_temperature_one():
    options = replace(PLAIN, temperature=0.0)
    decision = choose(TWO_HEADS, [], ratio_of(RATIO), options, uniform=0.0)
    assert decision.tokens == (1, 2)  # a draw at uniform 0 would give (0, 2)
    assert decision.cells == pytest.approx({(0, 2): 3 / 11, (1, 2): 8 / 11})
    decision = choose(TWO_HEADS, [], None, replace(options, threshold=0.5), uniform=ALMOST_ONE)
    assert decision.tokens == (0,)
    assert decision.backoffs[0][2] == pytest.approx(0.42)


def test_greedy_choice_comes_after_the_penalty_and_takes_the_lowest_rank_on_ties():
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


def test_threshold_one_builds_no_joint_so_even_an_empty_mask_leaves_no_back_off():
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


# --- stages ---


def test_top_k_sorts_descending_and_gives_ties_to_the_lower_id():
    ids, f = top_k(np.log([1.0, 4.0, 2.0, 4.0, 2.0]), k=3, temperature=1.0)
    assert ids.tolist() == [1, 3, 2]  # 2 and 4 tie for the last place
    assert f == pytest.approx([0.4, 0.4, 0.2])
    # Long enough that an unstable sort would shuffle the ties.
    assert top_k(np.tile([1.0, 0.0, 2.0], 100), k=4, temperature=1.0)[0].tolist() == [2, 5, 8, 11]


def test_top_k_divides_by_the_temperature_and_is_clipped_to_the_vocabulary():
    # 1 : 2 at temperature 1 is 1 : 4 at temperature .5.
    ids, f = top_k(np.log([1.0, 2.0]), k=50, temperature=0.5)
    assert ids.tolist() == [1, 0]
    assert f == pytest.approx([0.8, 0.2])


def test_ties_reach_the_chunk_as_the_lower_ids():
    decision = choose(flat_heads(2, 5), [], None, replace(PLAIN, threshold=0.0), uniform=0.3)
    assert list(decision.cells) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert decision.tokens == (0, 1)


def test_product_puts_one_head_on_each_axis():
    joint = product([np.array([0.6, 0.4]), np.array([0.7, 0.3]), np.array([0.5, 0.3, 0.2])])
    assert joint.shape == (2, 2, 3)
    assert joint[0, 1, 2] == pytest.approx(0.6 * 0.3 * 0.2)
    assert joint[1, 0, 1] == pytest.approx(0.4 * 0.7 * 0.3)


def test_apply_mask_raises_the_ratio_to_the_strength_and_counts_the_raw_mass():
    # Roots of .25, 4, 1 are .5, 2, 1: the grid of RATIO again.
    joint = np.array([[0.42, 0.18], [0.28, 0.12]])
    ids = [np.array([0, 1]), np.array([2, 3])]
    masked, kept_mass = apply_mask(joint, ids, ratio_of({(0, 2): 0.25, (1, 2): 4.0, (1, 3): 1.0}), 0.5)
    np.testing.assert_allclose(masked, np.array([[21, 0], [56, 12]]) / 89)
    assert kept_mass == pytest.approx(0.82)


@pytest.mark.parametrize("shape", [(7,), (5, 8), (1, 4), (4, 5, 6), (2, 2, 2), (3, 1, 2, 4)])
def test_blur_is_scipys_correlation_with_edges_repeated(shape):
    grid = np.random.default_rng(0).random(shape)
    expected = grid
    for axis in range(grid.ndim):
        expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    np.testing.assert_allclose(blur(grid), expected, rtol=1e-13)
    assert blur(grid).sum() == pytest.approx(grid.sum())
    np.testing.assert_array_equal(blur(grid, 1), grid)


def test_blur_refuses_a_width_that_has_no_kernel():
    with pytest.raises(ValueError, match="5"):
        blur(np.ones((3, 3)), 5)


def test_bins_run_from_zero_to_the_largest_value_which_falls_in_the_last():
    # Bins are 1/256 of the largest value wide, closed below: 1.0 of 4.0 opens bin 64.
    values = np.array([0.0, 0.0155, 0.016, 1.0, 3.98, 4.0])
    assert bins_of(values).tolist() == [0, 0, 1, 64, 254, 255]


@pytest.mark.parametrize("seed", range(6))
def test_otsu_is_scikit_images_on_a_grid_that_contains_zeros(seed):
    rng = np.random.default_rng(seed)
    low, high = rng.gamma(2.0, 1.0, 300), rng.normal(12, 2, 150 * (seed % 3)).clip(0)
    values = np.concatenate([np.zeros(40), low, high])
    # scikit-image spans its bins from the smallest value, here 0, to the largest; it returns the centre of b.
    b = int(threshold_otsu(values, nbins=256) / values.max() * 256)
    assert otsu_bin(values) == b
    assert otsu_bin(values.reshape(2, -1)) == b


def test_otsu_counts_from_zero_even_where_no_value_is_zero():
    # 10 of 12 falls in bin 213, 11 in 234. Split after 213: 2 * 3 * (248 - 213)^2 = 7350; after 234:
    # 3 * 2 * (255 - 220)^2 = 7350. A true tie, so the first; bins counted from 10 would give 0, 128, 255.
    values = np.array([12.0, 10.0, 11.0, 12.0, 10.0])
    assert bins_of(values).tolist() == [255, 213, 234, 255, 213]
    assert otsu_bin(values) == 213


def test_otsu_takes_the_first_bin_of_an_empty_stretch():
    # Nothing lies between bins 64 and 255: every split from 64 to 254 is equally good.
    assert otsu_bin(np.array([0.0, 0.25, 1.0, 1.0])) == 64


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_otsu_has_no_answer_for_one_value(value):
    assert otsu_bin(np.full((3, 3), value)) is None


def test_the_adaptive_stage_is_skipped_for_one_value():
    # Unblurred flat joint: all four cells stay.
    options = replace(PLAIN, adaptive=True, blur=1)
    assert len(choose(flat_heads(2, 2), [], None, options, uniform=0.0).cells) == 4


def test_the_adaptive_stage_is_skipped_where_it_would_leave_no_positive_cell():
    # b = 0 splits {0} from the rest; the two high blurred cells carry no mass, so nothing changes.
    joint = np.array([0.7, 0.0, 0.0, 0.3])
    np.testing.assert_array_equal(adaptive_threshold(joint, np.array([0.0, 1.0, 1.0, 0.0])), joint)
    # With one of them on mass the stage acts.
    np.testing.assert_array_equal(adaptive_threshold(joint, np.array([0.0, 1.0, 0.0, 1.0])), [0, 0, 0, 0.3])


def test_penalty_divides_once_for_each_repeating_token():
    ids = [np.array([5, 6])] * 3
    penalised = penalise(np.ones((2, 2, 2)), ids, {6}, 2.0, frozenset())
    assert penalised[0, 0, 0] == 1 / 4  # 5 5 5: the second and third repeat the first
    assert penalised[0, 0, 1] == 1 / 4  # 5 5 6: one repeats, one is in the context
    assert penalised[0, 1, 0] == 1 / 4  # 5 6 5: the repeat need not be adjacent
    assert penalised[0, 1, 1] == 1 / 4  # 5 6 6: the last is both, and counts once
    assert penalised[1, 1, 1] == 1 / 8
    penalised = penalise(np.ones((2, 2, 2)), ids, {6}, 2.0, {6})
    assert penalised[1, 1, 1] == 1
    assert penalised[0, 1, 0] == 1 / 2
    assert penalise(np.ones((2, 2)), ids[:2], set(), 2.0, frozenset())[0, 1] == 1


def test_context_may_be_any_iterable_of_ids():
    options = replace(PLAIN, threshold=0.25, repetition_penalty=2.0)
    expected = choose(TWO_HEADS, [1], None, options, uniform=0.8)
    assert choose(TWO_HEADS, (token for token in [3, 1, 1]), None, options, uniform=0.8) == expected
    assert choose(TWO_HEADS, np.array([1]), None, options, uniform=0.8) == expected
