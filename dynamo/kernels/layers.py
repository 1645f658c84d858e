"""Layers as GPT-NeoX has them on CPU in float32, one after the other or side by side, for one text's few new
positions (`dynamo.decoding.packed` in one loop).

For a handful of positions the operators' calls take longer than their sums. Sums are taken in any order, so
results agree with torch's up to rounding; what is not a finite number stays one.
"""

from __future__ import annotations

import numpy as np

from dynamo.kernels.attention import attend
from dynamo.kernels.compiling import compiled, compiled_for_sums, merged
from dynamo.kernels.exponentials import exponential
from dynamo.kernels.products import product

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
# erfc(z) = t (a1 + t (a2 + ..)) exp(-z^2), t = 1 / (1 + p z), within 1.5e-7: Abramowitz and Stegun, 7.1.26
ERFC_P, ROOT_HALF = np.float32(0.3275911), np.float32(0.5**0.5)
ERFC = tuple(map(np.float32, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)))


@compiled_for_sums
def _normed(x, eps):
    """Rows without their mean and of variance 1."""
    out = np.empty_like(x)
    width = np.float32(x.shape[1])
    for i in range(len(x)):
        total, squares = ZERO, ZERO
        for d in range(x.shape[1]):
            total += x[i, d]
        mean = total / width
        # A second look: the difference of the mean square and the squared mean would lose digits.
        for d in range(x.shape[1]):
            squares += (x[i, d] - mean) * (x[i, d] - mean)
        scale = ONE / np.sqrt(squares / width + np.float32(eps))
        for d in range(x.shape[1]):
            out[i, d] = (x[i, d] - mean) * scale
    return out


@compiled_for_sums
def _scaled(x, gain, shift):
    out = np.empty_like(x)
    for i in range(len(x)):
        for d in range(x.shape[1]):
            out[i, d] = x[i, d] * gain[d] + shift[d]
    return out


@compiled_for_sums
def _gelu(x, decays, powers):
    """x times the normal distribution's share below x, in place. decays, powers: room for as many numbers."""
    for i in range(len(x)):
        decays[i] = -HALF * x[i] * x[i]
    exponential(decays, powers)
    for i in range(len(x)):
        t = ONE / (ONE + ERFC_P * ROOT_HALF * abs(x[i]))
        upper = t * (ERFC[0] + t * (ERFC[1] + t * (ERFC[2] + t * (ERFC[3] + t * ERFC[4])))) * decays[i]
        x[i] = HALF * x[i] * (upper if x[i] < 0 else ONE + ONE - upper)


@merged
def _layer(
    x, normed, norms, project, expand, contract, biases, rotary, keys, values, start, scaling, queries
):
    """A layer's output at the last `queries` of x (new, hidden), whose keys and values go to the cache."""
    hidden, late = x.shape[1], len(x) - queries
    inner = biases.shape[1] - 4 * hidden
    # GPT-NeoX's parallel residual: attention and the MLP both read the layer's input, each by its own norm.
    projected = product(_scaled(normed, norms[0], norms[1]), project, biases[:, : 3 * hidden])
    # Attention's output and the MLP's inner values end to end: one product with `contract` adds up both.
    joined = np.empty((queries, hidden + inner), np.float32)
    joined[:, :hidden] = attend(projected, rotary[0], rotary[1], keys, values, start, scaling, queries)
    bias = biases[:, 3 * hidden : 3 * hidden + inner]
    wide = product(_scaled(normed[late:], norms[2], norms[3]), expand, bias)
    decays, powers = np.empty(inner, np.float32), np.empty(inner, np.int32)
    for i in range(queries):
        _gelu(wide[i], decays, powers)
        joined[i, hidden:] = wide[i]
    out = product(joined, contract, biases[:, 3 * hidden + inner :])
    out += x[late:]
    return out


@compiled
def parallel_layers(
    x, n, apart, eps, norms, project, expand, contract, biases, rotary, memory, slot, start, scaling, queries
):
    """The first `n` of some layers over x (new, hidden): one after the other, the last one's output at all
    positions, (1, new, hidden); or of each its own over the same x at the last `queries`, if `apart`,
    (n, queries, hidden).

    By layer: norms (4, hidden), gain and shift of the input's and of the second norm; matrices as in
    `products`: project (3 hidden, hidden), queries, keys, values, each by head, expand (inner, hidden),
    contract (hidden, hidden + inner), of attention's output and the inner values; biases (1, ..), of the
    three end to end. rotary: cos, sin as for `attend`; memory (2, layers, heads, capacity, width).
    """
    wanted = queries if apart else len(x)
    out = np.empty((n if apart else 1, wanted, x.shape[1]), np.float32)
    states, normed = x, _normed(x, eps)  # (new, hidden): norms of one input differ only in gain and shift
    for i in range(n):
        found = _layer(
            states, normed, norms[i], project[i], expand[i], contract[i], biases[i],
            rotary, memory[0, slot + i], memory[1, slot + i], start, scaling, wanted,
        )  # fmt: skip
        out[i if apart else 0] = found
        if not apart and i + 1 < n:
            states, normed = found, _normed(found, eps)
    return out
