"""The cells of a joint that are not zero: what `dynamo.cooccurrence.trie` and `dynamo.sampling.joint` find
in numpy.

Cells are flat indices into the grid of k^m, row-major. The products are those of the numpy path; sums are
taken in the order of the cells, so they agree up to rounding.
"""

from __future__ import annotations

import numpy as np

from dynamo.kernels.compiling import compiled

CACHE_LINE = 64  # bytes
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
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
def _children_among(head, nodes, first, last, vocab):
    """Which children of `nodes` end in a token of `head`: their places, and the places of their parents.

    Children are read and looked up in the head, or where they are many, the head's among them. Indices are
    unsigned, which spares a test for negative ones at each. The model's weights have pushed the table out of
    the caches, so all that will be read is asked for before: the processor then waits for many lines at once.
    """
    k, tokens, line = len(head), np.uint64(vocab), np.uint64(CACHE_LINE // last.itemsize)
    most, asked = np.uint64(1), np.uint64(0)
    for node in nodes:
        low, high = np.uint64(first[node]) - tokens, np.uint64(first[node + np.uint64(1)]) - tokens
        most += min(high - low, np.uint64(k))
        if high - low <= SEARCH_COST * k:
            while low < high:
                asked += np.uint64(last[low])
                low += line
    found = np.empty(most, np.uint64)
    found[0] = asked  # or the compiler would leave it out
    rank_of = np.full(vocab, -1, np.int16)  # by token; loops see no more than 256 candidates a head
    for rank in range(k):
        if head[rank] < vocab:  # the model's vocabulary may be padded beyond the table's
            rank_of[head[rank]] = rank
    count = np.uint64(0)
    for i in range(len(nodes)):
        low, high = np.uint64(first[nodes[i]]) - tokens, np.uint64(first[nodes[i] + np.uint64(1)]) - tokens
        # Parent and child in one word. Each is written, and a hit only moves the place of the next: whether a
        # token is among the candidates is nothing that the processor could guess.
        parent = np.uint64(i) << HALF
        if high - low > SEARCH_COST * k:
            for rank in range(k):
                child = _find(last, low, high, head[rank])
                found[count] = parent | np.uint64(child)
                count += np.uint64(child >= 0)
        else:
            for child in range(low, high):
                found[count] = parent | child
                count += np.uint64(rank_of[np.uint64(last[child])] >= 0)
    return found[:count], rank_of


@compiled
def masked_joint(ids, f, first, last, counts, rarity, strength):
    """The cells of the grid that are tuples of the table, their masked joint, and the mass that was kept.

    Cells come in the order in which they are found: first tokens by rank, later ones by token.
    ids, f (m, k); the table as `CooccurrenceTable.trie` lays it out. M of a tuple is its count times its
    tokens' rarity, up to a factor of all tuples of its order. The joint is normalised where it is not all
    zero.
    """
    m, k = ids.shape
    vocab = len(rarity)
    tokens = np.uint64(vocab)
    # Of the tuples so far, (known,) each: cell, node of the trie, product of f, product of rarities.
    cells, nodes, values, shares = np.arange(k), np.empty(k, np.uint64), np.empty(k), np.empty(k)
    known = 0
    for rank in range(k):
        if ids[0, rank] < vocab:
            cells[known], nodes[known] = rank, ids[0, rank]  # the first nodes are the tokens themselves
            values[known], shares[known] = f[0, rank], rarity[ids[0, rank]]
            known += 1
    cells, nodes, values, shares = cells[:known], nodes[:known], values[:known], shares[:known]
    for head in range(1, m - 1):
        found, rank_of = _children_among(ids[head], nodes, first, last, vocab)
        size = len(found)
        longer, below, times, rare = (
            np.empty(size, np.int64),
            np.empty(size, np.uint64),
            np.empty(size),
            np.empty(size),
        )
        for j in range(size):
            child, parent = found[j] & LOW, found[j] >> HALF
            token = np.uint64(last[child])
            rank = np.int64(rank_of[token])
            longer[j], below[j] = cells[parent] * k + rank, child + tokens  # single tokens come first
            times[j], rare[j] = values[parent] * f[head, rank], shares[parent] * rarity[token]
        cells, nodes, values, shares = longer, below, times, rare
    # The last head has a loop of its own: only whole tuples have counts to read and no children to look for.
    found, rank_of = _children_among(ids[m - 1], nodes, first, last, vocab)
    size = len(found)
    complete, joint, mask = np.empty(size, np.int64), np.empty(size), np.empty(size)
    kept, largest, total = 0.0, 0.0, 0.0
    for j in range(size):
        child, parent = found[j] & LOW, found[j] >> HALF
        token = np.uint64(last[child])
        rank = np.int64(rank_of[token])
        complete[j], joint[j] = cells[parent] * k + rank, values[parent] * f[m - 1, rank]
        mask[j] = shares[parent] * rarity[token] * counts[child]
        kept += joint[j]
        largest = max(largest, mask[j])
    if strength != 1.0:  # normalised away; large powers overflow
        for j in range(size):
            mask[j] = (mask[j] / largest) ** strength
    for j in range(size):
        joint[j] *= mask[j]
        total += joint[j]
    scale = 1.0 / total if total > 0 else 1.0
    for j in range(size):
        joint[j] *= scale
    return complete, joint, kept


@compiled
def next_candidates(chunk, ids, f, first, last, counts, rarity, strength):
    """Those of ids (k,) that make a tuple of the table with `chunk` before them, and their f times the mask,
    normalised: two arrays (n,), n up to k, in the order of ids, without those of no weight.
    """
    vocab = len(rarity)
    tokens, node = np.uint64(vocab), np.uint64(chunk[0])
    none, nothing = ids[:0].copy(), f[:0].copy()
    for token in chunk:
        if token >= vocab:
            return none, nothing
    # Down the trie along the chunk; `node`'s children then are all that may follow it.
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
        if child >= 0 and f[rank] > 0:  # f underflows at low temperatures
            found[count], weights[count] = ids[rank], f[rank]
            shares[count] = counts[np.uint64(child)] * rarity[ids[rank]]
            largest = max(largest, shares[count])
            count += 1
    for i in range(count):
        weights[i] *= shares[i] if strength == 1.0 else (shares[i] / largest) ** strength
        total += weights[i]
    if not total > 0:
        return none, nothing
    for i in range(count):
        weights[i] /= total
    kept = weights[:count] > 0  # large powers underflow too
    return found[:count][kept], weights[:count][kept]


@compiled
def product_above(f, above):
    """The cells of the plain product whose value is above `above`, at least the largest; they rise, rows of f
    fall.
    """
    m, k = f.shape
    cells, values = np.empty(64, np.int64), np.empty(64)
    found = 0
    ranks, upto = np.zeros(m, np.int64), np.ones(m + 1)  # upto[i]: the product of f of the first i heads
    head = 0
    # Depth first: no factor is above 1, so a product that fell below `above` ends all that begin with it.
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
        if found == len(cells):  # at most 1 / above cells are above it, mostly few: room doubles
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
