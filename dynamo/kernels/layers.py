"""One text's few new positions on CPU in float32: attention (`dynamo.decoding.attention` in one loop), and
whole layers, one after the other or side by side (`dynamo.decoding.packed` in one loop).

For a handful of positions the operators' calls take longer than their sums. Queries and keys are rotated
(rotary embedding), keys and values go to the cache, and each query sees its own position and all before it.
Keys and values are read once for up to three positions, of 16 bits each where the cache holds such. Sums are
taken in any order, so results agree with torch's up to rounding; what is not a finite number stays one.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dynamo.kernels.compiling import compiled, compiled_for_sums, merged
from dynamo.kernels.products import product

LEAST = np.float32(-80)  # exponentials of less are as good as none
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
TAYLOR = tuple(np.float32(1 / factorial) for factorial in (24, 120, 720))
SIXTH = np.float32(1 / 6)
MANTISSA_BITS = np.int32(23)
# erfc(z) = t (a1 + t (a2 + ..)) exp(-z^2), t = 1 / (1 + p z), within 1.5e-7: Abramowitz and Stegun, 7.1.26
ERFC_P, ROOT_HALF = np.float32(0.3275911), np.float32(0.5**0.5)
ERFC = tuple(map(np.float32, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)))


@intrinsic
def _wide(_, weight):
    """A weight as float32: as it is, or widened from the bits of a half-precision number in a uint16."""
    if weight == types.float32:
        return types.float32(weight), lambda context, builder, signature, values: values[0]
    if weight == types.uint16:
        return types.float32(weight), lambda context, builder, signature, values: builder.fpext(
            builder.bitcast(values[0], ir.HalfType()), ir.FloatType()
        )


@compiled_for_sums
def row_product(x, weights, out):
    """out (width,) = weights (width, in) @ x (in,), by fours: the last ones perhaps twice."""
    last = len(weights) - 1
    # One read of x serves four sums, which do not wait for each other as the additions of one sum would.
    for at in range(0, len(weights), 4):
        a, b, c, d = at, min(at + 1, last), min(at + 2, last), min(at + 3, last)
        row_a, row_b, row_c, row_d = weights[a], weights[b], weights[c], weights[d]
        sum_a, sum_b, sum_c, sum_d = ZERO, ZERO, ZERO, ZERO
        for i in range(len(x)):
            sum_a, sum_b = sum_a + _wide(row_a[i]) * x[i], sum_b + _wide(row_b[i]) * x[i]
            sum_c, sum_d = sum_c + _wide(row_c[i]) * x[i], sum_d + _wide(row_d[i]) * x[i]
        out[a], out[b], out[c], out[d] = sum_a, sum_b, sum_c, sum_d


@compiled_for_sums
def three_rows_product(x, weights, out):
    """The same for three rows of x and of out, (3, in) and (3, width) or wider; weights are read once."""
    x0, x1, x2 = x[0], x[1], x[2]
    last = len(weights) - 1
    for at in range(0, len(weights), 4):
        a, b, c, d = at, min(at + 1, last), min(at + 2, last), min(at + 3, last)
        row_a, row_b, row_c, row_d = weights[a], weights[b], weights[c], weights[d]
        # 4 rows of weights times 3 of x: twelve sums are what the registers hold beside the numbers read.
        a0, a1, a2, b0, b1, b2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        c0, c1, c2, d0, d1, d2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        for i in range(len(x0)):
            wa, wb, wc, wd = _wide(row_a[i]), _wide(row_b[i]), _wide(row_c[i]), _wide(row_d[i])
            v0, v1, v2 = x0[i], x1[i], x2[i]
            a0, a1, a2 = a0 + wa * v0, a1 + wa * v1, a2 + wa * v2
            b0, b1, b2 = b0 + wb * v0, b1 + wb * v1, b2 + wb * v2
            c0, c1, c2 = c0 + wc * v0, c1 + wc * v1, c2 + wc * v2
            d0, d1, d2 = d0 + wd * v0, d1 + wd * v1, d2 + wd * v2
        out[0, a], out[1, a], out[2, a] = a0, a1, a2
        out[0, b], out[1, b], out[2, b] = b0, b1, b2
        out[0, c], out[1, c], out[2, c] = c0, c1, c2
        out[0, d], out[1, d], out[2, d] = d0, d1, d2


@compiled_for_sums
def exponential(values, powers):
    """values, 0 or less, become exp(value): 2^n p, p a polynomial; n goes to the exponent's bits.

    powers: room for as many integers.
    """
    for j in range(len(values)):
        x = max(values[j], LEAST) * LOG2_E
        powers[j] = np.int32(x - HALF)  # towards zero, so x is rounded
        r = (x - np.float32(powers[j])) * LN_2
        p = (TAYLOR[2] * r + TAYLOR[1]) * r + TAYLOR[0]
        values[j] = (((p * r + SIXTH) * r + HALF) * r + ONE) * r + ONE
    bits = values.view(np.int32)
    for j in range(len(values)):
        bits[j] += powers[j] << MANTISSA_BITS


@compiled_for_sums
def exponentials(scores, powers):
    """scores become exp(score - largest); 1 / their sum, not-a-number where a score is none or infinite."""
    total, largest = ZERO, scores[0]
    # A comparison would pass over not-a-number and go on; a sum becomes one, or infinite.
    for score in scores:
        total += score
    if not abs(total) < np.inf:
        return np.float32(np.nan)
    a, b, c, d = largest, largest, largest, largest  # four, which do not wait for each other
    whole = len(scores) // 4 * 4
    for j in range(0, whole, 4):
        a, b = max(a, scores[j]), max(b, scores[j + 1])
        c, d = max(c, scores[j + 2]), max(d, scores[j + 3])
    for j in range(whole, len(scores)):
        a = max(a, scores[j])
    largest = max(max(a, b), max(c, d))
    for j in range(len(scores)):
        scores[j] -= largest  # 0 or less, so no exponential overflows
    exponential(scores, powers)
    total = ZERO
    for score in scores:
        total += score
    return ONE / total


@compiled_for_sums
def weighted(rows, weights, out):
    """out (width,) = weights (count,) @ rows (count, width), float32 or 16-bit, read by fours"""
    out[:] = 0
    # Row by row, so that `out` stays in the nearest cache and memory is read in its own order.
    whole = len(weights) // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        at_a, at_b, at_c, at_d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for i in range(len(out)):
            out[i] += at_a * _wide(a[i]) + at_b * _wide(b[i]) + at_c * _wide(c[i]) + at_d * _wide(d[i])
    for j in range(whole, len(weights)):
        for i in range(len(out)):
            out[i] += weights[j] * _wide(rows[j, i])


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
    """Of one head at a time: rotated queries, three of them, scores of three, integers."""
    return (
        np.empty((queries, width), np.float32),
        np.empty((3, width), np.float32),
        np.empty((3, end), np.float32),
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
        if some == 1:
            row_product(rotated[i], keys[kv_head, :seen], scores[0])
        else:
            # Keys are read once for the three, up to what the last sees; `own` leaves out the rest.
            three[0], three[1], three[2] = rotated[i], rotated[i + 1], rotated[i + some - 1]
            three_rows_product(three, keys[kv_head, :seen], scores)
        for j in range(some):
            own = scores[j, : seen - some + 1 + j]
            share = exponentials(own, powers)
            mixed = out[i + j, at : at + width]
            weighted(values[kv_head, : len(own)], own, mixed)
            mixed *= share  # the softmax's division, on `width` numbers instead of one a position


@compiled
def attend(projected, cos, sin, keys, values, start, scaling, queries):
    """Attention output of the last `queries` of the new positions, (queries, hidden), all float32.

    projected (new, hidden + 2 keys): queries, keys, values, each by head. cos, sin (new, rotary). keys,
    values (kv_heads, capacity, width) hold `start` positions and get the new ones. Each serves a group of
    query heads side by side, often of one.
    """
    kv_heads, _, width = keys.shape
    hidden = projected.shape[1] - 2 * kv_heads * width
    out, room = (
        np.empty((queries, hidden), np.float32),
        room_for_attention(queries, width, start + len(projected)),
    )
    for kv_head in range(kv_heads):
        keep(projected, cos, sin, keys, values, start, kv_head)
    for head in range(hidden // width):
        attend_by_head(projected, cos, sin, keys, values, start, scaling, head, room, out)
    return out


@compiled_for_sums
def _normed(x, eps):
    """Rows without their mean and of variance 1."""
    out = np.empty_like(x)
    width = np.float32(x.shape[1])
    for i in range(len(x)):
        total, squares = ZERO, ZERO
        for value in x[i]:
            total += value
        mean = total / width
        # A second look: the difference of the mean square and the squared mean would lose digits.
        for value in x[i]:
            squares += (value - mean) * (value - mean)
        scale = ONE / np.sqrt(squares / width + np.float32(eps))
        for d in range(x.shape[1]):
            out[i, d] = (x[i, d] - mean) * scale
    return out


@compiled_for_sums
def _scaled(x, gain, shift):
    out = np.empty_like(x)
    for i in range(len(x)):
        for d in range(x.shape[1]):
            out[i, d] = x[i, d] * gain[d] + shift[d]
    return out


@compiled_for_sums
def _gelu(x, decays, powers):
    """x times the normal distribution's share below x, in place. decays, powers: room for as many numbers."""
    for i in range(len(x)):
        decays[i] = -HALF * x[i] * x[i]
    exponential(decays, powers)
    for i in range(len(x)):
        t = ONE / (ONE + ERFC_P * ROOT_HALF * abs(x[i]))
        upper = t * (ERFC[0] + t * (ERFC[1] + t * (ERFC[2] + t * (ERFC[3] + t * ERFC[4])))) * decays[i]
        x[i] = HALF * x[i] * (upper if x[i] < 0 else ONE + ONE - upper)


