"""The oracle's stages one by one, by hand; its blur and Otsu against scipy and scikit-image."""

import numpy as np
import pytest
from oracle import (
    adaptive_threshold,
    apply_mask,
    bins_of,
    blur,
    otsu_bin,
    penalise,
    product,
    top_k,
)
from scipy import ndimage
from skimage.filters import threshold_otsu


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


def test_product_puts_one_head_on_each_axis():
    joint = product([np.array([0.6, 0.4]), np.array([0.7, 0.3]), np.array([0.5, 0.3, 0.2])])
    assert joint.shape == (2, 2, 3)
    assert joint[0, 1, 2] == pytest.approx(0.6 * 0.3 * 0.2)
    assert joint[1, 0, 1] == pytest.approx(0.4 * 0.7 * 0.3)


def test_apply_mask_raises_the_ratio_to_the_strength_and_counts_the_raw_mass():
    # Roots of .25, 4, 1 are .5, 2, 1: the grid of `test_oracle` again.
    joint = np.array([[0.42, 0.18], [0.28, 0.12]])
    ids = [np.array([0, 1]), np.array([2, 3])]
    ratio = {(0, 2): 0.25, (1, 2): 4.0, (1, 3): 1.0}
    masked, kept_mass = apply_mask(joint, ids, lambda tokens: ratio.get(tokens, 0.0), 0.5)
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
