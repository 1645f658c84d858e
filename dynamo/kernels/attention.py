"""Attention of a few query rows over cached keys and values on CPU (`dynamo.decoding.attention` in loops).

Queries and keys are rotated (rotary embedding), keys and values go to the cache, and each query sees its own
position and all before it. Keys and values are read once for up to three rows, of 16 bits each where the
cache holds such. Registers have 512 bits here; where they are shorter, the compiler takes two.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from dynamo.kernels.compiling import compiled, compiled_for_sums
from dynamo.kernels.exponentials import exponentials
from dynamo.kernels.vectors import (
    added,
    float_everywhere,
    four_sums,
    no_floats,
    put,
    sixteen_floats,
    sixteen_halves,
)

ZERO = np.float32(0)
REGISTER = 16  # float32 numbers
BEHIND = 3  # places behind scores, which are written by fours


@intrinsic
def _wide(_, weight):
    """A weight as float32: as it is, or widened from the bits of a half-precision number in a uint16."""
    if weight == types.float32:
        return types.float32(weight), lambda context, builder, signature, values: values[0]
    if weight == types.uint16:
        return types.float32(weight), lambda context, builder, signature, values: builder.fpext(
            builder.bitcast(values[0], ir.HalfType()), ir.FloatType()
        )


def sixteen(some, at):
    """Numbers from a place on, float32 or the bits of half-precision ones, as float32."""


@overload(sixteen, inline="always")
def _sixteen(some, at):
    if some.dtype == types.uint16:
        return lambda some, at: sixteen_halves(some, at)
    return lambda some, at: sixteen_floats(some, at)


@compiled_for_sums
def _score_one(x, keys, scores):
    """scores[0] = x[0] . keys (count, width), four at a time: the last ones perhaps again, behind them."""
    count, width = keys.shape
    last = (count - 1) * width
    for at in range(0, count, 4):
        k0 = at * width
        k1, k2, k3 = min(k0 + width, last), min(k0 + 2 * width, last), min(k0 + 3 * width, last)
        a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
        for i in range(0, width, REGISTER):
            v = sixteen_floats(x, i)
            a, b = added(a, sixteen(keys, k0 + i), v), added(b, sixteen(keys, k1 + i), v)
            c, d = added(c, sixteen(keys, k2 + i), v), added(d, sixteen(keys, k3 + i), v)
        put(scores, at, four_sums(a, b, c, d))


@compiled_for_sums
def _score_three(x, keys, scores):
    """The same for three rows; keys are read once."""
    (count, width), room = keys.shape, scores.shape[1]
    last = (count - 1) * width
    for at in range(0, count, 4):
        k0 = at * width
        k1, k2, k3 = min(k0 + width, last), min(k0 + 2 * width, last), min(k0 + 3 * width, last)
        a0, b0, c0, d0 = no_floats(), no_floats(), no_floats(), no_floats()
        a1, b1, c1, d1 = no_floats(), no_floats(), no_floats(), no_floats()
        a2, b2, c2, d2 = no_floats(), no_floats(), no_floats(), no_floats()
        for i in range(0, width, REGISTER):
            a, b, c, d = (
                sixteen(keys, k0 + i),
                sixteen(keys, k1 + i),
                sixteen(keys, k2 + i),
                sixteen(keys, k3 + i),
            )
            v = sixteen_floats(x, i)
            a0, b0, c0, d0 = added(a0, a, v), added(b0, b, v), added(c0, c, v), added(d0, d, v)
            v = sixteen_floats(x, width + i)
            a1, b1, c1, d1 = added(a1, a, v), added(b1, b, v), added(c1, c, v), added(d1, d, v)
            v = sixteen_floats(x, 2 * width + i)
            a2, b2, c2, d2 = added(a2, a, v), added(b2, b, v), added(c2, c, v), added(d2, d, v)
        put(scores, at, four_sums(a0, b0, c0, d0))
        put(scores, room + at, four_sums(a1, b1, c1, d1))
        put(scores, 2 * room + at, four_sums(a2, b2, c2, d2))


@compiled_for_sums
def _mix_one(weights, values, out):
    """out[0] = weights[0, :count] @ values (count, width), four registers of them side by side."""
    count, width = values.shape
    for i in range(0, width - 3 * REGISTER, 4 * REGISTER):
        a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
        for j in range(count):
            v, w = j * width + i, float_everywhere(weights, j)
            a, b = added(a, sixteen(values, v), w), added(b, sixteen(values, v + REGISTER), w)
            c = added(c, sixteen(values, v + 2 * REGISTER), w)
            d = added(d, sixteen(values, v + 3 * REGISTER), w)
        put(out, i, a)
        put(out, i + REGISTER, b)
        put(out, i + 2 * REGISTER, c)
        put(out, i + 3 * REGISTER, d)
    for i in range(width // (4 * REGISTER) * 4 * REGISTER, width, REGISTER):
        a = no_floats()
        for j in range(count):
            a = added(a, sixteen(values, j * width + i), float_everywhere(weights, j))
        put(out, i, a)


@compiled_for_sums
def _mix_three(weights, values, out):
    """The same for three rows; values are read once."""
    (count, width), room = values.shape, weights.shape[1]
    for i in range(0, width - 3 * REGISTER, 4 * REGISTER):
        a0, b0, c0, d0 = no_floats(), no_floats(), no_floats(), no_floats()
        a1, b1, c1, d1 = no_floats(), no_floats(), no_floats(), no_floats()
        a2, b2, c2, d2 = no_floats(), no_floats(), no_floats(), no_floats()
        for j in range(count):
            v = j * width + i
            a, b = sixteen(values, v), sixteen(values, v + REGISTER)
            c, d = sixteen(values, v + 2 * REGISTER), sixteen(values, v + 3 * REGISTER)
            w = float_everywhere(weights, j)
            a0, b0, c0, d0 = added(a0, a, w), added(b0, b, w), added(c0, c, w), added(d0, d, w)
            w = float_everywhere(weights, room + j)
            a1, b1, c1, d1 = added(a1, a, w), added(b1, b, w), added(c1, c, w), added(d1, d, w)
            w = float_everywhere(weights, 2 * room + j)
            a2, b2, c2, d2 = added(a2, a, w), added(b2, b, w), added(c2, c, w), added(d2, d, w)
        for place, found in ((0, a0), (16, b0), (32, c0), (48, d0)):
            put(out, i + place, found)
        for place, found in ((0, a1), (16, b1), (32, c1), (48, d1)):
            put(out, width + i + place, found)
        for place, found in ((0, a2), (16, b2), (32, c2), (48, d2)):
            put(out, 2 * width + i + place, found)
    for i in range(width // (4 * REGISTER) * 4 * REGISTER, width, REGISTER):
        a0, a1, a2 = no_floats(), no_floats(), no_floats()
        for j in range(count):
            v = sixteen(values, j * width + i)
            a0 = added(a0, v, float_everywhere(weights, j))
            a1 = added(a1, v, float_everywhere(weights, room + j))
            a2 = added(a2, v, float_everywhere(weights, 2 * room + j))
        put(out, i, a0)
        put(out, width + i, a1)
        put(out, 2 * width + i, a2)


@compiled_for_sums
def _score_any(x, keys, scores):
    """Of as many rows of x as there are, of any width."""
    for r in range(len(x)):
        for j in range(len(keys)):
            total = ZERO
            for i in range(x.shape[1]):
                total += _wide(keys[j, i]) * x[r, i]
            scores[r, j] = total


@compiled_for_sums
def _mix_any(weights, values, out):
    out[:] = 0
    for r in range(len(out)):
        for j in range(len(values)):
            for i in range(out.shape[1]):
                out[r, i] += weights[r, j] * _wide(values[j, i])


@compiled
def mix(three, keys, values, some, more, scores, powers):
    """Attention of the first `some` of three rows: from scaled queries, three[0], to mixed values, three[1],
    (3, width) each. The last row sees all of keys and values (count, width), each before it `more` fewer
    positions. scores (3, count + BEHIND) and powers (count,) are room."""
    count, whole = len(keys), keys.shape[1] % REGISTER == 0
    if not whole:
        _score_any(three[0, :some], keys, scores)
    elif some == 1:
        _score_one(three[0], keys, scores)
    else:
        _score_three(three[0], keys, scores)
    for j in range(some):
        seen = count - more * (some - 1 - j)
        scores[j, seen:count] = 0
        three[0, j, 0] = exponentials(scores[j, :seen], powers)
    if not whole:
        _mix_any(scores, values, three[1, :some])
    elif some == 1:
        _mix_one(scores, values, three[1])
    else:
        _mix_three(scores, values, three[1])
    for j in range(some):
        three[1, j] *= three[0, j, 0]  # the softmax's division, on `width` numbers instead of one a position


@compiled
def _rotate(row, cos, sin, out):
    """out = rotary embedding of a head's row; what is behind its rotary part stays as it was."""
    half = len(cos) // 2
    for d in range(half):
        out[d] = row[d] * cos[d] - row[half + d] * sin[d]
        out[half + d] = row[half + d] * cos[half + d] + row[d] * sin[half + d]
    for d in range(len(cos), len(row)):
        out[d] = row[d]


