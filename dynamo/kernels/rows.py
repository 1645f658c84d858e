"""Attention of one new position in each of many rows, every row over its own length only.

Rows of a batch differ in length; a library's operator reads all of them up to the longest. Keys and values of
a group are read once for all its query heads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynamo.kernels.compiling import compiled_on_all_cores


@compiled_on_all_cores
def attend_rows(query, keys, values, lengths, scale, out):
    """out (rows, heads, dim) of query (rows, heads, dim), keys and values (rows, kv_heads, capacity, dim);
    row r sees its first lengths[r] positions. All float32."""
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # A task for each pair, not for each row: a few long rows are then shared out, too.
    for task in prange(rows * kv_heads):
        row, kv_head = task // kv_heads, task % kv_heads
        length = lengths[row]
        scores = np.empty((group, length), np.float32)  # each key is read once for the whole group
        for position in range(length):
            key = keys[row, kv_head, position]
            for head in range(group):
                asked = query[row, kv_head * group + head]
                total = np.float32(0)
                for i in range(dim):
                    total += asked[i] * key[i]
                scores[head, position] = total * scale
        for head in range(group):
            most = scores[head].max()  # so that no exponential overflows
            total = np.float32(0)
            for position in range(length):
                weight = np.exp(scores[head, position] - most)
                scores[head, position] = weight
                total += weight
            mixed = out[row, kv_head * group + head]
            mixed[:] = np.float32(0)  # (dim,), in place: `out` comes uninitialised
            for position in range(length):
                weight = scores[head, position] / total
                value = values[row, kv_head, position]
                for i in range(dim):
                    mixed[i] += weight * value[i]
