"""The correlator's distributions of a few rows (`dynamo.sampling.correlated` in loops), float32 on CPU."""

from __future__ import annotations

import math

import numpy as np

from dynamo.kernels.compiling import compiled_for_sums

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
LEAST = np.float32(-80)  # exponentials of less are as good as none
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
TAYLOR = tuple(np.float32(1 / math.factorial(power)) for power in range(2, 7))
MANTISSA_BITS = np.int32(23)
BLOCK = 1024  # numbers that stay in the nearest cache


@compiled_for_sums
def likeliest(logits, temperature):
    """The largest of each row's softmax, (rows, vocab) -> (rows,)."""
    found = np.empty(len(logits))
    powers, values = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for row in range(len(logits)):
        largest = logits[row, 0]
        for logit in logits[row]:
            largest = logit if logit > largest else largest
        rise, total = LOG2_E / np.float32(temperature), 0.0
        for begin in range(0, logits.shape[1], BLOCK):
            some = logits[row, begin : begin + BLOCK]
            # exp(x) = 2^n p, p a polynomial; n goes to the exponent's bits.
            for i in range(len(some)):
                x = max((some[i] - largest) * rise, LEAST)
                powers[i] = np.int32(x - HALF)  # towards zero, so x is rounded
                r = (x - np.float32(powers[i])) * LN_2
                p = ((TAYLOR[4] * r + TAYLOR[3]) * r + TAYLOR[2]) * r + TAYLOR[1]
                values[i] = ((p * r + TAYLOR[0]) * r + ONE) * r + ONE
            bits, part = values.view(np.int32), ZERO
            for i in range(len(some)):
                bits[i] += powers[i] << MANTISSA_BITS
            for i in range(len(some)):
                part += values[i]
            total += part
        found[row] = 1 / total
    return found


@compiled_for_sums
def conditionals(inner, back, output, ids, log_f, temperature):
    """Of candidates ids (k,) after the tokens that led to inner states (n, rank): (n, k), distributions.

    back (hidden, rank); output (vocab, hidden); log_f (k,): without these tokens.
    """
    hidden, rank = back.shape
    found = np.empty((len(inner), len(ids)))
    u, state = np.empty(rank, np.float32), np.empty(hidden, np.float32)
    for row in range(len(inner)):
        for i in range(rank):
            u[i] = inner[row, i] / (ONE + np.exp(-inner[row, i]))
        for d in range(hidden):
            total = ZERO
            for i in range(rank):
                total += back[d, i] * u[i]
            state[d] = total
        largest = -np.inf
        for c in range(len(ids)):
            embedding, total = output[ids[c]], ZERO
            for d in range(hidden):
                total += embedding[d] * state[d]
            found[row, c] = log_f[c] + np.float64(total) / temperature
            largest = max(largest, found[row, c])
        sum_ = 0.0
        for c in range(len(ids)):
            found[row, c] = math.exp(found[row, c] - largest)
            sum_ += found[row, c]
        for c in range(len(ids)):
            found[row, c] /= sum_
    return found
