"""Products with weights in 8 or 4 bits, for a few rows: sums of integers, on vectors of them; and a Llama's
layer on both sides of its attention, where calling operators would take longer than many of the products.

Each row of x is rounded to 16 bits by its own largest number: bfloat16, which torch's kernels work in, has 8.
Products of 16-bit integers add up exactly, and processors multiply and add twice as many of them at a time as
of floats. Weights are read once for three rows, and row by row, as the processor then sees what comes next.

numba has no vectors, so the few operations that are needed are stated in LLVM's language here.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

from dynamo.kernels.compiling import (
    FREE_SUMS,
    compiled,
    compiled_for,
    compiled_for_sums,
    compiled_on_all_cores,
)

ZERO, ONE = np.float32(0), np.float32(1)
BLOCK = 64  # of the weights' rows: the work of one task
GROUP = 32  # weights along a row: what one step of the loops reads, and what shares a scale in 4 bits
MOST_GROUPS = 128  # whose 8-bit weights' sums, eight side by side, stay within 32 bits
LARGEST = np.float32(32767)
PAIRS = "llvm.x86.avx2.pmadd.wd"  # multiplies 16 and 16 numbers, and adds neighbours


class Vector(types.Type):
    """So many numbers side by side in a register."""

    def __init__(self, name: str, number: ir.Type, count: int):
        super().__init__(name)
        self.number, self.count = number, count
        self.llvm = ir.VectorType(number, count)

    def of(self, value: float) -> ir.Constant:
        return ir.Constant(self.llvm, [value] * self.count)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


BYTES = Vector("16 x int8", ir.IntType(8), 16)
SHORTS = Vector("16 x int16", ir.IntType(16), 16)
WIDE = Vector("16 x int32", ir.IntType(32), 16)
INTEGERS = Vector("8 x int32", ir.IntType(32), 8)
FLOATS = Vector("8 x float32", ir.FloatType(), 8)


def _read(vector, context, builder, signature, values):
    """What an array holds from a place on."""
    array = context.make_array(signature.args[0])(context, builder, values[0])
    place = builder.bitcast(builder.gep(array.data, [values[1]]), vector.llvm.as_pointer())
    return builder.load(place, align=1)


@intrinsic
def _shorts(_, array, at):
    """16 numbers of an int16 array, or of an int8 or uint8 one widened."""
    widen = {types.int8: "sext", types.uint8: "zext"}.get(array.dtype)

    def made(context, builder, signature, values):
        if widen is None:
            return _read(SHORTS, context, builder, signature, values)
        return getattr(builder, widen)(_read(BYTES, context, builder, signature, values), SHORTS.llvm)

    return SHORTS(array, at), made


@intrinsic
def _low(_, both):
    return SHORTS(both), lambda context, builder, signature, values: builder.and_(values[0], SHORTS.of(15))


@intrinsic
def _high(_, both):
    return SHORTS(both), lambda context, builder, signature, values: builder.lshr(values[0], SHORTS.of(4))


@intrinsic
def _products(_, a, b):
    """Of 16 and 16 numbers, two and two of them added: 8 integers; which two may differ by processor."""

    def made(context, builder, signature, values):
        if compiled_for("avx2"):
            kind = ir.FunctionType(INTEGERS.llvm, [SHORTS.llvm, SHORTS.llvm])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, PAIRS), values)
        product = builder.mul(*(builder.sext(each, WIDE.llvm) for each in values))
        halves = [
            ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(begin, begin + 8))) for begin in (0, 8)
        ]
        return builder.add(*(builder.shuffle_vector(product, product, half) for half in halves))

    return INTEGERS(a, b), made


@intrinsic
def _no_integers(_):
    return INTEGERS(), lambda context, builder, signature, values: INTEGERS.of(0)


@intrinsic
def _no_floats(_):
    return FLOATS(), lambda context, builder, signature, values: FLOATS.of(0.0)


@intrinsic
def _sum(_, a, b):
    return INTEGERS(a, b), lambda context, builder, signature, values: builder.add(*values)


@intrinsic
def _plus(_, floats, integers, scale):
    """floats + integers * scale, a float32"""

    def made(context, builder, signature, values):
        floats, integers, scale = values
        first, everywhere = ir.Constant(ir.IntType(32), 0), ir.Constant(INTEGERS.llvm, [0] * 8)
        scales = builder.insert_element(FLOATS.of(0.0), scale, first)
        scales = builder.shuffle_vector(scales, scales, everywhere)
        product = builder.fmul(builder.sitofp(integers, FLOATS.llvm), scales, flags=("contract",))
        return builder.fadd(floats, product, flags=("contract",))

    return FLOATS(floats, integers, types.float32), made


@intrinsic
def _total(_, floats):
    def made(context, builder, signature, values):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), FLOATS.llvm])
        total = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v8f32")
        return builder.call(total, [ir.Constant(ir.FloatType(), 0.0), values[0]], fastmath=("reassoc",))

    return types.float32(floats), made


@intrinsic
def _wide(_, half):
    """A half-precision number's bits, in a uint16, as float32."""
    return types.float32(half), lambda context, builder, signature, values: builder.fpext(
        builder.bitcast(values[0], ir.HalfType()), ir.FloatType()
    )


