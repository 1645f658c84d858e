"""A second opinion on the sampler: the dynamic multi-token step, written to be checked by eye.

One call of `choose` is one step of Algorithm 1 (arXiv 2405.00888): the heads' logits in, a chunk of 1..n
tokens out. Everything is dense, float64 and slow: the joint is a full grid, the mask is asked and the
penalty counted cell by cell, Otsu compares exact fractions. It shares no code with the package, so that
agreement with it is evidence. It knows no model, no random generator (the uniform is an argument) and no end
of text (cutting a chunk is the engine's work).
"""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Ratio = Callable[[tuple[int, ...]], float]
Conditional = Callable[[tuple[int, ...]], np.ndarray]
BINS = 256


@dataclass(frozen=True)
class OracleOptions:
    """The fields of the package's sampling options that a single step reads; either object may be passed."""

    threshold: float = 0.5
    top_k: int = 50
    temperature: float = 0.7
    repetition_penalty: float = 1.1
    mask_strength: float = 1.0
    adaptive: bool = True
    blur: int = 3  # 1 = no blur
    max_order: int = 3
    min_kept_mass: float = 0.0
    adaptive_first: bool = False


@dataclass(frozen=True)
class Decision:
    """What one step decided, and why the higher orders were refused."""

    tokens: tuple[int, ...]  # as many as `order`
    order: int
    backoffs: tuple[tuple[int, str, float, float], ...]  # (order, reason, best value, threshold), as tried
    kept_mass: float | None  # of the last joint tried; 1.0 without a mask, None without a joint
    cells: dict[tuple[int, ...], float]  # tokens -> normalised weight, in rank order (row-major)


