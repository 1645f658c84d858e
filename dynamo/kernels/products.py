"""Products with weights in 16 or 8 bits, for a few rows: widened on the way into the sum, which is float32.

Weights that are in no cache are what takes the time: they are read once for all rows, and row after row. With
four of their rows at once, as `layers` has it for weights in a cache, the processor does not see what comes
next, and waits twice as long. torch's own kernel for 8 bits works in bfloat16, which most processors have no
instructions for.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from dynamo.kernels.compiling import compiled_for_sums, compiled_on_all_cores

ZERO = np.float32(0)
BLOCK = 64  # of the weights' rows: the work of one task


@intrinsic
def _wide(_, weight):
    """A weight as float32: an integer, or widened from the bits of a half-precision number in a uint16."""
    if weight == types.int8:
        return types.float32(weight), lambda context, builder, signature, values: builder.sitofp(
            values[0], ir.FloatType()
        )
    if weight == types.uint16:
        return types.float32(weight), lambda context, builder, signature, values: builder.fpext(
            builder.bitcast(values[0], ir.HalfType()), ir.FloatType()
        )


@compiled_for_sums
def _some(x, weights, scales, out, begin, end):
    """`product` for the weights' rows from `begin` to `end`."""
    whole = len(x) // 3 * 3
    for at in range(begin, end):
        row, scale = weights[at], scales[at]
        for r in range(0, whole, 3):
            x0, x1, x2 = x[r], x[r + 1], x[r + 2]
            sum0, sum1, sum2 = ZERO, ZERO, ZERO
            for i in range(len(row)):
                weight = _wide(row[i])
                sum0, sum1, sum2 = sum0 + weight * x0[i], sum1 + weight * x1[i], sum2 + weight * x2[i]
            out[r, at], out[r + 1, at], out[r + 2, at] = sum0 * scale, sum1 * scale, sum2 * scale
        for r in range(whole, len(x)):
            x0 = x[r]
            sum0 = ZERO
            for i in range(len(row)):
                sum0 += _wide(row[i]) * x0[i]
            out[r, at] = sum0 * scale


@compiled_for_sums
def product(x, weights, scales):
    """x (rows, in) float32, weights (width, in) int8 or float16's bits as uint16, scales (width,) float32:
    x @ (scales * weights).T, (rows, width)."""
    out = np.empty((len(x), len(weights)), np.float32)
    _some(x, weights, scales, out, 0, len(weights))
    return out


@compiled_on_all_cores
def product_on_all_cores(x, weights, scales):
    """The same, shared out over numba's threads."""
    out = np.empty((len(x), len(weights)), np.float32)
    for task in prange((len(weights) + BLOCK - 1) // BLOCK):
        _some(x, weights, scales, out, task * BLOCK, min((task + 1) * BLOCK, len(weights)))
    return out
