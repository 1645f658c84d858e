import unittest.mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.filters import threshold_otsu

from dynamo.sampling import joint


def sparse(grid):
    ranks = np.argwhere(grid > 0)
    return ranks, grid[tuple(ranks.T)]


def random_grid(seed, k, m, density):
    rng = np.random.default_rng(seed)
    grid = rng.random((k,) * m) * (rng.random((k,) * m) < density)
    return grid if grid.any() else grid + 0.5


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 3), st.floats(0.02, 1.0))
def test_sparse_blur_equals_scipys_on_the_dense_grid(seed, k, m, density):
    grid = random_grid(seed, k, m, density)
    expected = grid
    for axis in range(m):
        expected = ndimage.convolve1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    for cost in (0, 10**9):  # scattered, and on the whole grid
        with unittest.mock.patch.object(joint, "SCATTER_COST", cost):
            cells, values = joint.blurred(*sparse(grid), k, width=3)
        dense = np.zeros(k**m)
        dense[cells] = values
        np.testing.assert_allclose(dense.reshape(grid.shape), expected, rtol=1e-12, atol=1e-15)


def test_blur_of_one_cell_by_hand():
    """A cell in the corner of a 3 x 3 grid keeps what would leave over the edge: (.75, .25) by (.75, .25)."""
    cells, values = joint.blurred(np.array([[0, 0]]), np.array([1.0]), 3, width=3)
    assert dict(zip(cells.tolist(), values.tolist(), strict=True)) == {
        0: 0.5625, 1: 0.1875, 3: 0.1875, 4: 0.0625,
    }  # fmt: skip


@given(st.integers(0, 10**6), st.integers(2, 400))
def test_otsu_finds_a_split_as_good_as_scikit_images(seed, size):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.gamma(2.0, 1.0, size), rng.gamma(9.0, 1.0, size // 2)])
    bins = joint.bins_of(values, values.max())
    counts = np.bincount(bins, minlength=joint.BINS)

    def variance(b):
        low, high = bins[bins <= b], bins[bins > b]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    theirs = int(threshold_otsu(hist=(counts, np.arange(joint.BINS))))
    ours = joint.otsu_bin(counts)
    assert variance(ours) == pytest.approx(variance(theirs), rel=1e-9)
    assert ours == min(b for b in range(256) if variance(b) >= variance(ours) * (1 - 1e-12))


def test_otsu_takes_the_first_bin_of_an_exact_tie():
    """Between two lone bins every split is equally good; floats alone would round them apart."""
    counts = np.zeros(256, dtype=int)
    counts[10], counts[200] = 3, 7
    assert joint.otsu_bin(counts) == 10


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 3), st.floats(0.0, 0.9))
def test_pruned_product_loses_no_cell_above_the_threshold(seed, k, m, above):
    f = np.sort(np.random.default_rng(seed).dirichlet(np.full(k, 0.3), size=m), axis=1)[:, ::-1]
    dense = f[0]
    for row in f[1:]:
        dense = dense[..., None] * row
    expected = np.argwhere(dense > above)
    ranks = joint.product_cells(f, above)
    values = joint.product(f, ranks)
    np.testing.assert_array_equal(ranks[values > above], expected)
    assert (np.diff(ranks @ k ** np.arange(m - 1, -1, -1)) > 0).all(), "rank order"


def test_ranks_within_a_product_are_all_of_them_in_row_major_order():
    for k, m, most in [(5, 2, 6), (4, 3, 10), (3, 4, 81), (7, 1, 3)]:
        expected = [r for r in np.ndindex(*(k,) * m) if np.prod(np.add(r, 1)) <= most]
        assert joint.ranks_within(k, m, most).tolist() == [list(r) for r in expected]


def test_tiny_temperature_and_huge_mask_strength_stay_finite():
    logits = np.array([[2.0, 1.0, -np.inf]])
    assert joint.survivors_of_top_k(logits, 1e-308).tolist() == [[1.0, 0.0, 0.0]]
    values, kept = joint.masked(np.array([0.1, 0.2]), np.array([1e20, 2e20]), 50.0)
    assert np.isfinite(values).all() and values.sum() == pytest.approx(1) and kept == pytest.approx(0.3)


def test_repetitions_by_hand():
    seen, special = np.zeros(10, bool), np.zeros(10, bool)
    seen[[1, 9]] = True
    special[9] = True
    cells = np.array([[1, 2, 3], [2, 2, 2], [9, 9, 1], [4, 5, 4], [1, 1, 1]])
    # Seen in the context or earlier in the cell, special tokens never.
    assert joint.repetitions(cells, seen, special).tolist() == [1, 2, 1, 1, 3]


def test_draw_hits_the_borders():
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert joint.draw(weights, 0.0) == 1
    assert joint.draw(weights, 0.25) == 3
    assert joint.draw(weights, np.nextafter(0.25, 0)) == 1
    assert joint.draw(weights, np.nextafter(1.0, 0)) == 3


def test_draws_follow_their_weights():
    weights = np.array([5.0, 1.0, 3.0, 1.0])
    rng = np.random.default_rng(3)
    counts = np.bincount([joint.draw(weights, u) for u in rng.random(20_000)], minlength=4)
    assert stats.chisquare(counts, weights / weights.sum() * 20_000).pvalue > 1e-3


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 3), st.sampled_from([1, 3]))
def test_a_lone_cell_survives_the_adaptive_stage(seed, k, m, width):
    """The shortcut for one cell is exact: the full stage, run on it, keeps it too."""
    rng = np.random.default_rng(seed)
    ranks, values = rng.integers(0, k, (1, m)), np.array([rng.random() + 1e-3])
    cells, smooth = joint.blurred(ranks, values, k, width)
    if len(cells) == k**m and smooth.min() == smooth.max():
        return
    counts = np.bincount(joint.bins_of(smooth, smooth.max()), minlength=256)
    counts[0] += k**m - len(cells)
    own = smooth[np.searchsorted(cells, ranks @ k ** np.arange(m - 1, -1, -1))]
    assert joint.bins_of(own, smooth.max())[0] > joint.otsu_bin(counts)
    assert joint.adaptive_keep(ranks, values, k, width).all()


@pytest.mark.parametrize("width", [1, 3])
def test_cells_too_small_to_blur_are_in_the_lowest_bin(width):
    """At a tiny temperature all but one cell of the plain product are zero, and were looked for in vain."""
    ranks = np.argwhere(np.ones((3, 3)))
    for rest in (0.0, 5e-324):
        values = np.full(9, rest)
        values[0] = 1.0
        assert joint.adaptive_keep(ranks, values, 3, width)[0]
        assert not joint.adaptive_keep(ranks, values, 3, width)[8]
