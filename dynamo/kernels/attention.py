"""Attention of a lane's few new positions, on CPU in float32: `dynamo.cache` in one loop.

For a handful of queries the operators' calls take longer than their sums. Here queries and keys are turned
(rotary embedding), keys and values go to the cache, and each query sees its own position and all before it.
Sums are taken in any order, so results agree with torch's up to rounding; what is not a finite number stays
one.
"""

from __future__ import annotations

import numpy as np

from dynamo.kernels.compiling import compiled, compiled_for_sums

LEAST = np.float32(-80)  # exponentials of less are as good as none
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
HALF, ONE = np.float32(0.5), np.float32(1)
TAYLOR = tuple(np.float32(1 / factorial) for factorial in (24, 120, 720))
SIXTH = np.float32(1 / 6)
MANTISSA_BITS = np.int32(23)


@compiled_for_sums
def _dots(rows, query, scaling, scores):
    """scores[j] = scaling * rows[j] . query"""
    for j in range(len(scores)):
        total = np.float32(0)
        for d in range(len(query)):
            total += rows[j, d] * query[d]
        scores[j] = scaling * total


@compiled_for_sums
def _three_dots(rows, queries, scaling, scores, count):
    """The same for three queries (3, width) and the first `count` rows, each read once."""
    first, second, third = queries[0], queries[1], queries[2]
    for j in range(count):
        one, two, three = np.float32(0), np.float32(0), np.float32(0)
        for d in range(len(first)):
            one += rows[j, d] * first[d]
            two += rows[j, d] * second[d]
            three += rows[j, d] * third[d]
        scores[0, j], scores[1, j], scores[2, j] = scaling * one, scaling * two, scaling * three


@compiled_for_sums
def _exponentials(scores, powers):
    """scores become exp(score - largest); 1 / their sum, not-a-number where a score is none or infinite.

    2^n p, p a polynomial: n goes to the exponent's bits. powers: room for as many integers.
    """
    total, largest = np.float32(0), scores[0]
    for score in scores:
        total += score
    if not abs(total) < np.inf:
        return np.float32(np.nan)
    for score in scores:
        largest = score if score > largest else largest
    for j in range(len(scores)):
        x = max(scores[j] - largest, LEAST) * LOG2_E
        powers[j] = np.int32(x - HALF)  # towards zero, so x is rounded
        r = (x - np.float32(powers[j])) * LN_2
        p = (TAYLOR[2] * r + TAYLOR[1]) * r + TAYLOR[0]
        scores[j] = (((p * r + SIXTH) * r + HALF) * r + ONE) * r + ONE
    bits = scores.view(np.int32)
    for j in range(len(scores)):
        bits[j] += powers[j] << MANTISSA_BITS
    total = np.float32(0)
    for score in scores:
        total += score
    return ONE / total


@compiled_for_sums
def _weighted(rows, weights, share, out):
    """out = share * the sum of weights[j] * rows[j]"""
    out[:] = 0
    for j in range(len(weights)):
        for d in range(len(out)):
            out[d] += weights[j] * rows[j, d]
    for d in range(len(out)):
        out[d] *= share


@compiled_for_sums
def _three_weighted(rows, weights, count, shares, out):
    """The same for three rows of weights and the first `count` of `rows`, each read once; out (3, width)."""
    first, second, third = out[0], out[1], out[2]
    out[:] = 0
    for j in range(count):
        one, two, three = weights[0, j], weights[1, j], weights[2, j]
        for d in range(len(first)):
            first[d] += one * rows[j, d]
            second[d] += two * rows[j, d]
            third[d] += three * rows[j, d]
    for d in range(len(first)):
        first[d] *= shares[0]
        second[d] *= shares[1]
        third[d] *= shares[2]


@compiled
def _turned(row, cos, sin, out):
    """out = rotary embedding of a head's row; what is behind its rotary part stays as it was."""
    half = len(cos) // 2
    for d in range(half):
        out[d] = row[d] * cos[d] - row[half + d] * sin[d]
        out[half + d] = row[half + d] * cos[half + d] + row[d] * sin[half + d]
    for d in range(len(cos), len(row)):
        out[d] = row[d]


@compiled
def attend(projected, cos, sin, keys, values, start, scaling, queries):
    """Attention output of the last `queries` of the new positions, (queries, hidden), all float32.

    projected (new, 3 hidden): queries, keys, values, each by head. cos, sin (new, rotary). keys, values
    (heads, capacity, width) hold `start` positions and get the new ones.
    """
    new = len(projected)
    heads, _, width = keys.shape
    hidden, end, late = heads * width, start + new, new - queries
    scaling = np.float32(scaling)
    out, turned = np.empty((queries, hidden), np.float32), np.empty((queries, width), np.float32)
    mixed = np.empty((3, width), np.float32)
    scores, powers = np.empty((3, end), np.float32), np.empty(end, np.int32)
    for head in range(heads):
        at = head * width
        for i in range(new):
            row = projected[i]
            _turned(row[hidden + at : hidden + at + width], cos[i], sin[i], keys[head, start + i])
            values[head, start + i] = row[2 * hidden + at : 2 * hidden + at + width]
            if i >= late:
                _turned(row[at : at + width], cos[i], sin[i], turned[i - late])
        i = 0
        while i < queries:
            seen = start + late + i + 1  # by the first of these queries
            if i + 3 <= queries:
                _three_dots(keys[head], turned[i : i + 3], scaling, scores, seen + 2)
                shares = (
                    _exponentials(scores[0, :seen], powers),
                    _exponentials(scores[1, : seen + 1], powers),
                    _exponentials(scores[2, : seen + 2], powers),
                )
                scores[0, seen], scores[0, seen + 1], scores[1, seen + 1] = 0, 0, 0
                _three_weighted(values[head], scores, seen + 2, shares, mixed)
                out[i : i + 3, at : at + width] = mixed
                i += 3
            else:
                _dots(keys[head], turned[i], scaling, scores[0, :seen])
                share = _exponentials(scores[0, :seen], powers)
                _weighted(values[head], scores[0, :seen], share, mixed[0])
                out[i, at : at + width] = mixed[0]
                i += 1
    return out
