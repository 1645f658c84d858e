"""Attention of one new position in each of many rows, every row over its own length only.

Rows of a batch differ in length; a library's operator reads all of them up to the longest. Keys and values of
a group are read for three of its query heads at a time, of 16 bits each where the cache holds such.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynamo.kernels.attention import BEHIND, mix
from dynamo.kernels.compiling import compiled_on_all_cores


@compiled_on_all_cores
def attend_rows(query, keys, values, new_keys, new_values, lengths, scale, out):
    """out (rows, heads, dim) of query (rows, heads, dim), keys and values (rows, kv_heads, capacity, dim);
    row r sees its first lengths[r] positions and the new one, (rows, kv_heads, 1, dim), put behind them.
    float32; keys and values also the bits of half-precision numbers in uint16."""
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # A task for each pair, not for each row: a few long rows are then shared out, too.
    for task in prange(rows * kv_heads):
        row, kv_head = task // kv_heads, task % kv_heads
        length = lengths[row] + 1
        for d in range(dim):
            keys[row, kv_head, length - 1, d] = new_keys[row, kv_head, 0, d]
            values[row, kv_head, length - 1, d] = new_values[row, kv_head, 0, d]
        own_keys, own_values = keys[row, kv_head, :length], values[row, kv_head, :length]
        three, scores = np.empty((2, 3, dim), np.float32), np.empty((3, length + BEHIND), np.float32)
        powers = np.empty(length, np.int32)
        for first in range(0, group, 3):
            some, at = min(3, group - first), kv_head * group + first
            for j in range(3):
                three[0, j] = query[row, at + min(j, some - 1)]
            three[0] *= scale
            mix(three, own_keys, own_values, some, 0, scores, powers)
            out[row, at : at + some] = three[1, :some]