@compiled
def keep(projected, cos, sin, keys, values, start, kv_head):
    """One head's part of `attend`: rotated keys and values of the new positions go to the cache."""
    kv_heads, _, width = keys.shape
    of_keys = kv_heads * width
    at = projected.shape[1] - 2 * of_keys + kv_head * width
    for i in range(len(projected)):
        row = projected[i]
        _rotate(row[at : at + width], cos[i], sin[i], keys[kv_head, start + i])
        values[kv_head, start + i] = row[at + of_keys : at + of_keys + width]


@compiled
def room_for_attention(queries, width, end):
    """Of one head at a time: rotated queries; three of them and what is mixed for them; scores, integers."""
    return (
        np.empty((queries, width), np.float32),
        np.empty((2, 3, width), np.float32),
        np.empty((3, end + BEHIND), np.float32),
        np.empty(end, np.int32),
    )


@compiled
def attend_by_head(projected, cos, sin, keys, values, start, scaling, head, room, out):
    """One query head's part of `attend`, whose keys are in the cache."""
    new, (queries, hidden), (kv_heads, _, width) = len(projected), out.shape, keys.shape
    late, at, kv_head = new - queries, head * width, head * width * kv_heads // hidden
    rotated, three, scores, powers = room
    for i in range(late, new):
        _rotate(projected[i, at : at + width], cos[i], sin[i], rotated[i - late])
    rotated *= np.float32(scaling)  # `width` numbers a query, where its scores are one a position
    for i in range(0, queries, 3):
        some = min(3, queries - i)
        seen = start + late + i + some  # by the last of these queries
        for j in range(3):
            three[0, j] = rotated[i + min(j, some - 1)]
        mix(three, keys[kv_head, :seen], values[kv_head, :seen], some, 1, scores, powers)
        out[i : i + some, at : at + width] = three[1, :some]


@compiled
def attend(projected, cos, sin, keys, values, start, scaling, queries):
    """Attention output of the last `queries` of the new positions, (queries, hidden), all float32.

    projected (new, hidden + 2 keys): queries, keys, values, each by head. cos, sin (new, rotary). keys,
    values (kv_heads, capacity, width) hold `start` positions and get the new ones. Each serves a group of
    query heads side by side, often of one.
    """
    kv_heads, _, width = keys.shape
    hidden = projected.shape[1] - 2 * kv_heads * width
    out = np.empty((queries, hidden), np.float32)
    room = room_for_attention(queries, width, start + len(projected))
    for kv_head in range(kv_heads):
        keep(projected, cos, sin, keys, values, start, kv_head)
    for head in range(hidden // width):
        attend_by_head(projected, cos, sin, keys, values, start, scaling, head, room, out)
    return out
