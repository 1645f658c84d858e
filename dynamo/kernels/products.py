"""Products of few rows with weights in 32, 16, 8 or 4 bits.

Eight rows of weights lie side by side, by turns what goes with eight bytes of x of each: a register holds
numbers of eight rows, which are multiplied by the same eight bytes, and a row's sum is spread over two places
only. Weights are read once for three rows of x. Registers have 512 bits here; where they are shorter, the
compiler takes two.

With weights in 8 bits, each row of x is rounded to 16 bits by its own largest number: bfloat16, which
torch's kernels work in, has 8. With weights in 4 bits each 16 numbers along a row of x are rounded to 8 by
their own (llama.cpp: each 32). Products of integers add up exactly, and processors multiply and add two or
four times as many of them at a time as of floats.

A matrix (width, in) is one flat array, eight rows after the other (the last ones filled up with zeros), `in`
a multiple of 32, in 32 and 16 bits of 8. Of eight rows, by the array's type:
float32: (in / 2, 8, 2).
uint16: float16's bits, (in / 2, 8, 2); then 8 scales, float32.
int8: (in / 4, 8, 4); then 8 scales, float32.
uint8: of each group of 32 along the rows, bytes (2, 8, 2, 4), by halves of the group, each two numbers four
apart, the first one lower; then 8 scales and 8 least numbers, float16. A weight is a number * scale + least.
x lies by turns, too: four numbers of a group's first half, four of its second. So each of a row's two sums is
of numbers that share a scale.
"""

from __future__ import annotations

import numpy as np
from numba import prange, types
from numba.extending import overload

from dynamo.kernels.compiling import FREE_SUMS, compiled, compiled_for_sums, compiled_on_all_cores, merged
from dynamo.kernels.sharing import crew_of, finish, is_open, new_counts, next_task
from dynamo.kernels.vectors import (
    added,
    added_fours,
    added_pairs,
    as_floats,
    beside_zeros,
    bytes_of,
    eight_floats,
    eight_halves,
    everywhere,
    fetch,
    float_everywhere,
    high_halves,
    low_halves,
    neighbours_added,
    no_floats,
    no_integers,
    plus,
    put,
    shorts_of_bytes,
    sixteen_floats,
    sixteen_halves,
    times,
    twice,
)

GROUP = 32  # weights along a row that share a scale in 4 bits
HALF = GROUP // 2  # numbers of x that share one with them
BLOCK = 32  # of the weights' rows: one task
LARGEST, LARGEST_BYTE = np.float32(32767), np.float32(127)
AHEAD = 8192  # bytes: the processor itself looks ahead to the end of a page, 4,096 bytes, and begins anew
LINE = 64  # bytes that come together
SIZE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # of a float32's bits


@compiled_for_sums
def _in_16_bits(x):
    """x (rows, in) as integers (rows x in,) times scales (rows,), float32; no sums are needed. A row with a
    number that is not finite has not-a-number for its scale."""
    rows, width = x.shape
    shorts, scales = np.empty(rows * width, np.int16), np.empty(rows, np.float32)
    largest = np.empty(1, np.int32)
    for r in range(rows):
        # Sizes of floats are ordered as their bits are; what is no number has the largest.
        bits, most_bits = x[r].view(np.int32), np.int32(0)
        for i in range(width):
            most_bits = max(most_bits, bits[i] & SIZE)
        largest[0] = most_bits
        most = largest.view(np.float32)[0]
        scales[r] = most / LARGEST if largest[0] < INFINITE else np.float32(np.nan)
        steps = LARGEST / most if 0 < largest[0] < INFINITE else np.float32(0)
        own = shorts[r * width : (r + 1) * width]
        for i in range(width):
            own[i] = np.int16(np.rint(x[r, i] * steps))
    return shorts, scales, np.empty(0, np.float32)


