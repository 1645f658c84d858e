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
WIDE_PAIRS = "llvm.x86.avx512.vpdpwssd.512"  # the same for twice as many, added to sums
BYTE_PAIRS = "llvm.x86.avx2.pmadd.ub.sw"  # the same for 32 unsigned and 32 signed bytes
BYTE_FOURS = "llvm.x86.avx512.vpdpbusd.256"  # adds the products of four and four of them at once
WIDE_FOURS = "llvm.x86.avx512.vpdpbusd.512"


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


FOUR = Vector("4 x float32", ir.FloatType(), 4)
EIGHT = Vector("8 x float32", ir.FloatType(), 8)
FLOATS = Vector("16 x float32", ir.FloatType(), 16)
INTEGERS = Vector("16 x int32", ir.IntType(32), 16)
SHORTS = Vector("32 x int16", ir.IntType(16), 32)
BYTES = Vector("64 x int8", ir.IntType(8), 64)
OF = {types.float32: FLOATS, types.int16: SHORTS, types.int8: BYTES}


def _place(context, builder, signature, values, kind):
    """Where an array's element is, as a pointer to numbers of that kind."""
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.bitcast(builder.gep(array.data, [values[1]]), kind.as_pointer())


def _read(context, builder, signature, values, kind):
    return builder.load(_place(context, builder, signature, values, kind), align=1)


def _everywhere(builder, value, count):
    """A vector of one number."""
    vector = ir.VectorType(value.type, count)
    alone = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return _shuffled(builder, alone, alone, [0] * count)


def _shuffled(builder, a, b, places):
    """The numbers at these places of two vectors, end to end."""
    kind = ir.VectorType(ir.IntType(32), len(places))
    return builder.shuffle_vector(a, b, ir.Constant(kind, list(places)))


