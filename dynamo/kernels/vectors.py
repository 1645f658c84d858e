"""Vectors of numbers in a processor's registers, which numba does not have: the few operations that are
needed, stated in LLVM's language. A place is that of an element in a flat array.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from dynamo.kernels.compiling import compiled_for

PAIRS = "llvm.x86.avx2.pmadd.wd"  # multiplies 16 and 16 numbers, and adds neighbours
BYTE_PAIRS = "llvm.x86.avx2.pmadd.ub.sw"  # the same for 32 unsigned and 32 signed bytes
BYTE_FOURS = "llvm.x86.avx512.vpdpbusd.256"  # adds the products of four and four of them at once


class Vector(types.Type):
    """So many numbers side by side in a register."""

    def __init__(self, name: str, number: ir.Type, count: int):
        super().__init__(name)
        self.number, self.count = number, count
        self.llvm = ir.VectorType(number, count)

    def filled_with(self, value: float) -> ir.Constant:
        return ir.Constant(self.llvm, [value] * self.count)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


TINY = Vector("32 x int8", ir.IntType(8), 32)
SHORTS = Vector("16 x int16", ir.IntType(16), 16)
INTEGERS = Vector("8 x int32", ir.IntType(32), 8)
FLOATS = Vector("8 x float32", ir.FloatType(), 8)
BYTES, HALVES, WIDE = (ir.VectorType(*each) for each in (
    (ir.IntType(8), 16), (ir.HalfType(), 8), (ir.IntType(32), 16),
))  # fmt: skip


def _place(context, builder, signature, values, kind):
    """Where an array's element is, as a pointer to numbers of that kind."""
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.bitcast(builder.gep(array.data, [values[1]]), kind.as_pointer())


def _read(context, builder, signature, values, kind):
    return builder.load(_place(context, builder, signature, values, kind), align=1)


def _everywhere(builder, value, vector):
    """A vector of one number."""
    first, places = ir.Constant(ir.IntType(32), 0), ir.VectorType(ir.IntType(32), vector.count)
    alone = builder.insert_element(ir.Constant(vector.llvm, ir.Undefined), value, first)
    return builder.shuffle_vector(alone, alone, ir.Constant(places, [0] * vector.count))


@intrinsic
def fetch(_, array, at):
    """Asks memory for what lies there, without waiting, into the nearest cache."""

    def made(context, builder, signature, values):
        place, integer = _place(context, builder, signature, values, ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, integer, integer, integer])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        read, nearest, data = 0, 3, 1
        builder.call(ask, [place, *(ir.Constant(integer, each) for each in (read, nearest, data))])
        return context.get_dummy_value()

    return types.void(array, at), made


@intrinsic
def eight_floats(_, array, at):
    return FLOATS(array, at), lambda *given: _read(*given, FLOATS.llvm)


@intrinsic
def eight_halves(_, array, at):
    """Half-precision numbers, whatever the array's type, as float32."""

    def made(context, builder, signature, values):
        return builder.fpext(_read(context, builder, signature, values, HALVES), FLOATS.llvm)

    return FLOATS(array, at), made


@intrinsic
def shorts_of_bytes(_, array, at):
    def made(context, builder, signature, values):
        return builder.sext(_read(context, builder, signature, values, BYTES), SHORTS.llvm)

    return SHORTS(array, at), made


@intrinsic
def bytes_of(_, array, at):
    return TINY(array, at), lambda *given: _read(*given, TINY.llvm)


@intrinsic
def low_halves(_, some):
    """The lower four bits of each byte."""
    return TINY(some), lambda context, builder, signature, values: builder.and_(
        values[0], TINY.filled_with(15)
    )


@intrinsic
def high_halves(_, some):
    """The upper four."""
    return TINY(some), lambda context, builder, signature, values: builder.lshr(
        values[0], TINY.filled_with(4)
    )


@intrinsic
def four_everywhere(_, array, at):
    """Four numbers of an int8 array, eight times."""

    def made(context, builder, signature, values):
        four = _read(context, builder, signature, values, ir.IntType(32))
        return builder.bitcast(_everywhere(builder, four, INTEGERS), TINY.llvm)

    return TINY(array, at), made


