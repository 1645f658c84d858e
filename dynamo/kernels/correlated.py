"""The correlator's distributions of a few rows (`dynamo.sampling.correlated` in loops), float32 on CPU."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from dynamo.kernels.compiling import compiled, compiled_for_sums, compiled_on_all_cores, merged
from dynamo.kernels.exponentials import exponential
from dynamo.kernels.products import share
from dynamo.kernels.sharing import crew_of, finish, new_counts, next_task
from dynamo.kernels.vectors import fetch_for_later

ZERO, ONE = np.float32(0), np.float32(1)
EPS = np.finfo(np.float32).eps  # as torch's rms_norm has it
LINE = 16  # float32 numbers that come together
FEW = 8  # candidates of a task
BLOCK = 1024  # numbers that stay in the nearest cache


@compiled_for_sums
def likeliest(logits, temperature):
    """The largest of each row's softmax: (rows, vocab) -> (rows,)."""
    found = np.empty(len(logits))
    powers, values = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for row in range(len(logits)):
        largest, rise, total = logits[row, 0], ONE / np.float32(temperature), 0.0
        for i in range(logits.shape[1]):
            largest = max(largest, logits[row, i])
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


@compiled_for_sums
def _normed_rows(embedding, chunks, seen):
    """Embedding rows (vocab, hidden) of the last `seen` tokens of chunks (n, j), divided by their root mean
    square: (seen, n, hidden)."""
    hidden = embedding.shape[1]
    rows = np.empty((seen, len(chunks), hidden), np.float32)
    for place in range(seen):
        for n in range(len(chunks)):
            token, squares = embedding[chunks[n, chunks.shape[1] - seen + place]], ZERO
            for d in range(hidden):
                squares += token[d] * token[d]
            scale = ONE / np.sqrt(squares / np.float32(hidden) + EPS)
            for d in range(hidden):
                rows[place, n, d] = token[d] * scale
    return rows


@compiled_for_sums
def _silu(x):
    out = np.empty_like(x)
    for n in range(len(x)):
        for i in range(x.shape[1]):
            out[n, i] = x[n, i] / (ONE + np.exp(-x[n, i]))
    return out


@compiled_for_sums
def _dot(a, b):
    total = ZERO
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@merged
def _share_rises(crew, state, rows, matrices, output, ids, inner, back_states, rises):
    """This thread's share of what candidates' logits rise by, (n, k); inner (1 + seen, n, rank) and
    back_states (n, hidden) are room."""
    from_hidden, from_tokens, back = matrices
    _, me, threads = crew
    seen, n, hidden = rows.shape
    rank = inner.shape[2]
    for c in range(me, len(ids), threads):  # rows far apart, which are read last
        for d in range(0, hidden, LINE):
            fetch_for_later(output, ids[c] * hidden + d)
    nothing = np.zeros((1, max(rank, hidden)), np.float32)
    if len(from_hidden):
        share(crew, 0, state.reshape(1, -1), from_hidden, nothing[:, :rank], inner[0, :1])
        before = inner[0, :1]
    else:
        before = nothing[:, :rank]
    for place in range(seen):
        share(crew, 1 + place, rows[place], from_tokens[place], before, inner[1 + place])
        before = inner[1 + place]
    share(crew, 1 + seen, _silu(inner[seen]), back, nothing[:, :hidden], back_states)
    tasks, done = (len(ids) + FEW - 1) // FEW, 0
    task = next_task(crew, 2 + seen, tasks)
    while task < tasks:
        for c in range(task * FEW, min((task + 1) * FEW, len(ids))):
            for row in range(n):
                rises[row, c] = _dot(output[ids[c]], back_states[row])
        done += 1
        task = next_task(crew, 2 + seen, tasks)
    finish(crew, 2 + seen, done, tasks)


@compiled
def _room(chunks, rank, matrices, hidden, k, threads):
    seen, n = len(matrices[1]), len(chunks)
    return (
        new_counts(3 + seen, threads),
        np.empty((1 + seen, n, rank), np.float32),
        np.empty((n, hidden), np.float32),
        np.empty((n, k), np.float32),
    )


@compiled_for_sums
def _softmax(log_f, rises, temperature):
    """Of log_f (k,) + rises (n, k) / temperature."""
    found = np.empty(rises.shape)
    for row in range(len(rises)):
        largest, total = -np.inf, 0.0
        for c in range(len(log_f)):
            found[row, c] = log_f[c] + np.float64(rises[row, c]) / temperature
            largest = max(largest, found[row, c])
        for c in range(len(log_f)):
            found[row, c] = math.exp(found[row, c] - largest)
            total += found[row, c]
        for c in range(len(log_f)):
            found[row, c] /= total
    return found


@compiled_on_all_cores
def _rises(state, rows, counts, matrices, output, ids, inner, states, rises, threads):
    for thread in prange(threads):
        crew = crew_of(counts, thread, threads)
        _share_rises(crew, state, rows, matrices, output, ids, inner, states, rises)


def after_chunks(state, chunks, embedding, rank, matrices, output, ids, log_f, temperature, threads):
    """Of candidates ids (k,), whose logarithms without these tokens are log_f (k,), after chunks of tokens
    (n, j): (n, k), distributions.

    state (hidden,) of the head; embedding (vocab, hidden), of the tokens; matrices, flat as in `products`: to
    inner states from the head's, (rank, hidden), empty where it is not seen, from each of a chunk's last
    tokens, (rank, hidden), and back, (hidden, rank); output (vocab, hidden). threads: of numba's.
    """
    rows = _normed_rows(embedding, chunks, len(matrices[1]))
    counts, inner, states, rises = _room(chunks, rank, matrices, len(state), len(ids), threads)
    _rises(state, rows, counts, matrices, output, ids, inner, states, rises, threads)
    return _softmax(log_f, rises, temperature)