@merged
def _layer(
    x, normed, norms, project, expand, contract, biases, rotary, keys, values, start, scaling, queries
):
    """A layer's output at the last `queries` of x (new, hidden), whose keys and values go to the cache."""
    hidden, late = x.shape[1], len(x) - queries
    inner = biases.shape[1] - 4 * hidden
    # GPT-NeoX's parallel residual: attention and the MLP both read the layer's input, each by its own norm.
    projected = product(_scaled(normed, norms[0], norms[1]), project, biases[:, : 3 * hidden])
    # Attention's output and the MLP's inner values end to end: one product with `contract` adds up both.
    joined = np.empty((queries, hidden + inner), np.float32)
    joined[:, :hidden] = attend(projected, rotary[0], rotary[1], keys, values, start, scaling, queries)
    bias = biases[:, 3 * hidden : 3 * hidden + inner]
    wide = product(_scaled(normed[late:], norms[2], norms[3]), expand, bias)
    decays, powers = np.empty(inner, np.float32), np.empty(inner, np.int32)
    for i in range(queries):
        _gelu(wide[i], decays, powers)
        joined[i, hidden:] = wide[i]
    out = product(joined, contract, biases[:, 3 * hidden + inner :])
    out += x[late:]
    return out


@compiled
def parallel_layers(
    x, n, apart, eps, norms, project, expand, contract, biases, rotary, memory, slot, start, scaling, queries
):
    """The first `n` of some layers over x (new, hidden): one after the other, the last one's output at all
    positions, (1, new, hidden); or of each its own over the same x at the last `queries`, if `apart`,
    (n, queries, hidden).

    By layer: norms (4, hidden), gain and shift of the input's and of the second norm; matrices as in
    `products`: project (3 hidden, hidden), queries, keys, values, each by head, expand (inner, hidden),
    contract (hidden, hidden + inner), of attention's output and the inner values; biases (1, ..), of the
    three end to end. rotary: cos, sin as for `attend`; memory (2, layers, heads, capacity, width).
    """
    wanted = queries if apart else len(x)
    out = np.empty((n if apart else 1, wanted, x.shape[1]), np.float32)
    states, normed = x, _normed(x, eps)  # (new, hidden): norms of one input differ only in gain and shift
    for i in range(n):
        found = _layer(
            states, normed, norms[i], project[i], expand[i], contract[i], biases[i],
            rotary, memory[0, slot + i], memory[1, slot + i], start, scaling, wanted,
        )  # fmt: skip
        out[i if apart else 0] = found
        if not apart and i + 1 < n:
            states, normed = found, _normed(found, eps)
    return out
