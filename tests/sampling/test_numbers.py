"""Numbers at their limits, in numpy and in the compiled loops: nothing is ever drawn from NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hostile import BRIEF, refusal
from hypothesis import given
from hypothesis import strategies as st

from dynamo import kernels
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.exact import propose, verify
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose

LOOPS = kernels.loops()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["numba", "numpy"])
def path(request, monkeypatch):
    take(monkeypatch, request.param)
    return request.param


def take(patch: pytest.MonkeyPatch, path: str) -> None:
    patch.setattr(kernels, "loops", lambda: LOOPS if path == "numba" else None)


def step(logits, table=None, uniform=0.5, **options):
    """One decision; every number in it must be a number."""
    options = SamplingOptions(**options)
    candidates = top_candidates(logits, options)
    assert np.isfinite(candidates.f).all() and np.allclose(candidates.f.sum(axis=1), 1)
    decision = choose(candidates, Context(logits.shape[1]), table, options, uniform)
    assert np.isfinite(decision.weights).all() and np.isfinite(decision.probabilities).all()
    assert all(math.isfinite(value) for each in decision.backoffs for value in each[2:])
    assert 1 <= decision.order <= len(logits)
    assert all(0 <= token < logits.shape[1] for token in decision.tokens)
    return decision


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_that_are_no_number_are_refused_with_the_remedy(path, value, dtype):
    for place in (0, 5, 9):
        logits = torch.zeros(3, 10, dtype=dtype)
        logits[1, place] = value
        said = refusal(lambda logits=logits: step(logits))
        assert "not finite" in said and "float32 or bfloat16" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_exact_mode_refuses_them_alike(path, value):
    options = SamplingOptions(exact=True)
    logits = torch.zeros(1, 10)
    logits[0, 3] = value
    context = Context(10)
    assert "not finite" in refusal(lambda: verify(logits, (), context, options, lambda: 0.5))


def test_a_row_of_nothing_but_minus_infinity_is_refused(path):
    assert "not finite" in refusal(lambda: step(torch.full((2, 10), -math.inf)))


def test_minus_infinity_forbids_a_token_and_nothing_else(path):
    logits = torch.full((3, 10), -math.inf)
    logits[:, 4] = 1.0
    for uniform in (0.0, 0.5, math.nextafter(1, 0)):
        assert step(logits, uniform=uniform, threshold=0.0).tokens == (4, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_at_its_limits_is_drawn_from(path, dtype):
    limits = torch.finfo(dtype)
    logits = torch.tensor([[limits.max, limits.min, 0.0, limits.tiny, -limits.tiny]] * 3, dtype=dtype)
    for temperature in (0.0, 5e-324, 1e-100, 0.7, 1e300):
        for threshold in (0.0, 0.5):
            decision = step(logits, temperature=temperature, threshold=threshold, uniform=0.0)
            assert decision.tokens[0] == 0


def test_a_mask_that_leaves_nothing_backs_off_to_one_token(path):
    seen_apart = CooccurrenceTable.count([np.array([0, 1]), np.array([2, 3])], vocab_size=10)
    logits = torch.zeros(3, 10)
    logits[:, 5] = 9.0  # 5 follows nothing in the table
    decision = step(logits, seen_apart, top_k=1)
    assert decision.order == 1 and decision.tokens == (5,)
    assert [each.reason for each in decision.backoffs] == ["mask", "mask"]
    assert decision.kept_mass == 0 and decision.joint.best == 0


def test_a_vocabulary_of_one_token_is_spelled(path):
    table = CooccurrenceTable.count([np.zeros(9, np.int64)], vocab_size=1)
    for mask in (None, table):
        for temperature in (0.0, 0.7):
            decision = step(torch.zeros(3, 1), mask, temperature=temperature, repetition_penalty=1.0)
            assert decision.tokens == (0, 0, 0)


@pytest.mark.parametrize("top_k", [10, 11, 1000, 2**62])
def test_more_candidates_than_the_vocabulary_are_all_of_it(path, top_k):
    logits = torch.linspace(-1, 1, 30).reshape(3, 10)
    assert top_candidates(logits, SamplingOptions(top_k=top_k)).ids.shape == (3, 10)
    step(logits, top_k=top_k, threshold=0.01)


EXTREMES = {
    "temperature": (0.0, 5e-324, 1e-300, 1e300),
    "mask_strength": (0.0, 5e-324, 1e-300, 50.0, 1e300),
    "repetition_penalty": (1.0, 1e10, 1e300),
    "threshold": (0.0, 5e-324, 1.0),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in EXTREMES.items() for v in values])
def test_an_option_at_its_limit_keeps_every_weight_a_number(path, name, value):
    rng = np.random.default_rng(0)
    table = CooccurrenceTable.count([rng.integers(0, 12, 3000)], vocab_size=12)
    for seed in range(20):
        torch.manual_seed(seed)
        options = {"threshold": 0.1, name: value}
        for mask in (None, table):
            decision = step(torch.randn(3, 12) * 4, mask, uniform=rng.random(), **options)
            assert decision.weights.sum() > 0


def test_a_penalty_that_leaves_no_weight_still_draws_a_token(path):
    """Every candidate was seen and the penalty is too large for a float: all weights would be zero."""
    options = SamplingOptions(repetition_penalty=1.7e308, top_k=3, temperature=2.0, threshold=1.0)
    context = Context(3)
    context.add([0, 1, 2])
    for uniform in (0.0, 0.5, 0.999):
        candidates = top_candidates(torch.tensor([[0.0, -600.0, -1200.0]]), options)
        decision = choose(candidates, context, None, options, uniform)
        assert decision.tokens[0] == 0


@pytest.mark.parametrize("strength", [1.0, 1e300])
def test_exact_mode_drafts_at_the_limits_of_its_options(path, strength):
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    table = CooccurrenceTable.count([rng.integers(0, 12, 3000)], vocab_size=12)
    for penalty in (1.0, 1.7e308):
        options = SamplingOptions(exact=True, mask_strength=strength, repetition_penalty=penalty)
        context = Context(12)
        context.add(list(range(12)))
        candidates = top_candidates(torch.randn(3, 12), options)
        first = int(candidates.ids[0, 0])
        drafts = propose(candidates, first, table, context, options, rng.random, 2)
        assert all(np.isfinite(draft.q).all() for draft in drafts)
        verdict = verify(torch.randn(len(drafts) + 1, 12), drafts, context, options, rng.random)
        assert np.isfinite(verdict.probabilities).all()


@BRIEF
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=True), min_size=6, max_size=6), min_size=2, max_size=3),
    st.floats(0, 2),
    st.floats(0, 1),
    st.integers(1, 9),
)
def test_any_logits_are_drawn_from_or_refused(rows, temperature, threshold, top_k):
    logits = torch.tensor(rows, dtype=torch.float32)
    finite = bool(np.isfinite(np.asarray(rows, np.float32).max(axis=1)).all())
    with pytest.MonkeyPatch.context() as patch:
        for path in ("numba", "numpy"):
            take(patch, path)
            said = refusal(lambda: step(logits, temperature=temperature, threshold=threshold, top_k=top_k))
            assert (said is None) == finite
