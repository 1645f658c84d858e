"""Exponentials of many float32 numbers at a time."""

from __future__ import annotations

import numpy as np

from dynamo.kernels.compiling import compiled_for_sums

LEAST = np.float32(-80)  # exponentials of less are as good as none
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
TAYLOR = tuple(np.float32(1 / factorial) for factorial in (24, 120, 720))
SIXTH = np.float32(1 / 6)
MANTISSA_BITS, SIGN = np.int32(23), np.int32(31)
SIZE, LEAST_BITS = np.int32(0x7FFFFFFF), np.int32(-0x80000000)  # of a float32's bits


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
    total, bits, most = ZERO, scores.view(np.int32), LEAST_BITS
    # A comparison would pass over not-a-number and go on; a sum becomes one, or infinite.
    for j in range(len(scores)):
        total += scores[j]
    if not abs(total) < np.inf:
        return np.float32(np.nan)
    for j in range(len(bits)):  # integers that are ordered as the floats of these bits are
        most = max(most, np.int32(bits[j] ^ ((bits[j] >> SIGN) & SIZE)))
    powers[0] = most ^ ((most >> SIGN) & SIZE)
    largest = powers[:1].view(np.float32)[0]
    for j in range(len(scores)):
        scores[j] -= largest  # 0 or less, so no exponential overflows
    exponential(scores, powers)
    total = ZERO
    for j in range(len(scores)):
        total += scores[j]
    return ONE / total
