from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from oracle import choose as oracle_choose
from sampler_steps import ratio_of, steps, table_of
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper

from dynamo import kernels
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose, choose_one


@pytest.fixture(scope="module", autouse=True, params=["loops", "numpy"])
def path(request):
    """Everything here holds for the compiled loops and for numpy."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "numpy":
            patched.setattr(kernels, "loops", lambda: None)
        assert (kernels.loops() is None) == (request.param == "numpy")
        yield


def run(logits, context, table, options, uniform, special):
    seen = Context(logits.shape[1], tuple(special))
    seen.add(context)
    return choose(top_candidates(logits, options), seen, table, options, uniform)


@settings(max_examples=250, deadline=None)
@given(steps())
def test_sampler_equals_the_dense_oracle(step):
    logits, context, table, options, uniform, special = step
    ours = run(*step)
    oracle = oracle_choose(logits, context, ratio_of(table), options, uniform, special_ids=frozenset(special))
    assert ours.order == oracle.order
    assert [(b.order, b.reason) for b in ours.backoffs] == [
        (m, reason) for m, reason, _, _ in oracle.backoffs
    ]
    for own, (_, _, best, threshold) in zip(ours.backoffs, oracle.backoffs, strict=True):
        assert own.best == pytest.approx(best, rel=1e-9) and own.threshold == pytest.approx(threshold)
    assert ours.kept_mass == (None if oracle.kept_mass is None else pytest.approx(oracle.kept_mass, rel=1e-9))
    drawable = ours.weights > 0
    cells = [tuple(cell) for cell in ours.survivors[drawable].tolist()]
    assert cells == list(oracle.cells)
    share = ours.weights[drawable] / ours.weights.sum()
    np.testing.assert_allclose(share, list(oracle.cells.values()), atol=1e-6)
    edges = np.cumsum(share)
    if np.abs(edges - uniform).min() > 1e-9:
        assert ours.tokens == oracle.tokens


@settings(max_examples=80, deadline=None)
@given(steps())
def test_threshold_0_emits_all_heads_where_the_mask_leaves_a_cell(step):
    logits, context, table, options, uniform, special = step
    options = replace(options, threshold=0.0, min_kept_mass=0.0)
    decision = run(logits, context, table, options, uniform, special)
    highest = min(options.max_order, len(logits))
    assert decision.order == highest or all(b.reason == "mask" for b in decision.backoffs)
    if table is None or options.mask_strength == 0:
        assert decision.order == highest


@settings(max_examples=80, deadline=None)
@given(steps())
def test_threshold_1_emits_one_token_and_draws_it_from_the_first_head(step):
    logits, context, table, options, uniform, special = step
    options = replace(options, threshold=1.0)
    decision = run(logits, context, table, options, uniform, special)
    alone = run(logits[:1], context, None, options, uniform, special)
    assert decision.order == 1 and not decision.backoffs and decision.joint is None
    assert decision.tokens == alone.tokens


def test_three_cells_by_hand():
    """Two heads, three tokens: f1 = (.5, .3, .2), f2 = (.6, .4, 0..).

    Ratios: (a,b) twice that of (b,a), (c,a) unseen. Product .5*.4 = .20 and .3*.6 = .18; masked .40 and .18,
    sum .58. Normalised .689655 and .310345; kept mass .20 + .18 = .38. At eps .5 only (a,b) is above .5.
    """
    f1, f2 = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.4, 1e-30])
    table = table_of({(0, 1): 2, (1, 0): 1}, [1, 1, 1])
    options = SamplingOptions(threshold=0.5, top_k=3, temperature=1.0, repetition_penalty=1.0)
    decision = run(np.log([f1, f2]), [], table, options, 0.999, [])
    assert decision.tokens == (0, 1)
    assert decision.kept_mass == pytest.approx(0.38)
    assert [cell.value for cell in decision.joint.top()] == pytest.approx([0.4 / 0.58, 0.18 / 0.58])
    # With (a, b) repeating a token of the context at penalty 1.5: .4598 is not above .5, so it backs off.
    refused = run(np.log([f1, f2]), [1], table, replace(options, repetition_penalty=1.5), 0.0, [])
    assert refused.order == 1
    assert refused.backoffs[0].reason == "penalty"
    assert refused.backoffs[0].best == pytest.approx(0.4 / 0.58 / 1.5)


def test_a_mask_that_keeps_everything_keeps_all_the_mass():
    """The kept shares of the product then sum to 1, or to a little less by rounding, which is no refusal."""
    table = table_of({(a, b): 1 for a in range(9) for b in range(9)}, [1] * 9)
    options = SamplingOptions(threshold=0.0, min_kept_mass=1.0)
    rng = np.random.default_rng(0)
    decisions = [run(rng.normal(size=(2, 9)), [], table, options, 0.5, []) for _ in range(200)]
    assert all(decision.order == 2 for decision in decisions)
    assert min(decision.kept_mass for decision in decisions) < 1.0


def test_order_1_equals_transformers_warpers():
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = rng.normal(size=(1, 40)).astype(np.float32) * 4
        options = SamplingOptions(top_k=7, temperature=0.6, repetition_penalty=1.0)
        warped = TopKLogitsWarper(7)(None, TemperatureLogitsWarper(0.6)(None, torch.from_numpy(logits)))
        expected = warped.double().softmax(-1)[0]
        candidates = top_candidates(logits, options)
        _, weights = choose_one(candidates, Context(40), options)
        np.testing.assert_allclose(weights / weights.sum(), expected[candidates.ids[0]], atol=1e-6)
        assert expected.count_nonzero() == 7


def test_top_k_ties_go_to_the_lower_id():
    logits = np.array([[1.0, 3.0, 2.0, 2.0, 3.0, 2.0]])
    assert top_candidates(logits, SamplingOptions(top_k=4)).ids.tolist() == [[1, 4, 2, 3]]


def test_special_tokens_are_never_penalised():
    logits = np.log(np.array([[0.5, 0.5]]))
    options = SamplingOptions(top_k=2, temperature=1.0, repetition_penalty=4.0)
    both_seen = run(logits, [0, 1], None, options, 0.0, [0])
    assert (both_seen.weights / both_seen.weights.sum()).tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.slow
def test_frequencies_of_4000_draws_fit_the_masked_joint():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 6)).astype(np.float32)
    counts = {(a, b): 1 + 2 * ((3 * a + b) % 4) for a in range(6) for b in range(6) if (a + b) % 3}
    table = table_of(counts, [1] * 6)
    options = SamplingOptions(threshold=0.0, top_k=5, adaptive=False, repetition_penalty=1.2)
    decision = run(logits, [1, 2], table, options, 0.0, [])
    index = {tuple(cell): i for i, cell in enumerate(decision.survivors.tolist())}
    seen = Context(6)
    seen.add([1, 2])
    candidates = top_candidates(logits, options)
    counts = np.zeros(len(index))
    for uniform in rng.random(4000):
        counts[index[choose(candidates, seen, table, options, uniform).tokens]] += 1
    expected = decision.weights / decision.weights.sum() * 4000
    assert len(index) > 5 and stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5}, {"threshold": -0.1}, {"threshold": float("nan")}, {"top_k": 0}, {"top_k": 2.5},
        {"temperature": -1}, {"temperature": float("inf")}, {"repetition_penalty": 0.5},
        {"mask_strength": -1}, {"blur": 5}, {"max_order": 0}, {"max_order": 9}, {"min_kept_mass": 2},
        {"correction": "mask"}, {"draw": "both"},
    ],
)  # fmt: skip
def test_bad_option_is_refused_by_name_range_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value!r}"):
        SamplingOptions(**wrong)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("top_k", [1, 50])
def test_logits_that_are_no_numbers_are_named(wrong, top_k):
    logits = np.array([[0.0, 2.0, 1.0], [0.0, wrong, 1.0]])
    with pytest.raises(ValueError, match="logits are not finite"):
        top_candidates(logits, SamplingOptions(top_k=top_k))


def test_a_grid_too_large_to_compute_is_refused_with_the_remedy():
    logits = np.zeros((4, 60), dtype=np.float32)
    with pytest.raises(ValueError, match="top_k: "):
        run(logits, [], None, SamplingOptions(threshold=0.0, top_k=60, max_order=4), 0.5, [])


def test_impossible_tokens_are_never_drawn():
    logits = np.array([[-np.inf, 0.0, -np.inf]])
    assert run(logits, [], None, SamplingOptions(), 0.9999999, []).tokens == (1,)
