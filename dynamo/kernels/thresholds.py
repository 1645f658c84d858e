"""What becomes of a joint's cells: thresholds, penalty, draw, as `dynamo.sampling.joint` states them in
numpy.

Cells are flat indices into the grid of k^m, row-major; every other cell of the grid is zero.
"""

from __future__ import annotations

import numpy as np

from dynamo.kernels.compiling import compiled, merged

BINS = 256
OK, MASK, KEPT_MASS, THRESHOLD, PENALTY, CROWDED = range(6)
FEW = 64  # so many are put in order one by one
CROWD = 2**16  # blurring more cells than these one by one takes longer than blurring the grid
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
EMPTY = np.int64(-1)
SPREAD = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _slot(keys, cell):
    """Where a cell stands in the hash table `keys`, or would."""
    mask = len(keys) - 1
    at = np.int64((np.uint64(cell) * SPREAD) >> HALF) & mask  # neighbouring cells go far apart
    while keys[at] != cell and keys[at] != EMPTY:
        at = (at + 1) & mask
    return at


@compiled
def _reach(cell, value, m, k, width, cells, values):
    """Where the blur takes a cell's value: fills `cells` and the `values` there; those over an edge stay."""
    # An axis at a time, [.25 .5 .25] each, the first rank first: 1, width, .. width^m places.
    cells[0], values[0] = 0, value
    count, stride = 1, k**m
    for _ in range(m):
        stride //= k
        rank = cell // stride
        cell -= rank * stride
        for i in range(count):
            if width == 3:
                # Edge values are repeated: what would leave the grid stays on its last cell.
                cells[count + i], values[count + i] = cells[i] + max(rank - 1, 0) * stride, 0.25 * values[i]
                cells[2 * count + i] = cells[i] + min(rank + 1, k - 1) * stride
                values[2 * count + i] = 0.25 * values[i]
                values[i] *= 0.5
            cells[i] += rank * stride
        count *= width
    return count


@compiled
def _more_between(difference, pairs, other, others):
    """Whether difference^2 / pairs > other^2 / others, on integers: rounding may not choose."""
    left, right = _words(difference, others), _words(other, pairs)
    for word in range(3):
        if left[word] != right[word]:
            return left[word] > right[word]
    return False


@compiled
def _words(number, factor):
    """number^2 * factor as three words of 64 bits, the highest first."""
    size = np.uint64(abs(number))
    high, low = _times(size, size)
    lower_carry, lowest = _times(low, np.uint64(factor))
    highest, middle = _times(high, np.uint64(factor))
    middle += lower_carry
    highest += np.uint64(middle < lower_carry)
    return highest, middle, lowest


@compiled
def _times(a, b):
    """The product of two words, as two."""
    low = (a & LOW) * (b & LOW)
    across = (a >> HALF) * (b & LOW) + (low >> HALF)
    back = (a & LOW) * (b >> HALF) + (across & LOW)
    return (a >> HALF) * (b >> HALF) + (across >> HALF) + (back >> HALF), (back << HALF) | (low & LOW)


@compiled
def otsu_bin(counts):
    """As `joint.otsu_bin`: the first bin whose split has the largest between-class variance."""
    total, mass = np.int64(0), np.int64(0)
    for bin_ in range(BINS):
        total += counts[bin_]
        mass += counts[bin_] * bin_
    best, largest, difference, pairs = 0, -1.0, np.int64(0), np.int64(1)
    below, mass_below = np.int64(0), np.int64(0)
    for bin_ in range(BINS):
        if counts[bin_] == 0:
            continue
        below += counts[bin_]
        mass_below += counts[bin_] * bin_
        if below == total:
            break
        d, n = mass_below * total - below * mass, below * (total - below)
        variance = np.float64(d) ** 2 / n
        # Rational comparison is exact and slow, so it decides only what floats leave open.
        near = variance >= largest * (1 - 1e-9)
        if near and (variance > largest * (1 + 1e-9) or _more_between(d, n, difference, pairs)):
            best, largest, difference, pairs = bin_, variance, d, n
    return best


@compiled
def _put_in_order(cells, values):
    """Cells rise from here on."""
    if len(cells) > FEW:
        by_rank = np.argsort(cells)
        cells[:], values[:] = cells[by_rank], values[by_rank]
        return
    for i in range(1, len(cells)):
        cell, value, at = cells[i], values[i], i
        while at > 0 and cells[at - 1] > cell:
            cells[at], values[at] = cells[at - 1], values[at - 1]
            at -= 1
        cells[at], values[at] = cell, value


