"""The top k of each head's logits: `dynamo.candidates` in one loop."""

from __future__ import annotations

import math

import numpy as np

from dynamo.kernels.compiling import compiled

NAN, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # as `_rank_key` orders them
BLOCKS = 128  # a head's logits are looked at in about so many pieces


@compiled
def _rank_key(bits):
    """Integers that are ordered as the floats of these bits are, not-a-number above all."""
    size = bits & np.int32(0x7FFFFFFF)
    key = size if bits >= 0 else -size
    return NAN if size > INFINITE else key


@compiled
def _insert(keys, places, held, key, place):
    """Into the largest so far, which fall: `key` behind those that it equals. How many are held then."""
    if held == len(keys):
        if key <= keys[held - 1]:
            return held
        held -= 1
    at = held
    while at > 0 and keys[at - 1] < key:
        keys[at], places[at] = keys[at - 1], places[at - 1]
        at -= 1
    keys[at], places[at] = key, place
    return held + 1


@compiled
def top_k(logits, k, temperature):
    """Ids and softmax of the k largest float32 logits of each row, ties to the lower id: (heads, vocab) ->
    (heads, k) twice; and whether every row's largest is finite.
    """
    heads, vocab = logits.shape
    ids, f = np.empty((heads, k), np.int64), np.empty((heads, k))
    block = max(vocab // BLOCKS, 1)
    blocks = (vocab + block - 1) // block
    largest = np.empty(blocks, np.int32)
    keys, places = np.empty(k, np.int32), np.empty(k, np.int64)
    finite = True
    for head in range(heads):
        row = logits[head]
        bits = row.view(np.int32)
        for piece in range(blocks):
            most = np.int32(-0x7FFFFFFF)
            for i in range(piece * block, min((piece + 1) * block, vocab)):
                most = max(most, _rank_key(bits[i]))
            largest[piece] = most
        floor = np.int32(-0x7FFFFFFF)
        if blocks >= k:  # k pieces have a largest of at least `floor`, so no smaller one is among the top k
            held = 0
            for piece in range(blocks):
                held = _insert(keys, places, held, largest[piece], piece)
            floor = keys[k - 1]
        held = 0
        for piece in range(blocks):
            if largest[piece] < floor:
                continue
            for i in range(piece * block, min((piece + 1) * block, vocab)):
                key = _rank_key(bits[i])
                if key >= floor:
                    held = _insert(keys, places, held, key, i)
        finite = finite and abs(keys[0]) < INFINITE
        total, first = 0.0, np.float64(row[places[0]])
        for rank in range(k):
            ids[head, rank] = places[rank]
            f[head, rank] = math.exp((np.float64(row[places[rank]]) - first) / temperature)
            total += f[head, rank]
        for rank in range(k):
            f[head, rank] /= total
    return ids, f, finite
