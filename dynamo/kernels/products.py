"""Products of few rows with weights in 16, 8 or 4 bits.

Eight rows of weights lie side by side, so that what a register holds are numbers of eight sums: each is
multiplied by the same numbers of x, and no sum is spread over a register. Weights are read once for three
rows of x.

With weights in 8 bits, each row of x is rounded to 16 bits by its own largest number: bfloat16, which
torch's kernels work in, has 8. With weights in 4 bits each 16 numbers along a row of x are rounded to 8 by
their own (llama.cpp: each 32). Products of integers add up exactly, and processors multiply and add two or
four times as many of them at a time as of floats.

A matrix (width, in) is one flat array, eight rows after the other (the last ones filled up with zeros), `in`
a multiple of 32. Of eight rows, by the array's type:
uint16: float16's bits, (in, 8); then 8 scales, float32.
int8: (in / 2, 8, 2); then 8 scales, float32.
uint8: of each group of 32 along the rows, bytes (4, 8, 4), each two numbers four apart, the first one lower;
then 8 scales and 8 least numbers, float16. A weight is a number * scale + least.
"""

from __future__ import annotations

import numpy as np
from numba import prange, types
from numba.extending import overload

from dynamo.kernels.compiling import FREE_SUMS, compiled, compiled_for_sums, compiled_on_all_cores
from dynamo.kernels.sharing import crew_of, finish, is_open, new_counts, next_task
from dynamo.kernels.vectors import (
    added,
    added_fours,
    added_products,
    as_floats,
    bytes_of,
    eight_floats,
    eight_halves,
    fetch,
    float_everywhere,
    four_everywhere,
    high_halves,
    low_halves,
    no_floats,
    no_integers,
    pair_everywhere,
    plus,
    put,
    shorts_of_bytes,
    times,
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
    """x (rows, in) as integers (rows x in,) times scales (rows,); and the integers' sums by group, (rows x
    groups,) float32. A row with a number that is not finite has not-a-number for its scale."""
    rows, width = x.shape
    shorts, scales = np.empty(rows * width, np.int16), np.empty(rows, np.float32)
    sums = np.empty(rows * (width // GROUP), np.float32)
    largest = np.empty(1, np.int32)
    for r in range(rows):
        # Sizes of floats are ordered as their bits are; what is no number has the largest.
        largest[0] = 0
        for bits in x[r].view(np.int32):
            largest[0] = max(largest[0], bits & SIZE)
        most = largest.view(np.float32)[0]
        scales[r] = most / LARGEST if largest[0] < INFINITE else np.float32(np.nan)
        steps = LARGEST / most if 0 < largest[0] < INFINITE else np.float32(0)
        own = shorts[r * width : (r + 1) * width]
        for i in range(width):
            own[i] = np.int16(np.rint(x[r, i] * steps))
        for group in range(width // GROUP):
            together = np.int32(0)
            for i in range(GROUP * group, GROUP * (group + 1)):
                together += own[i]
            sums[r * (width // GROUP) + group] = together
    return shorts, scales, sums


@compiled_for_sums
def _in_8_bits(x):
    """x (rows, in) as integers (rows x in,) times scales of halves of groups (rows, 2 groups), with the
    groups' sums (rows, groups), float32. A half with a number that is not finite has not-a-number for its
    scale."""
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
            own, together = numbers[r * width + first : r * width + first + HALF], np.int32(0)
            for i in range(HALF):
                own[i] = np.int8(np.rint(x[r, first + i] * steps))
                together += own[i]
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
    if weights.dtype == types.uint16:
        return lambda x, weights: _as_it_is(x)
    if weights.dtype == types.uint8:
        return lambda x, weights: _in_8_bits(x)
    return lambda x, weights: _in_16_bits(x)


def eight_sums(x, r, some, weights, at, found):
    """found (3 x 8,) = the products of up to three rows of x, from r on, and eight of weights."""


def _of_16_bits(x, r, some, weights, at, found):
    numbers, sizes, _ = x
    width = len(numbers) // len(sizes)
    scale = eight_floats(weights, at + 8 * width)
    i0 = r * width
    if some == 1:
        a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
        for i in range(0, width, 4):
            w, j = at + 8 * i, i0 + i
            fetch(weights, w + AHEAD // 2)
            a = added(a, eight_halves(weights, w), float_everywhere(numbers, j))
            b = added(b, eight_halves(weights, w + 8), float_everywhere(numbers, j + 1))
            c = added(c, eight_halves(weights, w + 16), float_everywhere(numbers, j + 2))
            d = added(d, eight_halves(weights, w + 24), float_everywhere(numbers, j + 3))
        put(found, 0, times(plus(plus(a, b), plus(c, d)), scale))
        return
    i1, i2 = i0 + width, i0 + (some - 1) * width
    a0, a1, a2 = no_floats(), no_floats(), no_floats()
    b0, b1, b2 = no_floats(), no_floats(), no_floats()
    for i in range(0, width, 2):
        if i % 4 == 0:
            fetch(weights, at + 8 * i + AHEAD // 2)
        even, odd = eight_halves(weights, at + 8 * i), eight_halves(weights, at + 8 * i + 8)
        a0 = added(a0, even, float_everywhere(numbers, i0 + i))
        b0 = added(b0, odd, float_everywhere(numbers, i0 + i + 1))
        a1 = added(a1, even, float_everywhere(numbers, i1 + i))
        b1 = added(b1, odd, float_everywhere(numbers, i1 + i + 1))
        a2 = added(a2, even, float_everywhere(numbers, i2 + i))
        b2 = added(b2, odd, float_everywhere(numbers, i2 + i + 1))
    put(found, 0, times(plus(a0, b0), scale))
    put(found, 8, times(plus(a1, b1), scale))
    put(found, 16, times(plus(a2, b2), scale))


def _of_8_bits(x, r, some, weights, at, found):
    shorts, sizes, _ = x
    width = len(shorts) // len(sizes)
    scale = eight_floats(weights, at + 8 * width)
    i0, i1, i2 = r * width, (r + min(1, some - 1)) * width, (r + some - 1) * width
    sum0, sum1, sum2 = no_floats(), no_floats(), no_floats()
    for first in range(0, width, GROUP):  # so few of them, as 32 bits hold not too many products
        part0, part1, part2 = no_integers(), no_integers(), no_integers()
        for line in range(0, 8 * GROUP, LINE):
            fetch(weights, at + 8 * first + line + AHEAD)
        if some == 1:
            for i in range(first, first + GROUP, 2):
                pairs = shorts_of_bytes(weights, at + 8 * i)
                part0 = added_products(part0, pairs, pair_everywhere(shorts, i0 + i))
            sum0 = plus(sum0, as_floats(part0))
        else:
            for i in range(first, first + GROUP, 2):
                pairs = shorts_of_bytes(weights, at + 8 * i)
                part0 = added_products(part0, pairs, pair_everywhere(shorts, i0 + i))
                part1 = added_products(part1, pairs, pair_everywhere(shorts, i1 + i))
                part2 = added_products(part2, pairs, pair_everywhere(shorts, i2 + i))
            sum0 = plus(sum0, as_floats(part0))
            sum1, sum2 = plus(sum1, as_floats(part1)), plus(sum2, as_floats(part2))
    put(found, 0, times(times(sum0, scale), float_everywhere(sizes, r)))
    if some > 1:
        put(found, 8, times(times(sum1, scale), float_everywhere(sizes, r + 1)))
        put(found, 16, times(times(sum2, scale), float_everywhere(sizes, r + some - 1)))


def _of_4_bits(x, r, some, weights, at, found):
    numbers, sizes, sums = x
    groups = sums.shape[1]
    width, r1, r2 = GROUP * groups, r + min(1, some - 1), r + some - 1
    i0, i1, i2 = r * width, r1 * width, r2 * width
    sum0, sum1, sum2 = no_floats(), no_floats(), no_floats()
    for g in range(groups):
        w = at + 5 * GROUP * g
        scale, least = eight_halves(weights, w + 128), eight_halves(weights, w + 144)
        for line in range(0, 5 * GROUP, LINE):
            fetch(weights, w + line + AHEAD)
        for h in range(2 * g, 2 * g + 2):
            part0, part1, part2 = no_integers(), no_integers(), no_integers()
            for j in range(HALF * h, HALF * (h + 1), 8):
                both = bytes_of(weights, w + 4 * (j - GROUP * g))
                low, high = low_halves(both), high_halves(both)
                part0 = added_fours(part0, low, four_everywhere(numbers, i0 + j))
                part0 = added_fours(part0, high, four_everywhere(numbers, i0 + j + 4))
                if some > 1:
                    part1 = added_fours(part1, low, four_everywhere(numbers, i1 + j))
                    part1 = added_fours(part1, high, four_everywhere(numbers, i1 + j + 4))
                    part2 = added_fours(part2, low, four_everywhere(numbers, i2 + j))
                    part2 = added_fours(part2, high, four_everywhere(numbers, i2 + j + 4))
            size = 2 * groups * r + h
            sum0 = added(sum0, times(as_floats(part0), scale), float_everywhere(sizes, size))
            if some > 1:
                size1, size2 = 2 * groups * r1 + h, 2 * groups * r2 + h
                sum1 = added(sum1, times(as_floats(part1), scale), float_everywhere(sizes, size1))
                sum2 = added(sum2, times(as_floats(part2), scale), float_everywhere(sizes, size2))
        sum0 = added(sum0, float_everywhere(sums, r * groups + g), least)
        if some > 1:
            sum1 = added(sum1, float_everywhere(sums, r1 * groups + g), least)
            sum2 = added(sum2, float_everywhere(sums, r2 * groups + g), least)
    put(found, 0, sum0)
    if some > 1:
        put(found, 8, sum1)
        put(found, 16, sum2)


KINDS = {types.uint16: _of_16_bits, types.int8: _of_8_bits, types.uint8: _of_4_bits}


@overload(eight_sums, jit_options={"error_model": "numpy", "fastmath": FREE_SUMS})
def _eight_sums(x, r, some, weights, at, found):
    return KINDS[weights.dtype]


def stretch(weights, width):
    """Numbers of the array that eight rows of so many weights take."""


@overload(stretch)
def _stretch(weights, width):
    if weights.dtype == types.uint8:
        return lambda weights, width: 5 * width
    behind = 16 if weights.dtype == types.uint16 else 32
    return lambda weights, width: 8 * width + behind


@compiled
def share(crew, step, x, weights, plus_, out):
    """This thread's share of out (rows, width) = x @ weights.T + plus_ (rows or 1, width), x (rows, in)."""
    rows, width = out.shape
    tasks, done = (width + BLOCK - 1) // BLOCK, 0
    if not is_open(crew, step, tasks):
        return
    prepared_x, last_plus = prepared(x, weights), len(plus_) - 1
    found, step_by = np.empty(24, np.float32), stretch(weights, x.shape[1])
    task = next_task(crew, step, tasks)
    while task < tasks:
        for first in range(task * BLOCK, min((task + 1) * BLOCK, width), 8):
            last = min(first + 8, width)
            for r in range(0, rows, 3):
                some = min(3, rows - r)
                eight_sums(prepared_x, r, some, weights, first // 8 * step_by, found)
                for j in range(some):
                    for at in range(first, last):
                        out[r + j, at] = found[8 * j + at - first] + plus_[min(r + j, last_plus), at]
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
