"""The compiled loops against the numpy path, which the oracle and pencil and paper hold to the method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo import kernels
from dynamo.cooccurrence import CooccurrenceTable
from dynamo.sampler import Context, SamplingOptions, choose, top_candidates

ROOT = Path(__file__).resolve().parents[1]


def on_both(problem):
    """What the loops and what numpy make of the same step."""
    return [decided(problem, using) for using in (kernels.loops(), None)]


def decided(problem, using):
    logits, context, table, options, uniform, special = problem
    seen = Context(logits.shape[1], tuple(special))
    seen.add(context)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "loops", lambda: using)
        candidates = top_candidates(logits, options)
        return candidates, choose(candidates, seen, table, options, uniform)


@st.composite
def problems(draw):
    """Steps of up to five heads over tables of their own, with ties, padding and every option."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads = draw(st.integers(1, 5))
    vocab = draw(st.sampled_from([3, 9, 40, 300] if heads < 4 else [3, 7]))
    scale = draw(st.sampled_from([0.3, 1.0, 3.0, 8.0]))
    logits = (rng.normal(size=(heads, vocab)) * scale).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    counted = vocab - draw(st.sampled_from([0, 1]))  # the model's vocabulary may be padded
    documents = [rng.zipf(1.4, draw(st.integers(1, 400))) % counted for _ in range(3)]
    table = CooccurrenceTable.count(documents, order=max(heads, 2), vocab_size=counted)
    options = SamplingOptions(
        threshold=draw(st.sampled_from([0.0, 0.003, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])),
        top_k=draw(st.sampled_from([1, 2, 5, 20, 50])),
        temperature=draw(st.sampled_from([0.0, 1e-308, 0.3, 0.7, 1.0, 1.7])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.1, 2.0])),
        mask_strength=draw(st.sampled_from([0.0, 0.5, 1.0, 1.3, 40.0])),
        adaptive=draw(st.booleans()),
        blur=draw(st.sampled_from([1, 3])),
        max_order=draw(st.integers(1, 5)),
        min_kept_mass=draw(st.sampled_from([0.0, 0.0, 0.3])),
        adaptive_first=draw(st.booleans()),
    )
    if options.mask_strength == 0 or draw(st.integers(0, 3)) == 0:
        table = None
    context = rng.integers(0, vocab, draw(st.integers(0, 6))).tolist()
    return logits, context, table, options, float(rng.random()), [0] if draw(st.booleans()) else []


def near(ours, theirs):
    return np.allclose(ours, theirs, rtol=1e-12, atol=1e-300)


@settings(max_examples=600, deadline=None)
@given(problems())
def test_loops_decide_as_numpy_does(problem):
    (ours_of_head, ours), (theirs_of_head, theirs) = on_both(problem)
    np.testing.assert_array_equal(ours_of_head.ids, theirs_of_head.ids)
    assert near(ours_of_head.f, theirs_of_head.f)
    assert [b[:2] for b in ours.backoffs] == [b[:2] for b in theirs.backoffs]
    assert near([b[2:] for b in ours.backoffs], [b[2:] for b in theirs.backoffs])
    assert (ours.kept_mass is None) == (theirs.kept_mass is None)
    assert ours.kept_mass is None or near(ours.kept_mass, theirs.kept_mass)
    np.testing.assert_array_equal(ours.survivors, theirs.survivors)
    assert near(ours.weights, theirs.weights)
    assert near(ours.probabilities, theirs.probabilities)
    edges = np.cumsum(theirs.weights / theirs.weights.sum())
    if np.abs(edges - problem[4]).min() > 1e-9:
        assert ours.tokens == theirs.tokens
    if ours.joint is not None:
        assert (ours.joint.ranks is None) == (theirs.joint.ranks is None)
        if ours.joint.ranks is not None:
            np.testing.assert_array_equal(ours.joint.ranks, theirs.joint.ranks)
            assert near(ours.joint.values, theirs.joint.values)
