"""The correlator's distributions of a few rows (`dynamo.sampling.correlated` in loops), float32 on CPU."""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from dynamo.kernels.compiling import compiled, compiled_for_sums
from dynamo.kernels.layers import exponential, row_product
from dynamo.kernels.products import block_sums, prepared
from dynamo.kernels.vectors import fetch_for_later

ZERO, ONE = np.float32(0), np.float32(1)
EPS = np.finfo(np.float32).eps  # as torch's rms_norm has it
LINE = 16  # float32 numbers that come together
BLOCK = 1024  # numbers that stay in the nearest cache


@compiled_for_sums
def likeliest(logits, first, temperature):
    """The largest of each row's softmax, which is at first (rows,): (rows, vocab) -> (rows,)."""
    found = np.empty(len(logits))
    powers, values = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for row in range(len(logits)):
        largest = logits[row, first[row]]
        rise, total = ONE / np.float32(temperature), 0.0
        for begin in range(0, logits.shape[1], BLOCK):
            some, part = logits[row, begin : begin + BLOCK], ZERO
            for i in range(len(some)):
                values[i] = (some[i] - largest) * rise
            exponential(values[: len(some)], powers)
            for i in range(len(some)):
                part += values[i]
            total += part
        found[row] = 1 / total
    return found


@compiled
def _row_product_by_eights(x, weights, out):
    found = np.empty((1, (len(out) + 7) // 8 * 8), np.float32)
    block_sums(prepared(x.reshape(1, -1), weights), weights, 0, found)
    out[:] = found[0, : len(out)]


def row_times(x, weights, out):
    """out (width,) = weights @ x (in,); weights (width, in) float32, or flat in 16 bits as in `products`."""


@overload(row_times)
def _row_times(x, weights, out):
    if weights.ndim == 2:
        return lambda x, weights, out: row_product(x, weights, out)
    return lambda x, weights, out: _row_product_by_eights(x, weights, out)


@compiled_for_sums
def conditionals(inner, back, output, ids, log_f, temperature):
    """Of candidates ids (k,) after the tokens that led to inner states (n, rank): (n, k), distributions.

    back (hidden, rank), as `row_times` reads it; output (vocab, hidden); log_f (k,): without these tokens.
    """
    rank, hidden = inner.shape[1], output.shape[1]
    found = np.empty((len(inner), len(ids)))
    u, state = np.empty(rank, np.float32), np.empty(hidden, np.float32)
    for row in range(len(inner)):
        for i in range(rank):
            u[i] = inner[row, i] / (ONE + np.exp(-inner[row, i]))
        row_times(u, back, state)
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


@compiled_for_sums
def after_chunk(state, chunk, embedding, rank, matrices, output, ids, log_f, temperature):
    """The same after one chunk of tokens (n,): (1, k).

    state (hidden,) of the head; embedding (vocab, hidden), of the tokens; matrices, as `row_times` reads
    them: to inner states from the head's, (rank, hidden), empty where it is not seen, from each of the
    chunk's last tokens, (rank, hidden), and back, (hidden, rank).
    """
    from_hidden, from_tokens, back = matrices
    seen, hidden = len(from_tokens), embedding.shape[1]
    for c in range(len(ids)):  # rows far apart, which are read last
        for d in range(0, hidden, LINE):
            fetch_for_later(output, ids[c] * hidden + d)
    inner, part = np.zeros((1, rank), np.float32), np.empty(rank, np.float32)
    if len(from_hidden):
        row_times(state, from_hidden, inner[0])
    row = np.empty(hidden, np.float32)
    for place in range(seen):
        token, squares = embedding[chunk[len(chunk) - seen + place]], ZERO
        for d in range(hidden):
            squares += token[d] * token[d]
        scale = ONE / np.sqrt(squares / np.float32(hidden) + EPS)
        for d in range(hidden):
            row[d] = token[d] * scale
        row_times(row, from_tokens[place], part)
        for i in range(rank):
            inner[0, i] += part[i]
    return conditionals(inner, back, output, ids, log_f, temperature)