def _called(builder, name, result, *values):
    kind = ir.FunctionType(result, [each.type for each in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _by_halves(builder, made, *vectors):
    """made(..) of the vectors' lower halves, and of their upper ones behind it."""
    parts = []
    for upper in (0, 1):
        halves = (
            _shuffled(
                builder, each, each, range(upper * each.type.count // 2, (upper + 1) * each.type.count // 2)
            )
            for each in vectors
        )
        parts.append(made(*halves))
    return _shuffled(builder, *parts, range(2 * parts[0].type.count))


def _asks(nearness):
    """Asks memory for what lies at a place, without waiting, into the nearest cache (3) or the next (2)."""

    def made(context, builder, signature, values):
        place, integer = _place(context, builder, signature, values, ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, integer, integer, integer])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        read, data = 0, 1
        builder.call(ask, [place, *(ir.Constant(integer, each) for each in (read, nearness, data))])
        return context.get_dummy_value()

    return made


@intrinsic
def fetch(_, array, at):
    """Before it is read at once."""
    return types.void(array, at), _asks(3)


@intrinsic
def fetch_for_later(_, array, at):
    """Before it is read after much else."""
    return types.void(array, at), _asks(2)


@intrinsic
def everywhere(_, array, at):
    """The eight bytes from a place on, eight times: numbers of the array's type."""
    vector = OF[array.dtype]

    def made(*given):
        bits = _read(*given, ir.IntType(64))
        return given[1].bitcast(_everywhere(given[1], bits, 8), vector.llvm)

    return vector(array, at), made


@intrinsic
def float_everywhere(_, array, at):
    """A number of a float32 array, sixteen times."""

    def made(*given):
        return _everywhere(given[1], _read(*given, ir.FloatType()), 16)

    return FLOATS(array, at), made


@intrinsic
def eight_floats(_, array, at):
    return EIGHT(array, at), lambda *given: _read(*given, EIGHT.llvm)


@intrinsic
def sixteen_floats(_, array, at):
    return FLOATS(array, at), lambda *given: _read(*given, FLOATS.llvm)


def _widened(vector):
    """Half-precision numbers, whatever the array's type, as float32."""

    def made(context, builder, signature, values):
        halves = ir.VectorType(ir.HalfType(), vector.count)
        return builder.fpext(_read(context, builder, signature, values, halves), vector.llvm)

    return made


@intrinsic
def eight_halves(_, array, at):
    return EIGHT(array, at), _widened(EIGHT)


@intrinsic
def sixteen_halves(_, array, at):
    return FLOATS(array, at), _widened(FLOATS)


@intrinsic
def shorts_of_bytes(_, array, at):
    def made(*given):
        return given[1].sext(_read(*given, ir.VectorType(ir.IntType(8), SHORTS.count)), SHORTS.llvm)

    return SHORTS(array, at), made


@intrinsic
def bytes_of(_, array, at):
    return BYTES(array, at), lambda *given: _read(*given, BYTES.llvm)


@intrinsic
def low_halves(_, some):
    """The lower four bits of each byte."""
    return BYTES(some), lambda context, builder, signature, values: builder.and_(
        values[0], BYTES.filled_with(15)
    )


@intrinsic
def high_halves(_, some):
    """The upper four."""
    return BYTES(some), lambda context, builder, signature, values: builder.lshr(
        values[0], BYTES.filled_with(4)
    )


@intrinsic
def added_fours(_, sums, small, b):
    """sums + the products of 64 numbers from 0 to 15 and 64 of a byte's, each four neighbours added."""

    def fours(builder, small, b):
        integers = ir.VectorType(ir.IntType(32), small.type.count // 4)
        if compiled_for("avxvnni") or (compiled_for("avx512vnni") and compiled_for("avx512vl")):
            four = [builder.bitcast(each, integers) for each in (small, b)]
            return _called(builder, BYTE_FOURS, integers, ir.Constant(integers, [0] * integers.count), *four)
        shorts = ir.VectorType(ir.IntType(16), small.type.count // 2)
        pairs = _called(builder, BYTE_PAIRS, shorts, small, b)
        return _called(builder, PAIRS, integers, pairs, ir.Constant(shorts, [1] * shorts.count))

    def made(context, builder, signature, values):
        sums, small, b = values
        if compiled_for("avx512vnni"):
            four = [builder.bitcast(each, INTEGERS.llvm) for each in (small, b)]
            return _called(builder, WIDE_FOURS, INTEGERS.llvm, sums, *four)
        if compiled_for("avx2"):
            return builder.add(sums, _by_halves(builder, lambda *two: fours(builder, *two), small, b))
        wide = ir.VectorType(ir.IntType(32), BYTES.count)
        product = builder.mul(builder.zext(small, wide), builder.sext(b, wide))
        for begin in range(4):
            part = _shuffled(builder, product, product, range(begin, BYTES.count, 4))
            sums = builder.add(sums, part)
        return sums

    return INTEGERS(sums, small, b), made


@intrinsic
def added_pairs(_, sums, a, b):
    """sums + the products of 32 and 32 numbers of 16 bits, neighbours added."""

    def made(context, builder, signature, values):
        sums, a, b = values
        if compiled_for("avx512vnni"):
            two = [builder.bitcast(each, INTEGERS.llvm) for each in (a, b)]
            return _called(builder, WIDE_PAIRS, INTEGERS.llvm, sums, *two)
        if compiled_for("avx2"):
            half = ir.VectorType(ir.IntType(32), INTEGERS.count // 2)
            return builder.add(
                sums, _by_halves(builder, lambda *two: _called(builder, PAIRS, half, *two), a, b)
            )
        wide = ir.VectorType(ir.IntType(32), SHORTS.count)
        product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
        even, odd = (_shuffled(builder, product, product, range(begin, SHORTS.count, 2)) for begin in (0, 1))
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
def twice(_, eight):
    """Each of eight numbers two times, side by side."""

    def made(context, builder, signature, values):
        return _shuffled(builder, values[0], values[0], [place // 2 for place in range(16)])

    return FLOATS(eight), made


@intrinsic
def beside_zeros(_, eight):
    """Each of eight numbers, and a zero behind it."""

    def made(context, builder, signature, values):
        places = [place // 2 + 8 * (place % 2) for place in range(16)]
        return _shuffled(builder, values[0], EIGHT.filled_with(0.0), places)

    return FLOATS(eight), made


@intrinsic
def neighbours_added(_, floats):
    def made(context, builder, signature, values):
        even, odd = (_shuffled(builder, values[0], values[0], range(begin, 16, 2)) for begin in (0, 1))
        return builder.fadd(even, odd)

    return EIGHT(floats), made


@intrinsic
def added(_, sums, a, b):
    """sums + a * b"""

    def made(context, builder, signature, values):
        product = builder.fmul(values[1], values[2], flags=("contract",))
        return builder.fadd(values[0], product, flags=("contract",))

    return sums(sums, a, b), made


@intrinsic
def plus(_, a, b):
    return a(a, b), lambda context, builder, signature, values: builder.fadd(*values)


@intrinsic
def times(_, a, b):
    return a(a, b), lambda context, builder, signature, values: builder.fmul(*values)


@intrinsic
def four_sums(_, a, b, c, d):
    """Of each of four registers, all its numbers' sum."""

    def halved(builder, one, other, group):
        """The sums of both halves of each group of numbers, of one register or of two end to end."""
        places = range(one.type.count * (1 if other is one else 2))
        low = [place for place in places if place % group < group // 2]
        high = [place + group // 2 for place in low]
        return builder.fadd(*(_shuffled(builder, one, other, each) for each in (low, high)))

    def made(context, builder, signature, values):
        a, b, c, d = values
        eights = halved(builder, a, b, 16), halved(builder, c, d, 16)
        fours = halved(builder, *eights, 8)
        twos = halved(builder, fours, fours, 4)
        return halved(builder, twos, twos, 2)

    return FOUR(a, b, c, d), made


@intrinsic
def put(_, array, at, numbers):
    """A register's numbers into a float32 array."""

    def made(context, builder, signature, values):
        builder.store(values[2], _place(context, builder, signature, values, values[2].type), align=4)
        return context.get_dummy_value()

    return types.void(array, at, numbers), made