@merged
def _blurred_near(cells, values, floor, heavy, m, k, width):
    """A hash table of the blurred cells around the `heavy` values of at least `floor`: keys, sums."""
    around = width**m
    size = 64
    while size < 2 * heavy * around:  # at most half full, so that a search is short
        size *= 2
    keys, sums = np.full(size, EMPTY), np.zeros(size)
    reached, shares = np.empty(around, np.int64), np.empty(around)
    near = np.zeros(k, np.bool_)  # first ranks from which a value may reach a cell of the table
    tail = k ** (m - 1)
    for i in range(len(cells)):
        if values[i] >= floor:
            rank = cells[i] // tail
            near[max(rank - 2, 0) : rank + 3] = True  # a heavy value reaches 1 rank, and so does a light one
            for j in range(_reach(cells[i], values[i], m, k, width, reached, shares)):
                keys[_slot(keys, reached[j])] = reached[j]
    # Values of every size add to the sums, but only where a heavy one has made a place.
    for i in range(len(cells)):
        if near[cells[i] // tail]:
            for j in range(_reach(cells[i], values[i], m, k, width, reached, shares)):
                slot = _slot(keys, reached[j])
                if keys[slot] >= 0:
                    sums[slot] += shares[j]
    return keys, sums


@compiled
def adaptive_keep(cells, values, m, k, width):
    """As `joint.adaptive_keep`, without the cells whose blurred value is in the lowest bin for certain.

    A blurred value is no more than the largest around it, and the largest blurred one no less than the
    largest value's own share: only the surroundings of a value of 1 / 256 of that can leave the lowest bin.
    The second result is false where these are so many that the whole grid is the better place for it.
    """
    keep = np.ones(len(cells), np.bool_)
    if len(cells) <= 1:
        return keep, True
    largest = 0.0
    for value in values:
        largest = max(largest, value)
    floor = largest / BINS * (1 - 1e-6) * (0.5**m if width == 3 else 1.0)
    heavy = 0
    for value in values:
        heavy += value >= floor
    if heavy * width**m > CROWD:
        return keep, False
    keys, sums = _blurred_near(cells, values, floor, heavy, m, k, width)
    largest, least, inside = 0.0, np.inf, 0
    for slot in range(len(keys)):
        if keys[slot] >= 0:
            inside += 1
            largest, least = max(largest, sums[slot]), min(least, sums[slot])
    if inside == k**m and least == largest:  # one value only: nothing to split
        return keep, True
    counts = np.zeros(BINS, np.int64)
    counts[0] = k**m - inside  # Otsu counts the zeros of the grid, and whatever is below the floor
    for slot in range(len(keys)):
        if keys[slot] >= 0:
            counts[min(np.int64(sums[slot] / largest * BINS), BINS - 1)] += 1
    threshold = otsu_bin(counts)
    kept = 0
    for i in range(len(cells)):
        slot = _slot(keys, cells[i])
        keep[i] = keys[slot] >= 0 and min(np.int64(sums[slot] / largest * BINS), BINS - 1) > threshold
        kept += keep[i]
    if kept == 0:
        keep[:] = True
    return keep, True


@compiled
def penalised(ranks, values, ids, seen, special, penalty):
    """Values (cells,) of ranks (cells, m), divided by the penalty once for each repeating token."""
    weights = np.empty(len(values))
    for i in range(len(values)):
        divisor = 1.0
        for head in range(ids.shape[0]):
            token = ids[head, ranks[i, head]]
            repeats = seen[token]
            for earlier in range(head):
                repeats |= ids[earlier, ranks[i, earlier]] == token
            if repeats and not special[token]:
                divisor *= penalty
        weights[i] = values[i] / divisor
    return weights


@compiled
def survivors(cells, values, ids, kept, limits, stages, repeats):
    """What becomes of an order's cells: (outcome, best value, ranks (cells, m), weights (cells,) by rank).

    They may come in any order. limits: what a value must be above, and the least `kept` mass; stages: whether
    there is an adaptive one, whether it is the first, and the blur's width; repeats: which tokens were seen,
    which are special, and the penalty. The outcome is OK, the reason to back off, or CROWDED: the blur is
    then better done on the whole grid.
    """
    (limit, least_kept), (adaptive, first, width), (seen, special, penalty) = limits, stages, repeats
    m, k = ids.shape
    none = np.empty((0, m), np.int64)
    # One place more, as each is written before it is known to stay: a comparison is cheaper than a branch.
    above, left, found = np.empty(len(cells) + 1, np.int64), np.empty(len(cells) + 1), 0
    for i in range(len(cells)):
        above[found], left[found] = cells[i], values[i]
        found += values[i] > limit
    best = 0.0  # of a refused order, too: records show by how much it missed
    for value in left[:found] if found > 0 else values:
        best = max(best, value)
    if best <= 0 or kept < least_kept:
        return MASK if best <= 0 else KEPT_MASS, best, none, values[:0]
    done = True
    if adaptive and first:
        cells, values = cells.copy(), values.copy()
    else:
        cells, values = above[:found], left[:found]
    _put_in_order(cells, values)
    if adaptive:
        keep, done = adaptive_keep(cells, values, m, k, width)
        for i in range(len(cells)):
            keep[i] &= values[i] > limit
        cells, values = cells[keep], values[keep]
    if len(cells) == 0 or not done:
        return THRESHOLD if done else CROWDED, best, none, values[:0]
    ranks = np.empty((len(cells), m), np.int64)  # a flat cell's digits to the base k
    for i in range(len(cells)):
        cell = cells[i]
        for head in range(m - 1, -1, -1):
            ranks[i, head] = cell % k
            cell //= k
    weights = penalised(ranks, values, ids, seen, special, penalty)
    # The paper tests after the penalty: a cell that repeats tokens may fall below the threshold again.
    heaviest = 0.0
    for weight in weights:
        heaviest = max(heaviest, weight)
    if heaviest > limit:
        return OK, best, ranks, weights
    return PENALTY, heaviest, none, weights


@compiled
def next_token(f, ids, chunk, seen, special, penalty):
    """Probabilities f (n,) of ids (n,) that may follow a chunk, divided by the penalty where they repeat."""
    weights = f.copy()
    for rank in range(len(ids)):
        repeats = seen[ids[rank]]
        for token in chunk:
            repeats |= ids[rank] == token
        if repeats and not special[ids[rank]]:
            weights[rank] /= penalty
    return weights


@compiled
def drawn(weights, uniform):
    """As `joint.draw`: the first cell whose cumulative weight is above uniform * total."""
    total = 0.0
    for weight in weights:
        total += weight
    target, upto, last = uniform * total, 0.0, 0
    for cell in range(len(weights)):
        upto += weights[cell]
        if weights[cell] > 0:  # where rounding leaves the sum below the target, the last with a weight
            last = cell
        if upto > target:
            return cell
    return last
