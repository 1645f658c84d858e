"""The joint distribution's mathematics (paper, section 3.3), on the cells that matter.

A grid of k^m cells is never built while it is mostly zero: after the mask only tuples that occur in the table
are left, and after the static threshold at most eps^-(m-1) cells. A grid is therefore a list of cells,
`ranks` (cells, m) in row-major order and `values` (cells,); every other cell is zero, and zeros are counted,
not stored. All values are float64. Nothing here knows tokens, tables or options.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.intp]
Values = NDArray[np.float64]

BINS = 256
TINY_TEMPERATURE = 1e-100  # no float32 divided by more overflows float64
SCATTER_COST = 8  # spreading one value to one neighbour costs as much as blurring this many cells of a grid
BLUR = {1: np.array([1.0]), 3: np.array([0.25, 0.5, 0.25])}


def survivors_of_top_k(logits: Values, temperature: float) -> Values:
    """Softmax over the k survivors of each head: falling logits (heads, k) -> (heads, k)."""
    falls = np.subtract(logits, logits[:, :1], dtype=np.float64)
    if temperature < TINY_TEMPERATURE:
        with np.errstate(over="ignore"):  # all but the largest fall to zero, as they should
            falls = falls / temperature
    else:
        falls /= temperature
    weights = np.exp(falls, out=falls)
    weights /= np.add.reduce(weights, axis=1, keepdims=True)
    return weights


def product(f: Values, ranks: Ranks) -> Values:
    """f_1 (x) .. (x) f_m at the given cells: f (m, k), ranks (cells, m) -> (cells,)."""
    values = f[0].take(ranks[:, 0])
    for head, column in zip(f[1:], ranks.T[1:], strict=True):
        values *= head.take(column)
    return values


def product_cells(f: Values, above: float) -> Ranks:
    """Cells of the plain product that may be larger than `above`, row-major: f (m, k) -> (cells, m).

    Rows of f fall, so a cell of ranks (r1 .. rm) is the least of (r1 + 1) .. (rm + 1) cells, which sum to 1
    at most.
    """
    m, k = f.shape
    return ranks_within(k, m, 1.0 / above if above > 0 and 1.0 / above < k**m else k**m)


def ranks_within(k: int, m: int, most: float) -> Ranks:
    """Cells of a grid of k^m whose (r1 + 1) .. (rm + 1) is at most `most`, row-major: (cells, m)."""
    ranks, products = np.zeros((1, 0), dtype=np.intp), np.ones(1, dtype=np.int64)
    for _ in range(m):
        reach = np.minimum(k, (most / products).astype(np.int64))
        ends = reach.cumsum()
        last = np.arange(ends[-1]) - (ends - reach).repeat(reach)
        ranks = np.hstack([ranks.repeat(reach, axis=0), last[:, None]])
        products = products.repeat(reach) * (last + 1)
    return ranks


def in_rank_order(cells: NDArray[np.int64], values: Values, m: int, k: int) -> tuple[Ranks, Values]:
    """Flat cells (cells,), in any order, and their values, by rank: (cells, m) and (cells,)."""
    by_rank = cells.argsort()
    return ranks_of(cells[by_rank], m, k), values[by_rank]


def cells_of(ranks: Ranks, k: int) -> NDArray[np.int64]:
    """The inverse of `ranks_of`: (cells, m) -> (cells,)."""
    return ranks @ (k ** np.arange(ranks.shape[1] - 1, -1, -1))


def ranks_of(cells: NDArray[np.int64], m: int, k: int) -> Ranks:
    """Cells as flat indices into the grid of k^m, (cells,), as ranks (cells, m)."""
    return np.array(np.unravel_index(cells, (k,) * m), dtype=np.intp).T


def masked(values: Values, ratios: Values, strength: float) -> tuple[Values, float]:
    """Product times ratio ** strength, renormalised to sum 1 over the grid, and the mass the mask kept.

    values, ratios: (cells,) of the tuples that occur in the table. The sum is 0 where nothing is left.
    """
    kept_mass = float(np.add.reduce(values))
    if strength != 1.0 and len(ratios):
        ratios = (ratios / ratios.max()) ** strength  # normalised away; large powers overflow
    values = values * ratios
    total = np.add.reduce(values)
    return (values / total if total > 0 else values), kept_mass


def blurred(ranks: Ranks, values: Values, k: int, width: int) -> tuple[NDArray[np.intp], Values]:
    """The nonzero cells of the blurred grid: flat indices, rising, and values.

    The kernel [.25 .5 .25] acts along every axis and edge values are repeated: the weight that a cell would
    spread over the edge stays on the edge.
    """
    m = ranks.shape[1]
    kernel = BLUR[width]
    if SCATTER_COST * len(values) * width**m > k**m:
        return _blurred_grid(ranks, values, k, kernel)
    offsets, weights = _neighbours(m, width)
    reached = (ranks[:, None, :] + offsets).clip(0, k - 1)  # (cells, width^m, m)
    flat = reached @ (k ** np.arange(m - 1, -1, -1))
    cells, position = np.unique(flat, return_inverse=True)
    return cells, np.bincount(position.ravel(), (values[:, None] * weights).ravel())


@cache
def _neighbours(m: int, width: int) -> tuple[Ranks, Values]:
    """The kernel's offsets from a cell, (width^m, m), and its weights there, (width^m,)."""
    offsets = np.indices((width,) * m).reshape(m, -1).T - width // 2
    return offsets, BLUR[width][offsets + width // 2].prod(axis=1)


def _blurred_grid(ranks: Ranks, values: Values, k: int, kernel: Values) -> tuple[NDArray[np.intp], Values]:
    """`blurred` on the whole grid, axis by axis: cheaper where many of its cells are reached."""
    grid = np.zeros((k,) * ranks.shape[1])
    grid[tuple(ranks.T)] = values
    reach = len(kernel) // 2
    for axis in range(grid.ndim):
        line = np.pad(np.moveaxis(grid, axis, 0), [(reach, reach)] + [(0, 0)] * (grid.ndim - 1), mode="edge")
        grid = np.moveaxis(sum(w * line[i : i + k] for i, w in enumerate(kernel)), 0, axis)
    cells = np.flatnonzero(grid)
    return cells, grid.ravel()[cells]


def bins_of(values: Values, largest: float) -> NDArray[np.int64]:
    """Which of 256 equal bins from 0 to `largest` each value falls into, 0 to 255."""
    return np.minimum((values / largest * BINS).astype(np.int64), BINS - 1)


def otsu_bin(counts: NDArray[np.int64]) -> int:
    """The first bin whose split has the largest between-class variance (Otsu, 1979): counts (256,)."""
    bins = counts.nonzero()[0]  # the split after an empty bin is the one after the last full bin before it
    if len(bins) == 1:
        return 0
    held = counts[bins]
    below, mass_below = held.cumsum(), (held * bins).cumsum()
    total, mass = int(below[-1]), int(mass_below[-1])
    # n0 n1 (mu0 - mu1)^2 = (n1 S0 - n0 S1)^2 / (n0 n1): integers up to the division.
    difference = (mass_below * total - below * mass)[:-1]
    pairs = (below * (total - below))[:-1]
    return int(bins[_first_largest(difference, pairs)])


def _first_largest(difference: NDArray[np.int64], pairs: NDArray[np.int64]) -> int:
    """Where difference^2 / pairs is largest. Ties are broken on exact integers: rounding must not choose
    between equal bins.
    """
    variance = difference.astype(float) ** 2 / pairs
    close = np.flatnonzero(variance >= variance.max() * (1 - 1e-9))
    first = int(close[0])
    for bin_ in map(int, close[1:]):
        if int(difference[bin_]) ** 2 * int(pairs[first]) > int(difference[first]) ** 2 * int(pairs[bin_]):
            first = bin_
    return first


def adaptive_keep(ranks: Ranks, values: Values, k: int, width: int) -> NDArray[np.bool_]:
    """Which cells survive Otsu's threshold on the blurred grid of k^m cells: (cells,) bool.

    All survive where the stage has nothing to separate: one cell, one value only, or no cell left after it.
    """
    everything = np.ones(len(values), dtype=bool)
    if len(values) <= 1:
        # A single peak stays the largest after blurring, whatever its place, so it survives.
        return everything
    m = ranks.shape[1]
    cells, smooth = blurred(ranks, values, k, width)
    largest = smooth.max()
    if len(cells) == k**m and smooth.min() == largest:
        return everything
    bins = bins_of(smooth, largest)
    counts = np.bincount(bins, minlength=BINS)
    counts[0] += k**m - len(cells)
    flat = cells_of(ranks, k)
    own = np.searchsorted(cells, flat).clip(max=len(cells) - 1)
    # A cell is missing from `cells` if its value, or the blur's share of it, underflows to zero.
    keep = (bins[own] > otsu_bin(counts)) & (cells[own] == flat)
    return keep if keep.any() else everything


def repetitions(tokens: NDArray[np.integer], seen: NDArray[np.bool_], special: NDArray[np.bool_]) -> NDArray:
    """How many tokens of each cell repeat: tokens (cells, m), seen and special (vocab,) -> (cells,).

    A token repeats if it was seen in the context or occurs earlier in the same cell; special tokens never do.
    """
    repeats = seen[tokens]
    for later in range(1, tokens.shape[1]):
        repeats[:, later] |= (tokens[:, later : later + 1] == tokens[:, :later]).any(axis=1)
    return (repeats & ~special[tokens]).sum(axis=1)


def draw(weights: Values, uniform: float) -> int:
    """Inverse CDF: the first cell whose cumulative weight is above uniform * total, uniform in [0, 1)."""
    cumulative = weights.cumsum()
    cell = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    # Rounding may put the target on the total itself; the last cell with weight is meant then.
    return cell if cell < len(weights) else int(np.flatnonzero(weights)[-1])
