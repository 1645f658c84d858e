"""The cells of a joint that are not zero: what `dynamo.tuples` and `dynamo.joint` find in numpy.

Cells are flat indices into the grid of k^m, row-major. The products are those of the numpy path; sums are
taken in the order of the cells, so they agree up to rounding.
"""

from __future__ import annotations

import numpy as np

from dynamo.kernels.compiling import compiled

SEARCH_COST = 32  # looking up one candidate takes as long as reading this many children


@compiled
def _find(last, low, high, token):
    """Where `token` stands among the rising last[low:high], -1 if it does not."""
    end = high
    while low < high:
        middle = (low + high) >> np.uint64(1)
        if last[middle] < token:
            low = middle + np.uint64(1)
        else:
            high = middle
    return np.int64(low) if low < end and last[low] == token else np.int64(-1)


@compiled
def _extended(cells, nodes, products, head, f, first, last, vocab):
    """The cells one token longer that are tuples: each of `nodes` with those of `head` that are its children.

    Children are read and looked up in the head, or where they are many, the head's among them. Indices are
    unsigned, which spares a test for negative ones at each. The model's weights have pushed the table out of
    the caches, so each row is asked for before any is read: the processor then waits for many at a time.
    """
    k, tokens = len(head), np.uint64(vocab)
    most = np.uint64(1)
    for node in nodes:
        most += np.uint64(min(first[node + np.uint64(1)] - first[node], k))
    children, parents = np.empty(most, np.uint32), np.empty(most, np.uint32)
    rank_of = np.full(vocab, -1, np.int16)
    for rank in range(k):
        if head[rank] < vocab:
            rank_of[head[rank]] = rank
    found, asked, end = np.uint64(0), np.uint64(0), np.uint64(len(last))
    for node in nodes:
        begin = np.uint64(first[node]) - tokens
        if begin < end:
            asked += np.uint64(last[begin])
    children[0] = asked  # or the compiler would leave it out
    for i in range(len(nodes)):
        low, high = np.uint64(first[nodes[i]]) - tokens, np.uint64(first[nodes[i] + np.uint64(1)]) - tokens
        if high - low > SEARCH_COST * k:
            for rank in range(k):
                child = _find(last, low, high, head[rank])
                children[found], parents[found] = child, i
                found += np.uint64(child >= 0)
        else:
            for child in range(low, high):
                children[found], parents[found] = child, i
                found += np.uint64(rank_of[np.uint64(last[child])] >= 0)
    longer, below, times = np.empty(found, np.int64), np.empty(found, np.uint64), np.empty(found)
    for j in range(found):
        child, i = np.uint64(children[j]), np.uint64(parents[j])
        rank = np.uint64(rank_of[np.uint64(last[child])])
        longer[j], below[j], times[j] = cells[i] * k + rank, child + tokens, products[i] * f[rank]
    return longer, below, times


@compiled
def masked_joint(ids, f, first, last, ratio, vocab, strength):
    """The cells of the grid that are tuples of the table, their masked joint, and the mass that was kept.

    Cells come in the order in which they are found: first tokens by rank, later ones by token.
    ids, f (m, k); the table as `CooccurrenceTable.trie` lays it out. The joint is normalised where it is not
    all zero.
    """
    m, k = ids.shape
    cells, nodes, values = np.arange(k), ids[0].astype(np.uint64), f[0].copy()
    known = 0
    for rank in range(k):
        if ids[0, rank] < vocab:
            cells[known], nodes[known], values[known] = rank, ids[0, rank], f[0, rank]
            known += 1
    cells, nodes, values = cells[:known], nodes[:known], values[:known]
    for head in range(1, m):
        cells, nodes, values = _extended(cells, nodes, values, ids[head], f[head], first, last, vocab)
    kept, largest, total = 0.0, 1.0, 0.0
    for value in values:
        kept += value
    tokens = np.uint64(vocab)
    if strength != 1.0:  # normalised away; large powers overflow
        largest = 0.0
        for node in nodes:
            largest = max(largest, ratio[node - tokens])
    for i in range(len(cells)):
        share = ratio[nodes[i] - tokens]
        values[i] *= share if strength == 1.0 else (share / largest) ** strength
        total += values[i]
    if total > 0:
        for i in range(len(cells)):
            values[i] /= total
    return cells, values, kept


@compiled
def followers(chunk, ids, f, first, last, ratio, vocab, strength):
    """Those of ids (k,) that make a tuple of the table with `chunk` before them, and their f times the mask,
    normalised: two arrays (n,), n up to k, in the order of ids, without those of no weight.
    """
    tokens, node = np.uint64(vocab), np.uint64(chunk[0])
    none, nothing = ids[:0].copy(), f[:0].copy()
    for token in chunk:
        if token >= vocab:
            return none, nothing
    for token in chunk[1:]:
        child = _find(
            last, np.uint64(first[node]) - tokens, np.uint64(first[node + np.uint64(1)]) - tokens, token
        )
        if child < 0:
            return none, nothing
        node = np.uint64(child) + tokens
    low, high = np.uint64(first[node]) - tokens, np.uint64(first[node + np.uint64(1)]) - tokens
    found, weights, shares = np.empty(len(ids), np.int64), np.empty(len(ids)), np.empty(len(ids))
    count, largest, total = 0, 0.0, 0.0
    for rank in range(len(ids)):
        child = _find(last, low, high, ids[rank]) if ids[rank] < vocab else np.int64(-1)
        if child >= 0 and f[rank] > 0:
            found[count], weights[count], shares[count] = ids[rank], f[rank], ratio[np.uint64(child)]
            largest = max(largest, shares[count])
            count += 1
    for i in range(count):
        weights[i] *= shares[i] if strength == 1.0 else (shares[i] / largest) ** strength
        total += weights[i]
    if not total > 0:
        return none, nothing
    for i in range(count):
        weights[i] /= total
    kept = weights[:count] > 0
    return found[:count][kept], weights[:count][kept]


@compiled
def product_above(f, above):
    """The cells of the plain product whose value is above `above`, at least the largest; they rise, rows of f
    fall.
    """
    m, k = f.shape
    cells, values = np.empty(64, np.int64), np.empty(64)
    found = 0
    ranks, upto = np.zeros(m, np.int64), np.ones(m + 1)
    head = 0
    while head >= 0:
        value = upto[head] * f[head, ranks[head]] if ranks[head] < k else 0.0
        if not value > above:  # nor any later one of this head, nor a longer one
            ranks[head] = 0
            head -= 1
            if head >= 0:
                ranks[head] += 1
            continue
        upto[head + 1] = value
        if head < m - 1:
            head += 1
            continue
        if found == len(cells):
            more, larger = np.empty(2 * found, np.int64), np.empty(2 * found)
            for i in range(found):
                more[i], larger[i] = cells[i], values[i]
            cells, values = more, larger
        cell = 0
        for rank in ranks:
            cell = cell * k + rank
        cells[found], values[found] = cell, value
        found += 1
        ranks[head] += 1
    if found == 0:
        cells[0], values[0], found = 0, 1.0, 1
        for head in range(m):
            values[0] *= f[head, 0]
    return cells[:found], values[:found]
