"""Streams of tokens for the tests of tables, and what a double loop over a Counter makes of them."""

from collections import Counter
from fractions import Fraction

import numpy as np

BLOCKS = [[0, 1, 0, 1, 2], [0, 1]]


def random_blocks(seed, vocab_size, lengths):
    """Zipf-like ids, so that some tuples are frequent and many occur once."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocab_size + 1)
    return [rng.choice(vocab_size, length, p=weights / weights.sum()) for length in lengths]


def naive_counts(blocks, order):
    counts = Counter()
    for block in blocks:
        ids = [int(i) for i in block]
        for start in range(len(ids) - order + 1):
            counts[tuple(ids[start : start + order])] += 1
    return counts


def naive_ratio(blocks, ids):
    tuples, tokens = naive_counts(blocks, len(ids)), naive_counts(blocks, 1)
    ratio = Fraction(tuples[tuple(ids)], sum(tuples.values()))
    for i in ids:
        ratio /= Fraction(tokens[(i,)], sum(tokens.values()))
    return float(ratio)


def counts_of(table, order):
    ids, counts = table.tuples(order)
    return dict(zip(map(tuple, ids.tolist()), counts.tolist(), strict=True))