def _called(builder, name, result, *values):
    kind = ir.FunctionType(result, [each.type for each in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


@intrinsic
def added_fours(_, sums, small, b):
    """sums + the products of 32 numbers from 0 to 15 and 32 of a byte's, each four neighbours added: 8
    integers."""

    def made(context, builder, signature, values):
        sums, small, b = values
        if compiled_for("avxvnni") or (compiled_for("avx512vnni") and compiled_for("avx512vl")):
            four = [builder.bitcast(each, INTEGERS.llvm) for each in (small, b)]
            return _called(builder, BYTE_FOURS, INTEGERS.llvm, sums, *four)
        if compiled_for("avx2"):
            pairs = _called(builder, BYTE_PAIRS, SHORTS.llvm, small, b)
            fours = _called(builder, PAIRS, INTEGERS.llvm, pairs, SHORTS.filled_with(1))
            return builder.add(sums, fours)
        wide = ir.VectorType(ir.IntType(32), 32)
        product = builder.mul(builder.zext(small, wide), builder.sext(b, wide))
        for begin in range(4):
            places = ir.Constant(INTEGERS.llvm, list(range(begin, 32, 4)))
            sums = builder.add(sums, builder.shuffle_vector(product, product, places))
        return sums

    return INTEGERS(sums, small, b), made


@intrinsic
def pair_everywhere(_, array, at):
    """Two numbers of an int16 array, eight times."""

    def made(context, builder, signature, values):
        pair = _read(context, builder, signature, values, ir.IntType(32))
        return builder.bitcast(_everywhere(builder, pair, INTEGERS), SHORTS.llvm)

    return SHORTS(array, at), made


@intrinsic
def added_products(_, sums, a, b):
    """sums + the products of 16 and 16 numbers, neighbours added: 8 integers."""

    def made(context, builder, signature, values):
        sums, a, b = values
        if compiled_for("avx2"):
            kind = ir.FunctionType(INTEGERS.llvm, [SHORTS.llvm, SHORTS.llvm])
            return builder.add(
                sums, builder.call(cgutils.get_or_insert_function(builder.module, kind, PAIRS), [a, b])
            )
        product = builder.mul(builder.sext(a, WIDE), builder.sext(b, WIDE))
        even, odd = (
            builder.shuffle_vector(product, product, ir.Constant(INTEGERS.llvm, list(range(begin, 16, 2))))
            for begin in (0, 1)
        )
        return builder.add(sums, builder.add(even, odd))

    return INTEGERS(sums, a, b), made


@intrinsic
def no_integers(_):
    return INTEGERS(), lambda context, builder, signature, values: INTEGERS.filled_with(0)


@intrinsic
def no_floats(_):
    return FLOATS(), lambda context, builder, signature, values: FLOATS.filled_with(0.0)


@intrinsic
def as_floats(_, integers):
    return FLOATS(integers), lambda context, builder, signature, values: builder.sitofp(
        values[0], FLOATS.llvm
    )


@intrinsic
def float_everywhere(_, array, at):
    """A number of a float32 array, eight times."""

    def made(*given):
        return _everywhere(given[1], _read(*given, ir.FloatType()), FLOATS)

    return FLOATS(array, at), made


@intrinsic
def everywhere(_, value):
    """A float32, eight times."""
    return FLOATS(types.float32), lambda context, builder, signature, values: _everywhere(
        builder, values[0], FLOATS
    )


@intrinsic
def added(_, sums, a, b):
    """sums + a * b"""

    def made(context, builder, signature, values):
        product = builder.fmul(values[1], values[2], flags=("contract",))
        return builder.fadd(values[0], product, flags=("contract",))

    return FLOATS(sums, a, b), made


@intrinsic
def plus(_, a, b):
    return FLOATS(a, b), lambda context, builder, signature, values: builder.fadd(*values)


@intrinsic
def times(_, a, b):
    return FLOATS(a, b), lambda context, builder, signature, values: builder.fmul(*values)


@intrinsic
def put(_, array, at, floats):
    """Eight numbers into a float32 array."""

    def made(context, builder, signature, values):
        builder.store(values[2], _place(context, builder, signature, values, FLOATS.llvm), align=4)
        return context.get_dummy_value()

    return types.void(array, at, floats), made