def top_k(logits: np.ndarray, k: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities of the `k` largest logits (vocab,), largest first, ties to the lower id."""
    ids = np.argsort(-logits, kind="stable")[:k]
    scaled = logits[ids] / temperature
    weights = np.exp(scaled - scaled.max())
    return ids, weights / weights.sum()


def product(probabilities: list[np.ndarray]) -> np.ndarray:
    """f_1 (x) .. (x) f_m, one axis per head."""
    joint = np.ones(())
    for f in probabilities:
        joint = joint[..., None] * f
    return joint


def tokens_at(index: Iterable[int], ids: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(int(ids[axis][rank]) for axis, rank in enumerate(index))


def apply_mask(
    joint: np.ndarray, ids: list[np.ndarray], ratio: Ratio, strength: float
) -> tuple[np.ndarray, float]:
    """`joint * M ** strength`, renormalised over the grid, and the mass of `joint` on seen tuples.

    Where no cell is left the grid comes back all zero.
    """
    masked = np.zeros_like(joint)
    kept_mass = 0.0
    for index in np.ndindex(joint.shape):
        m = ratio(tokens_at(index, ids))
        if m > 0:
            masked[index] = joint[index] * m**strength
            kept_mass += float(joint[index])
    total = masked.sum()
    return (masked / total if total > 0 else masked), kept_mass


def chain(f_1: np.ndarray, ids: list[np.ndarray], conditional: Conditional) -> np.ndarray:
    """f_1(x_1) p(x_2 | x_1) p(x_3 | x_1, x_2) .., one axis per head."""
    joint = f_1
    for _ in ids[1:]:
        rows = [conditional(tokens_at(index, ids)) for index in np.ndindex(joint.shape)]
        joint = joint[..., None] * np.array(rows).reshape(*joint.shape, -1)
    return joint


def blur(grid: np.ndarray, width: int = 3) -> np.ndarray:
    """[.25 .5 .25] along every axis, edge values repeated; width 1 leaves the grid as it is."""
    if width not in (1, 3):
        raise ValueError(f"blur must be 1 (none) or 3, got {width}")
    if width == 1:
        return grid
    for axis in range(grid.ndim):
        line = np.moveaxis(grid, axis, 0)
        before = np.concatenate([line[:1], line[:-1]])
        after = np.concatenate([line[1:], line[-1:]])
        grid = np.moveaxis(0.25 * before + 0.5 * line + 0.25 * after, 0, axis)
    return grid


def bins_of(values: np.ndarray) -> np.ndarray:
    """The bin (0..255) of each value, among 256 equal bins from 0 to the largest value."""
    return np.minimum((values / values.max() * BINS).astype(int), BINS - 1)


def otsu_bin(values: np.ndarray) -> int | None:
    """The first bin after which a split has the largest between-class variance; None for one value only."""
    if values.min() == values.max():
        return None
    counts = [int(count) for count in np.bincount(bins_of(values).ravel(), minlength=BINS)]
    best_bin, best_variance = 0, Fraction(0)
    n_low, n_high = 0, sum(counts)
    sum_low, sum_high = 0, sum(i * count for i, count in enumerate(counts))
    for b, count in enumerate(counts):
        n_low, n_high = n_low + count, n_high - count
        sum_low, sum_high = sum_low + b * count, sum_high - b * count
        if count == 0 or n_high == 0:  # an empty bin makes no other split than the one before it
            continue
        variance = n_low * n_high * (Fraction(sum_low, n_low) - Fraction(sum_high, n_high)) ** 2
        if variance > best_variance:
            best_bin, best_variance = b, variance
    return best_bin


def adaptive_threshold(joint: np.ndarray, blurred: np.ndarray) -> np.ndarray:
    """`joint` where its blurred value lies above Otsu's bin, else 0; unchanged if nothing would be left."""
    b = otsu_bin(blurred)
    if b is None:
        return joint
    kept = np.where(bins_of(blurred) > b, joint, 0.0)
    return kept if kept.any() else joint


def static_threshold(joint: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(joint > threshold, joint, 0.0)


def both_thresholds(joint: np.ndarray, threshold: float, options: OracleOptions) -> np.ndarray:
    """The static and the adaptive stage, in the order asked for; the grid must hold a positive cell."""
    if options.adaptive and options.adaptive_first:
        joint = adaptive_threshold(joint, blur(joint, options.blur))
    joint = static_threshold(joint, threshold)
    if options.adaptive and not options.adaptive_first and joint.any():
        joint = adaptive_threshold(joint, blur(joint, options.blur))
    return joint


def penalise(
    joint: np.ndarray,
    ids: list[np.ndarray],
    context: AbstractSet[int],
    penalty: float,
    special_ids: AbstractSet[int],
) -> np.ndarray:
    """Divide a cell once for each of its tokens (not special) that is in `context` or earlier in the cell."""
    penalised = joint.copy()
    for index in map(tuple, np.argwhere(joint > 0)):
        tokens = tokens_at(index, ids)
        for position, token in enumerate(tokens):
            if token not in special_ids and (token in context or token in tokens[:position]):
                penalised[index] /= penalty
    return penalised


def draw(weights: np.ndarray, uniform: float) -> int:
    """The first cell (row-major) whose cumulative weight exceeds `uniform * total`."""
    cumulative = np.cumsum(weights.ravel())
    for cell, mass in enumerate(cumulative):
        if mass > uniform * cumulative[-1]:
            return cell
    raise AssertionError(f"no weight to draw from, or uniform {uniform} outside [0, 1)")


def greedy(weights: np.ndarray) -> int:
    """The largest cell, the first in row-major order on ties."""
    return int(np.argmax(weights))


def choose(
    logits: np.ndarray,
    context: Iterable[int],
    ratio: Ratio | None,
    options: OracleOptions,
    uniform: float,
    special_ids: AbstractSet[int] = frozenset(),
    conditional: Conditional | None = None,
) -> Decision:
    """One step: logits (heads, vocab) in, the chunk and the reasons for its length out.

    `context` holds the ids of the prompt and of all that was emitted; `ratio` gives M of a tuple of ids (0 =
    unseen), None means no mask; `uniform` lies in [0, 1). `conditional` gives the probabilities of the next
    head's candidates after some tokens: the joint is then its chain, as it is, and there is no mask.
    """
    logits = np.asarray(logits, dtype=np.float64)
    context = set(context)
    # Greedy choice still needs a joint to threshold: it is built at temperature 1.
    temperature = 1.0 if options.temperature == 0 else options.temperature
    ranked = [top_k(row, options.top_k, temperature) for row in logits]
    use_mask = ratio is not None and options.mask_strength > 0
    highest = 1 if options.threshold >= 1 else min(options.max_order, len(ranked))

    backoffs: list[tuple[int, str, float, float]] = []
    kept_mass: float | None = None

    def decide(weights: np.ndarray, ids: list[np.ndarray]) -> Decision:
        cell = greedy(weights) if options.temperature == 0 else draw(weights, uniform)
        tokens = tokens_at(np.unravel_index(cell, weights.shape), ids)
        total = weights.sum()
        drawable = np.argwhere(weights > 0)
        cells = {tokens_at(index, ids): float(weights[tuple(index)] / total) for index in drawable}
        return Decision(tokens, len(tokens), tuple(backoffs), kept_mass, cells)

    for m in range(highest, 1, -1):
        ids = [head_ids for head_ids, _ in ranked[:m]]
        threshold = options.threshold ** (m - 1)

        joint, kept_mass = product([f for _, f in ranked[:m]]), 1.0
        if conditional is not None:
            joint = chain(ranked[0][1], ids, conditional)
        elif use_mask:
            joint, kept_mass = apply_mask(joint, ids, ratio, options.mask_strength)
        best = float(joint.max())
        if best == 0:
            backoffs.append((m, "mask", 0.0, threshold))
            continue
        if kept_mass < options.min_kept_mass:
            backoffs.append((m, "kept_mass", best, threshold))
            continue

        survivors = both_thresholds(joint, threshold, options)
        if not survivors.any():
            backoffs.append((m, "threshold", best, threshold))
            continue

        penalised = penalise(survivors, ids, context, options.repetition_penalty, special_ids)
        if not (penalised > threshold).any():
            backoffs.append((m, "penalty", float(penalised.max()), threshold))
            continue
        return decide(penalised, ids)

    ids, f_1 = [ranked[0][0]], ranked[0][1]
    return decide(penalise(f_1, ids, context, options.repetition_penalty, special_ids), ids)


def choose_anchored(
    logits: np.ndarray,
    context: Iterable[int],
    ratio: Ratio | None,
    options: OracleOptions,
    uniforms: Iterable[float],
    special_ids: AbstractSet[int] = frozenset(),
    conditional: Conditional | None = None,
) -> Decision:
    """One anchored step: the first token by the first head alone, then one token more at a time.

    `conditional` gives the candidates' probabilities after the tokens before; without it they are the joint's
    own, with `ratio` as in `choose`. Takes a uniform for each token drawn. `cells` are the last draw's.
    """
    logits, context, uniforms = np.asarray(logits, dtype=np.float64), set(context), iter(uniforms)
    temperature = 1.0 if options.temperature == 0 else options.temperature
    ranked = [top_k(row, options.top_k, temperature) for row in logits]
    use_mask = ratio is not None and options.mask_strength > 0
    highest = 1 if options.threshold >= 1 else min(options.max_order, len(ranked))

    def penalised(weights: np.ndarray, ids: np.ndarray) -> np.ndarray:
        repeats = [int(i) not in special_ids and (int(i) in context or int(i) in tokens) for i in ids]
        return weights / np.where(repeats, options.repetition_penalty, 1.0)

    def cells_of(weights: np.ndarray, ids: np.ndarray) -> dict[tuple[int, ...], float]:
        ranks = np.flatnonzero(weights)
        return {(*tokens, int(ids[rank])): float(weights[rank] / weights.sum()) for rank in ranks}

    def drawn(weights: np.ndarray) -> int:
        return greedy(weights) if options.temperature == 0 else draw(weights, next(uniforms))

    tokens: tuple[int, ...] = ()
    ids, f = ranked[0]
    weights = penalised(f, ids)
    cells = cells_of(weights, ids)
    tokens = (int(ids[drawn(weights)]),)
    backoffs, kept_mass, best_so_far = (), None, 1.0
    for m in range(2, highest + 1):
        ids, f = ranked[m - 1]
        threshold = options.threshold ** (m - 1)
        kept_mass = 1.0
        if conditional is not None:
            c = conditional(tokens)
        elif use_mask:
            ratios = np.array([ratio((*tokens, int(i))) for i in ids])
            kept_mass = float(f[ratios > 0].sum())
            c = f * np.where(ratios > 0, ratios, 0.0) ** options.mask_strength * (ratios > 0)
            c = c / c.sum() if c.sum() > 0 else c
        else:
            c = f
        best = best_so_far * float(c.max())
        left = np.where(best_so_far * c > threshold, c, 0.0)
        weights = penalised(left, ids)
        heaviest = best_so_far * float(weights.max())
        if best == 0:
            backoffs = ((m, "mask", 0.0, threshold),)
        elif kept_mass < options.min_kept_mass:
            backoffs = ((m, "kept_mass", best, threshold),)
        elif not left.any():
            backoffs = ((m, "threshold", best, threshold),)
        elif not heaviest > threshold:
            backoffs = ((m, "penalty", heaviest, threshold),)
        if backoffs:
            break
        best_so_far, cells = best, cells_of(weights, ids)
        tokens = (*tokens, int(ids[drawn(weights)]))
    return Decision(tokens, len(tokens), backoffs, kept_mass, cells)