@compiled_for_sums
def _in_16_bits(x):
    """x (rows, in) as integers (rows, in) times scales (rows,); and the integers' sums by group, (rows,
    groups) float32. A row with what is no finite number has one for its scale."""
    rows, width = x.shape
    shorts, scales = np.empty((rows, width), np.int16), np.empty(rows, np.float32)
    sums = np.empty((rows, width // GROUP), np.float32)
    for r in range(rows):
        largest, total = ZERO, ZERO
        for value in x[r]:
            largest = max(largest, abs(value))
            total += value
        scales[r] = largest / LARGEST if abs(total) < np.inf else np.float32(np.nan)
        steps = LARGEST / largest if largest > 0 else ZERO
        for i in range(width):
            shorts[r, i] = np.int16(np.rint(x[r, i] * steps))
        for group in range(width // GROUP):
            together = np.int32(0)
            for i in range(GROUP * group, GROUP * (group + 1)):
                together += shorts[r, i]
            sums[r, group] = together
    return shorts, scales, sums


def _eight(shorts, sizes, sums, parts, out, begin, end):
    weights, scales = parts
    rows, width = shorts.shape
    for at in range(begin, end):
        row, scale = weights[at], scales[at]
        for r in range(0, rows, 3):
            r1, r2 = min(r + 1, rows - 1), min(r + 2, rows - 1)
            x0, x1, x2 = shorts[r], shorts[r1], shorts[r2]
            sum0, sum1, sum2 = _no_floats(), _no_floats(), _no_floats()
            for first in range(0, width, GROUP * MOST_GROUPS):
                part0, part1, part2 = _no_integers(), _no_integers(), _no_integers()
                last = min(first + GROUP * MOST_GROUPS, width)
                if r1 == r:
                    for i in range(first, last, 16):
                        part0 = _sum(part0, _products(_shorts(row, i), _shorts(x0, i)))
                else:
                    for i in range(first, last, 16):
                        some = _shorts(row, i)
                        part0 = _sum(part0, _products(some, _shorts(x0, i)))
                        part1 = _sum(part1, _products(some, _shorts(x1, i)))
                        if r2 > r1:
                            part2 = _sum(part2, _products(some, _shorts(x2, i)))
                sum0, sum1 = _plus(sum0, part0, scale), _plus(sum1, part1, scale)
                sum2 = _plus(sum2, part2, scale)
            out[r, at] = _total(sum0) * sizes[r]
            if r1 > r:
                out[r1, at] = _total(sum1) * sizes[r1]
            if r2 > r1:
                out[r2, at] = _total(sum2) * sizes[r2]


def _four(shorts, sizes, sums, parts, out, begin, end):
    weights, scales, least = parts
    rows, groups = sums.shape
    for at in range(begin, end):
        row, steps, lows = weights[at], scales[at], least[at]
        for r in range(0, rows, 3):
            r1, r2 = min(r + 1, rows - 1), min(r + 2, rows - 1)
            x0, x1, x2 = shorts[r], shorts[r1], shorts[r2]
            sum0, sum1, sum2 = _no_floats(), _no_floats(), _no_floats()
            rest0, rest1, rest2 = ZERO, ZERO, ZERO  # what the groups' least numbers make
            if r1 == r:
                for g in range(groups):
                    both, i = _shorts(row, 16 * g), GROUP * g
                    part = _products(_low(both), _shorts(x0, i))
                    part = _sum(part, _products(_high(both), _shorts(x0, i + 16)))
                    sum0 = _plus(sum0, part, _wide(steps[g]))
                for g in range(groups):
                    rest0 += _wide(lows[g]) * sums[r, g]
                out[r, at] = (_total(sum0) + rest0) * sizes[r]
                continue
            for g in range(groups):
                both, scale, i, j = _shorts(row, 16 * g), _wide(steps[g]), GROUP * g, GROUP * g + 16
                low, high = _low(both), _high(both)
                part0 = _sum(_products(low, _shorts(x0, i)), _products(high, _shorts(x0, j)))
                part1 = _sum(_products(low, _shorts(x1, i)), _products(high, _shorts(x1, j)))
                sum0, sum1 = _plus(sum0, part0, scale), _plus(sum1, part1, scale)
                if r2 > r1:
                    part2 = _sum(_products(low, _shorts(x2, i)), _products(high, _shorts(x2, j)))
                    sum2 = _plus(sum2, part2, scale)
            for g in range(groups):
                low = _wide(lows[g])
                rest0, rest1 = rest0 + low * sums[r, g], rest1 + low * sums[r1, g]
                rest2 = rest2 + low * sums[r2, g]
            out[r, at] = (_total(sum0) + rest0) * sizes[r]
            out[r1, at] = (_total(sum1) + rest1) * sizes[r1]
            if r2 > r1:
                out[r2, at] = (_total(sum2) + rest2) * sizes[r2]


def _some(shorts, sizes, sums, parts, out, begin, end):
    """`product` for the weights' rows from `begin` to `end`."""


@overload(_some, jit_options={"error_model": "numpy", "fastmath": FREE_SUMS})
def _some_of_a_kind(shorts, sizes, sums, parts, out, begin, end):
    return _eight if len(parts) == 2 else _four


@compiled
def product(x, parts):
    """x (rows, in) float32 @ w.T, (rows, width); `in` is a multiple of 32.

    parts: of 8 bits, integers (width, in) int8 and scales (width,) float32, w = scales * integers; of 4 bits,
    integers (width, in / 2) uint8, scales and least (width, in / 32), float16's bits as uint16, w = scales *
    integers + least. Of each 32 of these, the first 16 are the low four bits of their bytes.
    """
    shorts, sizes, sums = _in_16_bits(x)
    out = np.empty((len(x), len(parts[0])), np.float32)
    _some(shorts, sizes, sums, parts, out, 0, len(parts[0]))
    return out


@compiled_on_all_cores
def product_on_all_cores(x, parts):
    """The same, shared out over numba's threads."""
    shorts, sizes, sums = _in_16_bits(x)
    width = len(parts[0])
    out = np.empty((len(x), width), np.float32)
    for task in prange((width + BLOCK - 1) // BLOCK):
        _some(shorts, sizes, sums, parts, out, task * BLOCK, min((task + 1) * BLOCK, width))
    return out


@compiled_for_sums
def _normed(x, gain, eps):
    """As `norms.rms_normed`."""
    out = np.empty_like(x)
    for i in range(len(x)):
        squares = ZERO
        for value in x[i]:
            squares += value * value
        scale = ONE / np.sqrt(squares / np.float32(x.shape[1]) + np.float32(eps))
        for d in range(x.shape[1]):
            out[i, d] = x[i, d] * scale * gain[d]
    return out


@compiled_for_sums
def _gated(both):
    """silu(gate) * wide, (rows, inner), from (rows, 2 inner)."""
    inner = both.shape[1] // 2
    out = np.empty((len(both), inner), np.float32)
    for i in range(len(both)):
        gate, wide = both[i, :inner], both[i, inner:]
        for d in range(inner):
            out[i, d] = gate[d] / (ONE + np.exp(-gate[d])) * wide[d]
    return out


@compiled
def before_attention(x, gain, eps, project):
    """Queries, keys and values of x (rows, hidden); parts of `project` as in `product`."""
    return product(_normed(x, gain, eps), project)


@compiled
def after_attention(attended, x, gain, eps, output, expand, contract):
    """The layer's output (rows, hidden): attention's product added to x, and to that the gated MLP."""
    between = product(attended, output)
    between += x
    out = product(_gated(product(_normed(between, gain, eps), expand)), contract)
    out += between
    return out
