"""The top k of each head's logits: `dynamo.sampling.candidates` in one loop."""

from __future__ import annotations

import math

import numpy as np

from dynamo.kernels.compiling import compiled

NAN, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # as `_rank_key` orders them
LEAST = np.int32(-0x7FFFFFFF)
LAST = np.int64(0x7FFFFFFF)
BLOCKS = 256  # the largest logits of so many blocks tell where the top k begin, for k up to as many
FEW = 512  # of so many, counting who is ahead of each is faster than putting one by one in its place


@compiled
def _rank_key(bits):
    """Integers that are ordered as the floats of these bits are, not-a-number above all."""
    size = bits & np.int32(0x7FFFFFFF)  # a float is a sign and a magnitude, whose bits rise with it
    key = size if bits >= 0 else -size
    return NAN if size > INFINITE else key


@compiled
def _floor(largest, k):
    """The k-th largest of some blocks' largest keys, by halving: no less than k keys are not below it."""
    if len(largest) < k:
        return LEAST
    low, high = np.int64(LEAST), np.int64(NAN)  # 64 bits, or the sum of both would overflow
    while low < high:
        middle = (low + high + 1) >> 1
        reached = 0
        for one in largest:
            reached += one >= middle
        low, high = (middle, high) if reached >= k else (low, middle - 1)
    return np.int32(low)


@compiled
def _count_ranks(order, best):
    """The first len(best) places by falling `order`, each counting those ahead of it."""
    for i in range(len(order)):
        ahead = 0  # no two are equal, as each holds its place: ranks are distinct
        for other in order:
            ahead += other > order[i]
        if ahead < len(best):
            best[ahead] = LAST - (order[i] & LAST)


@compiled
def _insert(order, best):
    """The same, one by one into the largest so far."""
    held, most = 0, len(best)
    for one in order:
        if held == most:
            if one <= best[held - 1]:
                continue
            held -= 1
        at = held
        while at > 0 and best[at - 1] < one:
            best[at] = best[at - 1]
            at -= 1
        best[at] = one
        held += 1
    for rank in range(most):
        best[rank] = LAST - (best[rank] & LAST)


@compiled
def top_k(logits, k, temperature):
    """Ids and softmax of the k largest float32 logits of each row, ties to the lower id: (heads, vocab) ->
    (heads, k) twice; and whether every row's largest is finite.

    Where a branch depends on the logits the processor guesses wrong; so most of this is counting.
    """
    heads, vocab = logits.shape
    ids, f = np.empty((heads, k), np.int64), np.empty((heads, k))
    # One place more, as each candidate is written before it is known to stay.
    keys, order = np.empty(vocab, np.int32), np.empty(vocab + 1, np.int64)
    width = -(-vocab // BLOCKS)
    largest = np.empty(-(-vocab // width), np.int32)
    finite = True
    for head in range(heads):
        row = logits[head]
        bits = row.view(np.int32)
        for i in range(vocab):
            keys[i] = _rank_key(bits[i])
        for block in range(len(largest)):
            largest[block] = LEAST
            for key in keys[block * width : (block + 1) * width]:
                largest[block] = max(largest[block], key)
        floor = _floor(largest, k)  # most blocks lie below it and are not looked at again
        found = 0
        for block in range(len(largest)):
            if largest[block] >= floor:
                for i in range(block * width, min((block + 1) * width, vocab)):
                    order[found] = (np.int64(keys[i]) << 32) | (LAST - i)  # by key, then by place
                    found += keys[i] >= floor
        if found <= FEW:
            _count_ranks(order[:found], ids[head])
        else:
            _insert(order[:found], ids[head])
        finite = finite and abs(keys[ids[head, 0]]) < INFINITE
        # Softmax over the k survivors in float64, relative to the first, which is the largest.
        total, first = 0.0, np.float64(row[ids[head, 0]])
        for rank in range(k):
            f[head, rank] = math.exp((np.float64(row[ids[head, rank]]) - first) / temperature)
            total += f[head, rank]
        for rank in range(k):
            f[head, rank] /= total
    return ids, f, finite
