"""Corrections of the joint and the anchored draw against the dense oracle, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import choose as oracle_choose
from oracle import choose_anchored as oracle_anchored
from sampler_steps import ratio_of, same_decision, smoothed_ratio_of, steps, table_of

from dynamo import kernels
from dynamo.cooccurrence.smoothing import Smoothing
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.sampling import corrections
from dynamo.sampling.anchored import choose_anchored
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose

RATIOS = {"none": lambda table: None, "table": ratio_of, "smoothed": smoothed_ratio_of}


@pytest.fixture(scope="module", autouse=True, params=["loops", "numpy"])
def path(request):
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "numpy":
            patched.setattr(kernels, "loops", lambda: None)
        yield


@st.composite
def corrected_steps(draw):
    """A random step under a random correction; its table smoothed by random strengths."""
    logits, context, table, options, uniform, special = draw(steps())
    options = replace(options, correction=draw(st.sampled_from(sorted(RATIOS))))
    if table is not None:
        k, d = draw(st.sampled_from([0.0, 0.3, 30.0])), draw(st.sampled_from([0.0, 0.4, 1.0]))
        smoothing = Smoothing((k,) * (table.order - 1), (d,) * (table.order - 1))
        table = CooccurrenceTable(table.unigrams, table.levels, smoothing=smoothing)
    return logits, context, table, options, uniform, special


def seen(logits, context, special):
    own = Context(logits.shape[1], tuple(special))
    own.add(context)
    return own


@settings(max_examples=120, deadline=None)
@given(corrected_steps())
def test_every_correction_equals_the_dense_oracle(step):
    logits, context, table, options, uniform, special = step
    ours = choose(top_candidates(logits, options), seen(logits, context, special), table, options, uniform)
    ratio = RATIOS[options.correction](table)
    oracle = oracle_choose(logits, context, ratio, options, uniform, special_ids=frozenset(special))
    share = same_decision(ours, oracle)
    if np.abs(np.cumsum(share) - uniform).min() > 1e-7:
        assert ours.tokens == oracle.tokens


@settings(max_examples=120, deadline=None)
@given(corrected_steps(), st.lists(st.floats(0, 0.999), min_size=4, max_size=4))
def test_the_anchored_draw_equals_the_dense_oracle(step, uniforms):
    logits, context, table, options, _, special = step
    options = replace(options, draw="anchored")
    own = seen(logits, context, special)
    ours = choose_anchored(top_candidates(logits, options), own, table, options, iter(uniforms).__next__)
    ratio = RATIOS[options.correction](table)
    oracle = oracle_anchored(logits, context, ratio, options, uniforms, special_ids=frozenset(special))
    if ours.tokens[:-1] == oracle.tokens[:-1]:  # otherwise a draw fell on the edge of two cells
        same_decision(ours, oracle)


@settings(max_examples=50, deadline=None)
@given(corrected_steps())
def test_threshold_0_grows_to_all_heads_and_threshold_1_to_one(step):
    logits, context, table, options, uniform, special = step
    own, candidates = seen(logits, context, special), top_candidates(logits, options)
    highest = min(options.max_order, len(logits))
    for draw in ("joint", "anchored"):
        all_heads = replace(options, threshold=0.0, min_kept_mass=0.0, draw=draw)
        one = replace(options, threshold=1.0, draw=draw)
        if draw == "joint":
            free, single = (choose(candidates, own, table, each, uniform) for each in (all_heads, one))
        else:
            free, single = (
                choose_anchored(candidates, own, table, each, lambda: uniform) for each in (all_heads, one)
            )
        assert free.order == highest or all(b.reason == "mask" for b in free.backoffs)
        if options.correction == "none":
            assert free.order == highest
        assert single.order == 1 and not single.backoffs and single.joint is None


@settings(max_examples=50, deadline=None)
@given(corrected_steps())
def test_a_joint_found_quickly_is_the_product_of_its_factors(step):
    """What the loops find of table and product is what `factors` say, chunk by chunk; conditionals, too."""
    logits, _, table, options, _, _ = step
    if len(logits) < 2:
        return
    candidates = top_candidates(logits, options)
    order, k = len(logits), candidates.ids.shape[1]
    own = corrections.correction_of(candidates, order, table, options)
    cells, values, _ = own.cells(0.0)
    grid = np.zeros(k**order)
    grid[cells] = values
    slow = np.zeros(k**order)
    for at, value in zip(*corrections.Correction._branches(own, 0.0), strict=True):
        slow[at] = value
    if not own.bounded and slow.any():
        slow /= slow.sum()
    np.testing.assert_allclose(grid, slow, rtol=1e-7, atol=1e-12)
    first = int(candidates.ids[0, 0])
    ids, p, kept = own.conditional([first])
    g = own.factors(np.array([[first]]))[0]
    g = g if own.bounded or not g.any() else g / g.sum()
    wanted = dict(zip(candidates.ids[1].tolist(), g, strict=True))
    assert p == pytest.approx([wanted[int(i)] for i in ids], rel=1e-7)
    assert sum(p) == pytest.approx(sum(wanted.values()), rel=1e-7) and 0 <= kept <= 1 + 1e-9


def test_smoothed_conditionals_sum_to_one_over_the_vocabulary():
    rng = np.random.default_rng(0)
    table = CooccurrenceTable.count([rng.zipf(1.5, 400) % 12 for _ in range(3)], order=3, vocab_size=12)
    everything = np.arange(12)
    p = (table.unigrams + 1) / (table.unigrams + 1).sum()
    for before in ([[3]], [[1, 2]], [[11, 11]]):
        assert (table.smoothed.ratios(np.array(before), everything)[0] * p).sum() == pytest.approx(1)


def test_smoothing_by_hand():
    """a b occurs 3 times and a c once; k 2, d .5: p(b|a) = (2.5 + (2 + 1) p(b)) / 6; b is 1/3 of 9 + 3."""
    table = table_of({(0, 1): 3, (0, 2): 1}, [3, 3, 3])
    table = CooccurrenceTable(table.unigrams, table.levels, smoothing=Smoothing((2.0,), (0.5,)))
    ratios = table.smoothed.ratios(np.array([[0], [1]]), np.array([1, 0]))
    assert ratios[0] == pytest.approx([(2.5 + 3 / 3) / 6 * 3, 3 / 6])
    assert ratios[1] == pytest.approx([1, 1])  # nothing is known after b


def test_fitted_smoothing_is_the_best_of_the_grid_for_text_like_the_held_out_one():
    """Held-out text of the same chain wants the counts; text of another wants the shorter contexts."""
    rng = np.random.default_rng(1)
    chain = rng.dirichlet(np.full(20, 0.1), 20)

    def text(length, rows):
        tokens = [0]
        for _ in range(length):
            tokens.append(int(rng.choice(20, p=rows[tokens[-1]])))
        return tokens

    table = CooccurrenceTable.count([text(4000, chain)], order=3, vocab_size=20)
    same = table.fitted([text(3000, chain)]).smoothing
    other = table.fitted([text(3000, np.full((20, 20), 0.05))]).smoothing
    assert same.strengths[0] < 10 and other.strengths[0] == pytest.approx(1e4)
    assert same.strengths[1] > same.strengths[0]  # a chain of pairs: the third token tells nothing more


def test_fitted_smoothing_comes_back_from_the_file(tmp_path):
    table = CooccurrenceTable.count([[1, 2, 3, 1, 2, 4]] * 3, order=3)
    table.save(tmp_path / "old")
    assert CooccurrenceTable.load(tmp_path / "old").smoothing is None
    fitted = table.fitted([[1, 2, 3, 4]])
    fitted.save(tmp_path / "new")
    assert CooccurrenceTable.load(tmp_path / "new").smoothing == fitted.smoothing
    with pytest.raises(ValueError, match="held-out"):
        table.fitted([[1, 2]])


def test_branches_that_cannot_exceed_the_threshold_are_not_looked_at():
    """What is above it is found all the same, and no cell left out is larger than the bound."""
    asked = []

    class Chain(corrections.Correction):
        name, bounded = "correlator", True

        def factors(self, tokens):
            asked.append(len(tokens))
            rng = [np.random.default_rng([5, *row]) for row in tokens.tolist()]
            return np.array([0.8 * each.dirichlet(np.full(6, 0.3)) for each in rng]).reshape(-1, 6)

    for seed in range(20):
        logits = np.random.default_rng(seed).normal(size=(3, 6))
        own = Chain(top_candidates(logits, SamplingOptions()), 3)
        everything = own.cells(0.0)[1]
        for above in (0.01, 0.2, 0.9):
            asked.clear()
            _, values, _ = own.cells(above)
            assert sorted(values) == sorted(everything[everything > above])
            assert everything[everything <= above].max() <= own.bound <= above
            assert asked[0] == (own.f[0] > above).sum() and asked[1] <= 1 / above
