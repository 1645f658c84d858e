"""Random steps of the sampler, small enough for a dense oracle, and their tables as an oracle reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from dynamo.cooccurrence.smoothing import Smoothing
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.cooccurrence.trie import Level
from dynamo.sampling.options import SamplingOptions


def table_of(counts, unigrams, order=2):
    """A table of these counts, whether or not a text could have them; tuples' beginnings are in it too."""
    levels, parents, vocab = [], [(token,) for token in range(len(unigrams))], len(unigrams)
    for m in range(2, order + 1):
        cells = sorted(cell for cell in counts if len(cell) == m)
        fans = [sum(cell[:-1] == parent for cell in cells) for parent in parents]
        assert sum(fans) == len(cells)
        last = np.array([cell[-1] for cell in cells], np.uint16)
        own = np.array([counts[cell] for cell in cells], np.int64)
        levels.append(Level(np.append(0, np.cumsum(fans, dtype=np.int64)), last, own, own.sum(), vocab))
        parents = cells
    return CooccurrenceTable(np.array(unigrams), levels)


@st.composite
def steps(draw):
    """A random small step: logits, context, table, options, uniform."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vocab, heads = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    scale = draw(st.sampled_from([0.3, 1.0, 3.0, 8.0]))
    logits = rng.normal(size=(heads, vocab)) * scale
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    counts = {}
    for m in range(2, heads + 1):
        for cell in np.ndindex(*(vocab,) * m):
            if (m == 2 or cell[:-1] in counts) and rng.random() < density:
                counts[cell] = int(rng.gamma(0.7) * 3000 + 1)
    options = SamplingOptions(
        threshold=draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])),
        top_k=draw(st.integers(1, 10)),
        temperature=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.1, 2.0])),
        mask_strength=draw(st.sampled_from([0.0, 0.5, 1.0, 1.3])),
        adaptive=draw(st.booleans()),
        blur=draw(st.sampled_from([1, 3])),
        max_order=draw(st.integers(1, 4)),
        min_kept_mass=draw(st.sampled_from([0.0, 0.0, 0.3])),
        adaptive_first=draw(st.booleans()),
    )
    context = rng.integers(0, vocab, draw(st.integers(0, 6))).tolist()
    special = [0] if draw(st.booleans()) else []
    documents = [rng.zipf(1.3, draw(st.integers(1, 200))) % vocab]
    tables = {
        "none": lambda: None,
        "of any ratios": lambda: table_of(counts, rng.integers(1, 20, vocab), max(heads, 2)),
        "counted": lambda: CooccurrenceTable.count(documents, max(heads, 2), vocab_size=vocab),
    }
    table = tables[draw(st.sampled_from(list(tables)))]()
    return logits.astype(np.float32), context, table, options, float(rng.random()), special


def ratio_of(table):
    """M of a tuple for the oracle, from the table's own list of what it holds."""
    if table is None:
        return None
    listed = [table.tuples(order)[0] for order in range(2, table.order + 1)]
    ratios = {tuple(ids): m for of in listed for ids, m in zip(of.tolist(), table.ratio(of), strict=True)}
    return lambda tokens: ratios.get(tokens, 0.0)


def smoothed_ratio_of(table):
    """The same of smoothed counts, tuple by tuple from the formula, with plain dictionaries."""
    if table is None:
        return None
    smoothing = table.smoothing or Smoothing.default(table.order)
    unigrams = dict(enumerate(table.unigrams.tolist()))
    counts = {}
    for order in range(2, table.order + 1):
        ids, own = table.tuples(order)
        counts |= dict(zip(map(tuple, ids.tolist()), own.tolist(), strict=True))

    def p(tokens):
        if len(tokens) == 1:
            return (unigrams.get(tokens[0], 0) + 1) / (sum(unigrams.values()) + len(unigrams))
        alike = [other for other in counts if len(other) == len(tokens) and other[:-1] == tokens[:-1]]
        after = [counts[other] for other in alike]
        shorter = p(tokens[1:])
        if not after:
            return shorter
        k, d = smoothing.strengths[len(tokens) - 2], smoothing.discounts[len(tokens) - 2]
        evidence = max(counts.get(tokens, 0) - d, 0)
        return (evidence + (k + d * len(after)) * shorter) / (sum(after) + k)

    def ratio(tokens):
        own = 1.0
        for end in range(2, len(tokens) + 1):
            own *= p(tokens[:end]) / p(tokens[end - 1 : end])
        return own

    return ratio


def same_decision(ours, oracle):
    """Whatever the draw came to, it was made among the same cells for the same reasons."""
    assert ours.order == oracle.order
    assert [(b.order, b.reason) for b in ours.backoffs] == [(m, why) for m, why, _, _ in oracle.backoffs]
    for own, (_, _, best, threshold) in zip(ours.backoffs, oracle.backoffs, strict=True):
        assert own.threshold == pytest.approx(threshold)
        if own.at_most:
            assert best * (1 - 1e-9) <= own.best <= threshold
        else:
            assert own.best == pytest.approx(best, rel=1e-8)
    assert ours.kept_mass == (None if oracle.kept_mass is None else pytest.approx(oracle.kept_mass, rel=1e-9))
    drawable = ours.weights > 0
    assert [tuple(cell) for cell in ours.survivors[drawable].tolist()] == list(oracle.cells)
    share = ours.weights[drawable] / ours.weights.sum()
    np.testing.assert_allclose(share, list(oracle.cells.values()), atol=1e-6)
    return share
