"""Layers as Llama has them, one after the other or side by side, for one text's few new positions on CPU.

One call from the first layer to the last: threads share out every step (`dynamo.kernels.sharing`), and start
once, as starting them takes longer than many of the products. What is short, as norms and rounding, each does
for itself.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynamo.kernels.attention import attend_by_head, keep, room_for_attention
from dynamo.kernels.compiling import compiled, compiled_for_sums, compiled_on_all_cores, merged
from dynamo.kernels.exponentials import exponential
from dynamo.kernels.norms import rms_normed
from dynamo.kernels.products import BLOCK, block_sums, prepared, share, stretch
from dynamo.kernels.sharing import crew_of, finish, is_open, new_counts, next_task

ONE = np.float32(1)
STEPS = 6  # of a layer


@compiled_for_sums
def _gate(gate, wide, decays, powers):
    """wide *= silu(gate), all (count,). decays, powers: room for as many numbers."""
    for i in range(len(gate)):
        decays[i] = -abs(gate[i])
    exponential(decays, powers)
    for i in range(len(gate)):
        wide[i] *= gate[i] * (decays[i] if gate[i] < 0 else ONE) / (ONE + decays[i])


@compiled
def _share_gated(crew, step, x, weights, out):
    """This thread's share of silu(gate) * wide, out (rows, inner): both are products with `weights`."""
    rows, inner = out.shape
    tasks, done = inner // BLOCK, 0
    if not is_open(crew, step, tasks):
        return
    prepared_x = prepared(x, weights)
    step_by = stretch(weights, x.shape[1])
    gate, wide = np.empty((rows, BLOCK), np.float32), np.empty((rows, BLOCK), np.float32)
    decays, powers = np.empty(rows * BLOCK, np.float32), np.empty(rows * BLOCK, np.int32)
    gates, wides = gate.reshape(-1), wide.reshape(-1)
    task = next_task(crew, step, tasks)
    while task < tasks:
        block_sums(prepared_x, weights, task * BLOCK // 8 * step_by, gate)
        block_sums(prepared_x, weights, (inner + task * BLOCK) // 8 * step_by, wide)
        _gate(gates, wides, decays, powers)
        for r in range(rows):
            for i in range(BLOCK):
                out[r, task * BLOCK + i] = wide[r, i]
        done += 1
        task = next_task(crew, step, tasks)
    finish(crew, step, done, tasks)


@merged
def _share_attention(crew, step, projected, place, room, out):
    """This thread's share of keys and values for the cache, and then of attention, (queries, hidden)."""
    cos, sin, keys, values, start, scaling = place
    tasks, done = len(keys), 0
    task = next_task(crew, step, tasks)
    while task < tasks:
        keep(projected, cos, sin, keys, values, start, task)
        done += 1
        task = next_task(crew, step, tasks)
    finish(crew, step, done, tasks)
    tasks, done = out.shape[1] // keys.shape[2], 0
    task = next_task(crew, step + 1, tasks)
    while task < tasks:
        attend_by_head(projected, cos, sin, keys, values, start, scaling, task, room, out)
        done += 1
        task = next_task(crew, step + 1, tasks)
    finish(crew, step + 1, done, tasks)


@merged
def _layer(crew, step, x, eps, gains, matrices, bias, place, rooms, out):
    """This thread's share of a layer, from x (new, hidden) to out (queries, hidden). place: rotary cos and
    sin, the layer's keys and values, where the new positions begin, scaling."""
    project, output, expand, contract = matrices
    (projected, attended, between, gated), room = rooms
    queries = len(out)
    attended, between, gated = attended[:queries], between[:queries], gated[:queries]
    share(crew, step, rms_normed(x, gains[0], eps), project, bias, projected)
    _share_attention(crew, step + 1, projected, place, room, attended)
    share(crew, step + 3, attended, output, x[len(x) - queries :], between)
    _share_gated(crew, step + 4, rms_normed(between, gains[1], eps), expand, gated)
    share(crew, step + 5, gated, contract, between, out)


@merged
def _layers(crew, x, n, first, apart, eps, gains, matrices, biases, place, shared, out):
    """This thread's share of `layers_of_a_pass`."""
    project, output, expand, contract = matrices
    cos, sin, memory, start, scaling = place
    room = room_for_attention(out.shape[1], memory.shape[4], start + len(x))
    for i in range(n):
        layer = first + i
        parts = project[layer], output[layer], expand[layer], contract[layer]
        here = cos, sin, memory[0, layer], memory[1, layer], start, scaling
        source = x if apart or i == 0 else out[(i - 1) % 2]
        target = out[i] if apart else out[i % 2]
        _layer(crew, STEPS * i, source, eps, gains[layer], parts, biases[layer], here, (shared, room), target)


@merged
def _room(x, n, apart, queries, projected, attended, inner, threads):
    new, hidden = x.shape
    shared = (
        np.empty((new, projected), np.float32),
        np.empty((new, attended), np.float32),
        np.empty((new, hidden), np.float32),
        np.empty((new, inner), np.float32),
    )
    counts = new_counts(n * STEPS, threads)
    return counts, shared, np.empty((n if apart else 2, queries, hidden), np.float32)


@compiled_on_all_cores
def layers_of_a_pass(x, n, first, apart, queries, inner, eps, gains, matrices, biases, place, threads):
    """`n` layers from `first` on over x (new, hidden): the last one's output at all positions, (1, new,
    hidden); or of each its own over the same x at the last `queries`, if `apart`, (n, queries, hidden).

    Of all layers, float32: gains (layers, 2, hidden) of both norms; matrices: for queries, keys and values,
    for attention's output, for gate and inner values, back from these, (layers, ..) each as in `products`;
    biases (layers, 1, projected) of the first of them. place: cosines and sines as for `attention.attend`,
    memory (2, layers, heads, capacity, width), where the new positions begin, scaling. threads: of numba's.
    """
    memory = place[2]
    attended = biases.shape[2] - 2 * memory.shape[2] * memory.shape[4]
    counts, shared, out = _room(x, n, apart, queries, biases.shape[2], attended, inner, threads)
    for thread in prange(threads):
        crew = crew_of(counts, thread, threads)
        _layers(crew, x, n, first, apart, eps, gains, matrices, biases, place, shared, out)
    return out if apart else out[(n - 1) % 2 : (n - 1) % 2 + 1]