@compiled_for_sums
def _in_8_bits(x):
    """x (rows, in) as integers (rows x in,), by turns, times scales of halves of groups (rows, 2 groups),
    with the groups' sums (rows, groups), float32. A half with a number that is not finite has not-a-number
    for its scale."""
    rows, width = x.shape
    numbers = np.empty(rows * width, np.int8)
    scales = np.empty((rows, width // HALF), np.float32)
    sums = np.zeros((rows, width // GROUP), np.float32)
    largest = np.empty(1, np.int32)
    for r in range(rows):
        bits = x[r].view(np.int32)
        for half in range(width // HALF):
            first, most_bits = HALF * half, np.int32(0)
            for i in range(first, first + HALF):
                most_bits = max(most_bits, bits[i] & SIZE)
            largest[0] = most_bits
            most = largest.view(np.float32)[0]
            scale = most / LARGEST_BYTE if most_bits < INFINITE else np.float32(np.nan)
            steps = LARGEST_BYTE / most if 0 < most_bits < INFINITE else np.float32(0)
            at, together = r * width + half // 2 * GROUP + half % 2 * 4, np.int32(0)
            for four in range(HALF // 4):
                for i in range(4):
                    number = np.int8(np.rint(x[r, first + 4 * four + i] * steps))
                    numbers[at + 8 * four + i] = number
                    together += number
            scales[r, half] = scale
            sums[r, half // 2] += scale * np.float32(together)
    return numbers, scales, sums


@compiled
def _as_it_is(x):
    return x.reshape(-1), np.ones(len(x), np.float32), np.empty(0, np.float32)


def prepared(x, weights):
    """x (rows, in) as products with these weights read it: numbers, rows' or groups' scales, groups' sums."""


@overload(prepared)
def _prepared(x, weights):
    if weights.dtype in (types.uint16, types.float32):
        return lambda x, weights: _as_it_is(x)
    if weights.dtype == types.uint8:
        return lambda x, weights: _in_8_bits(x)
    return lambda x, weights: _in_16_bits(x)


def block_sums(x, weights, at, found):
    """found (rows, eights of the weights' rows) = the products of x and those that begin at a place."""


def _of_32_bits(x, weights, at, found):
    numbers, _, _ = x
    rows, count = found.shape
    width = len(numbers) // rows
    for first in range(0, count, 8):
        for r in range(rows):
            a, b = no_floats(), no_floats()
            for i in range(0, width, 4):
                w, j = at + 8 * i, r * width + i
                fetch(weights, w + AHEAD // 4)
                fetch(weights, w + (AHEAD + LINE) // 4)
                a = added(a, sixteen_floats(weights, w), everywhere(numbers, j))
                b = added(b, sixteen_floats(weights, w + 16), everywhere(numbers, j + 2))
            put(found, r * count + first, neighbours_added(plus(a, b)))
        at += 8 * width


def _of_16_bits(x, weights, at, found):
    numbers, _, _ = x
    rows, count = found.shape
    width = len(numbers) // rows
    for first in range(0, count, 8):
        scale = eight_floats(weights, at + 8 * width)
        for r in range(0, rows, 3):
            i0 = r * width
            if r + 1 == rows:
                a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
                for i in range(0, width, 8):
                    w, j = at + 8 * i, i0 + i
                    fetch(weights, w + AHEAD // 2)
                    fetch(weights, w + (AHEAD + LINE) // 2)
                    a = added(a, sixteen_halves(weights, w), everywhere(numbers, j))
                    b = added(b, sixteen_halves(weights, w + 16), everywhere(numbers, j + 2))
                    c = added(c, sixteen_halves(weights, w + 32), everywhere(numbers, j + 4))
                    d = added(d, sixteen_halves(weights, w + 48), everywhere(numbers, j + 6))
                put(found, r * count + first, times(neighbours_added(plus(plus(a, b), plus(c, d))), scale))
                continue
            last = min(r + 2, rows - 1)
            i1, i2 = i0 + width, last * width
            a0, a1, a2 = no_floats(), no_floats(), no_floats()
            b0, b1, b2 = no_floats(), no_floats(), no_floats()
            for i in range(0, width, 4):
                w = at + 8 * i
                fetch(weights, w + AHEAD // 2)
                one, two = sixteen_halves(weights, w), sixteen_halves(weights, w + 16)
                a0 = added(a0, one, everywhere(numbers, i0 + i))
                b0 = added(b0, two, everywhere(numbers, i0 + i + 2))
                a1 = added(a1, one, everywhere(numbers, i1 + i))
                b1 = added(b1, two, everywhere(numbers, i1 + i + 2))
                a2 = added(a2, one, everywhere(numbers, i2 + i))
                b2 = added(b2, two, everywhere(numbers, i2 + i + 2))
            put(found, r * count + first, times(neighbours_added(plus(a0, b0)), scale))
            put(found, (r + 1) * count + first, times(neighbours_added(plus(a1, b1)), scale))
            put(found, last * count + first, times(neighbours_added(plus(a2, b2)), scale))
        at += 8 * width + 16


def _of_8_bits(x, weights, at, found):
    shorts, sizes, _ = x
    rows, count = found.shape
    width = len(shorts) // rows
    for first in range(0, count, 8):
        scale = eight_floats(weights, at + 8 * width)
        for r in range(0, rows, 3):
            alone, r1, r2 = r + 1 == rows, min(r + 1, rows - 1), min(r + 2, rows - 1)
            i0, i1, i2 = r * width, r1 * width, r2 * width
            sum0, sum1, sum2 = no_floats(), no_floats(), no_floats()
            for begin in range(0, width, GROUP):  # so few of them, as 32 bits hold not too many products
                part0, part1, part2 = no_integers(), no_integers(), no_integers()
                for line in range(0, 8 * GROUP, LINE):
                    fetch(weights, at + 8 * begin + line + AHEAD)
                for i in range(begin, begin + GROUP, 4):
                    own = shorts_of_bytes(weights, at + 8 * i)
                    part0 = added_pairs(part0, own, everywhere(shorts, i0 + i))
                    if not alone:
                        part1 = added_pairs(part1, own, everywhere(shorts, i1 + i))
                        part2 = added_pairs(part2, own, everywhere(shorts, i2 + i))
                sum0 = plus(sum0, as_floats(part0))
                if not alone:
                    sum1, sum2 = plus(sum1, as_floats(part1)), plus(sum2, as_floats(part2))
            sum0 = times(sum0, float_everywhere(sizes, r))
            put(found, r * count + first, times(neighbours_added(sum0), scale))
            if not alone:
                sum1 = times(sum1, float_everywhere(sizes, r1))
                sum2 = times(sum2, float_everywhere(sizes, r2))
                put(found, r1 * count + first, times(neighbours_added(sum1), scale))
                put(found, r2 * count + first, times(neighbours_added(sum2), scale))
        at += 8 * width + 32


@merged
def _group(low, high, low_2, high_2, numbers, sizes, group):
    """Eight rows' products with a group of x."""
    at = GROUP * group
    part = added_fours(no_integers(), low, everywhere(numbers, at))
    part = added_fours(part, high, everywhere(numbers, at + 8))
    part = added_fours(part, low_2, everywhere(numbers, at + 16))
    part = added_fours(part, high_2, everywhere(numbers, at + 24))
    return times(as_floats(part), everywhere(sizes, 2 * group))


def _of_4_bits(x, weights, at, found):
    numbers, sizes, sums = x
    rows, count = found.shape
    groups = sums.shape[1]
    for first in range(0, count, 8):
        for r in range(0, rows, 3):
            alone, r1, r2 = r + 1 == rows, min(r + 1, rows - 1), min(r + 2, rows - 1)
            sum0, sum1, sum2 = no_floats(), no_floats(), no_floats()
            for g in range(groups):
                w = at + 5 * GROUP * g
                for line in range(0, 5 * GROUP, LINE):
                    fetch(weights, w + line + AHEAD)
                scale = twice(eight_halves(weights, w + 128))
                least = beside_zeros(eight_halves(weights, w + 144))
                both, both_2 = bytes_of(weights, w), bytes_of(weights, w + 64)
                low, high = low_halves(both), high_halves(both)
                low_2, high_2 = low_halves(both_2), high_halves(both_2)
                g0 = r * groups + g
                sum0 = added(sum0, _group(low, high, low_2, high_2, numbers, sizes, g0), scale)
                sum0 = added(sum0, float_everywhere(sums, g0), least)
                if not alone:
                    g1, g2 = r1 * groups + g, r2 * groups + g
                    sum1 = added(sum1, _group(low, high, low_2, high_2, numbers, sizes, g1), scale)
                    sum1 = added(sum1, float_everywhere(sums, g1), least)
                    sum2 = added(sum2, _group(low, high, low_2, high_2, numbers, sizes, g2), scale)
                    sum2 = added(sum2, float_everywhere(sums, g2), least)
            put(found, r * count + first, neighbours_added(sum0))
            if not alone:
                put(found, r1 * count + first, neighbours_added(sum1))
                put(found, r2 * count + first, neighbours_added(sum2))
        at += 5 * GROUP * groups


KINDS = {
    types.float32: _of_32_bits,
    types.uint16: _of_16_bits,
    types.int8: _of_8_bits,
    types.uint8: _of_4_bits,
}


@overload(block_sums, jit_options={"error_model": "numpy", "fastmath": FREE_SUMS})
def _block_sums(x, weights, at, found):
    return KINDS[weights.dtype]


def stretch(weights, width):
    """Numbers of the array that eight rows of so many weights take."""


@overload(stretch)
def _stretch(weights, width):
    if weights.dtype == types.uint8:
        return lambda weights, width: 5 * width
    behind = {types.float32: 0, types.uint16: 16, types.int8: 32}[weights.dtype]
    return lambda weights, width: 8 * width + behind


@compiled
def share(crew, step, x, weights, plus_, out):
    """This thread's share of out (rows, width) = x @ weights.T + plus_ (rows or 1, width), x (rows, in)."""
    rows, width = out.shape
    tasks, done = (width + BLOCK - 1) // BLOCK, 0
    if not is_open(crew, step, tasks):
        return
    prepared_x, step_by = prepared(x, weights), stretch(weights, x.shape[1])
    found = np.empty((rows, BLOCK), np.float32)
    task = next_task(crew, step, tasks)
    while task < tasks:
        first, last = task * BLOCK, min((task + 1) * BLOCK, width)
        if last - first == BLOCK:
            block_sums(prepared_x, weights, first // 8 * step_by, found)
        else:
            some = np.empty((rows, (last - first + 7) // 8 * 8), np.float32)
            block_sums(prepared_x, weights, first // 8 * step_by, some)
            found[:, : some.shape[1]] = some
        for r in range(rows):
            own = min(r, len(plus_) - 1)
            for i in range(last - first):
                out[r, first + i] = found[r, i] + plus_[own, first + i]
        done += 1
        task = next_task(crew, step, tasks)
    finish(crew, step, done, tasks)


@compiled
def _room(x, width, threads):
    return new_counts(1, threads), np.empty((len(x), width), np.float32)


@compiled
def product(x, weights, plus_):
    """x (rows, in) float32 @ weights.T (see above) + plus_ (rows or 1, width): (rows, width)."""
    counts, out = _room(x, plus_.shape[1], 1)
    share(crew_of(counts, 0, 1), np.int64(0), x, weights, plus_, out)
    return out


@compiled_on_all_cores
def product_on_all_cores(x, weights, plus_, threads):
    """The same by so many of numba's threads."""
    counts, out = _room(x, plus_.shape[1], threads)
    for thread in prange(threads):
        share(crew_of(counts, thread, threads), np.int64(0), x, weights, plus_, out)
    return out
