"""The compiled loops against the numpy path, which the oracle and pencil and paper hold to the method."""

from __future__ import annotations

import threading
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo import kernels
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.cooccurrence.trie import LARGE_PAGE
from dynamo.kernels import masked_joint as cells_module
from dynamo.kernels import thresholds
from dynamo.sampling import exact, joint
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose

ROOT = Path(__file__).resolve().parents[2]


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
        min_kept_mass=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        adaptive_first=draw(st.booleans()),
    )
    if options.mask_strength == 0 or draw(st.integers(0, 3)) == 0:
        table = None
    context = rng.integers(0, vocab, draw(st.integers(0, 6))).tolist()
    return logits, context, table, options, float(rng.random()), [0] if draw(st.booleans()) else []


def near(ours, theirs):
    return np.allclose(ours, theirs, rtol=1e-12, atol=1e-300)


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_logits_are_the_same_numbers(problem, dtype):
    logits, *_, options, _, _ = problem
    half = torch.from_numpy(logits).to(dtype)
    ours, theirs = top_candidates(half, options), top_candidates(half.float().double(), options)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    assert near(ours.f, theirs.f)


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf])
def test_logits_that_are_no_numbers_are_seen_wherever_they_stand(wrong):
    logits = np.zeros((2, 5000), np.float32)
    logits[1, 4321] = wrong
    with pytest.raises(ValueError, match="logits are not finite"):
        top_candidates(logits, SamplingOptions())
    with pytest.raises(ValueError, match="logits are not finite"):
        top_candidates(np.full((1, 9), -np.inf, np.float32), SamplingOptions())


@given(st.integers(0, 10**6), st.sampled_from([1, 127, 128, 4096, 5001]), st.sampled_from([1, 50, 256]))
@settings(max_examples=200, deadline=None)
def test_top_k_is_a_stable_sort(seed, vocab, k):
    """Runs, falls and plateaus, where a floor from the blocks' largest could go wrong; both zeros are one."""
    rng = np.random.default_rng(seed)
    row = rng.normal(size=vocab).astype(np.float32)
    row = [row, np.sort(row), np.sort(row)[::-1].copy(), np.round(row), row * 0.0][seed % 5]
    candidates = top_candidates(row[None], SamplingOptions(top_k=k))
    expected = np.argsort(-row, kind="stable")[:k]
    np.testing.assert_array_equal(candidates.ids[0], expected)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 4), st.floats(0.0, 0.9))
@settings(max_examples=200, deadline=None)
def test_pruned_product_is_every_cell_above_the_threshold(seed, k, m, above):
    f = np.sort(np.random.default_rng(seed).dirichlet(np.full(k, 0.3), size=m), axis=1)[:, ::-1].copy()
    dense = f[0]
    for row in f[1:]:
        dense = dense[..., None] * row
    cells, values = cells_module.product_above(f, above)
    expected = np.flatnonzero(dense > above)
    if len(expected):
        np.testing.assert_array_equal(cells, expected)
        np.testing.assert_array_equal(values, dense.ravel()[expected])
    else:
        assert cells.tolist() == [0] and values.tolist() == [dense.ravel()[0]], "the largest is always told"


@given(st.lists(st.integers(0, 2**20), min_size=256, max_size=256), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_otsus_bin_is_the_first_of_the_best_by_exact_fractions(counts, kept):
    counts = np.array(counts) * (np.random.default_rng(kept).random(256) < 0.5**kept)
    if np.count_nonzero(counts) < 2:
        counts[[10, 200]] = 3, 7
    below, mass = counts.cumsum(), (counts * np.arange(256)).cumsum()
    total, whole = int(below[-1]), int(mass[-1])
    variance = [
        Fraction((int(s) * total - int(n) * whole) ** 2, int(n) * (total - int(n))) if 0 < n < total else 0
        for n, s in zip(below, mass, strict=True)
    ]
    assert thresholds.otsu_bin(counts) == variance.index(max(variance)) == joint.otsu_bin(counts)


@given(st.integers(1, 2**28), st.integers(1, 2**28), st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_exact_ties_of_large_counts_go_to_the_first_bin(outer, inner, apart):
    """By symmetry the splits around the middle bin are equally good; floats would round them apart."""
    counts = np.zeros(256, np.int64)
    counts[[10, 10 + apart, 10 + 2 * apart]] = outer, inner, outer
    assert thresholds.otsu_bin(counts) == 10


@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(2, 4), st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_adaptive_stage_keeps_what_the_whole_grid_keeps(seed, k, m, width):
    rng = np.random.default_rng(seed)
    grid = rng.random(k**m) ** rng.integers(1, 12) * (rng.random(k**m) < rng.choice([0.02, 0.3, 1.0]))
    cells = np.flatnonzero(grid)
    values = grid[cells]
    if not len(cells):
        return
    keep, done = thresholds.adaptive_keep(cells, values, m, k, width)
    theirs = joint.adaptive_keep(joint.ranks_of(cells, m, k), values, k, width)
    assert not done or (keep == theirs).all()
    assert done or len(cells) * width**m > thresholds.CROWD, "left to the grid only where it is crowded"


def test_crowded_grids_are_left_to_numpy_and_decided_alike():
    """125,000 cells of much the same value: blurring them one by one is the slower way."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 60)).astype(np.float32) * 0.05
    for first in (False, True):
        options = SamplingOptions(threshold=0.0, temperature=1.0, adaptive_first=first)
        (_, ours), (_, theirs) = on_both((logits, [3, 4], None, options, 0.5, []))
        assert len(theirs.weights) > 1000 and ours.tokens == theirs.tokens
        np.testing.assert_array_equal(ours.survivors, theirs.survivors)


def test_a_table_of_lower_order_is_refused_before_it_is_read_beyond_its_end():
    table = CooccurrenceTable.count([np.arange(30)], order=2, vocab_size=30)
    with pytest.raises(ValueError, match="tuples of 2 to 2 tokens, got tuples of 3"):
        on_both((np.zeros((3, 30), np.float32), [], table, SamplingOptions(), 0.5, []))


def test_large_fans_are_searched_and_found_as_the_read_ones_are():
    rng = np.random.default_rng(1)
    table = CooccurrenceTable.count([rng.integers(0, 2000, 60_000)], order=2, vocab_size=2000)
    fans = table.levels[0].fans
    assert fans.min() < cells_module.SEARCH_COST < fans.max(), "at one candidate both ways are gone"
    for k in (1, 2, 50):
        logits = rng.normal(size=(2, 2000)).astype(np.float32)
        options = SamplingOptions(threshold=0.0, top_k=k, adaptive=False, max_order=2)
        (_, ours), (_, theirs) = on_both((logits, [], table, options, 0.5, []))
        np.testing.assert_array_equal(ours.survivors, theirs.survivors)


def test_threads_share_a_table_and_decide_as_alone():
    rng = np.random.default_rng(2)
    table = CooccurrenceTable.count([rng.zipf(1.3, 20_000) % 200], order=3, vocab_size=200)
    options = SamplingOptions(threshold=0.05)
    steps = [(rng.normal(size=(3, 200)).astype(np.float32) * 3, rng.random()) for _ in range(60)]

    def run(into):
        for logits, uniform in steps * 5:
            into.append(choose(top_candidates(logits, options), Context(200), table, options, uniform).tokens)

    alone, others = [], [[] for _ in range(6)]
    run(alone)
    threads = [threading.Thread(target=run, args=(into,)) for into in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(into == alone for into in others) and len(set(alone)) > 10


def test_what_the_loops_walk_lies_in_one_piece_that_begins_a_large_page():
    table = CooccurrenceTable.count([np.arange(300) % 7, np.arange(40) % 3], order=3, vocab_size=9)
    first, *others = table.trie(3)
    assert first.ctypes.data % LARGE_PAGE == 0
    assert all(array.base is first.base and array.ctypes.data % 64 == 0 for array in others)
    assert not any(np.shares_memory(*pair) for pair in combinations([first, *others], 2))


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 4))
def test_exact_modes_drafts_are_those_of_the_numpy_path(problem, rank):
    logits, context, table, options, uniform, special = problem
    if len(logits) < 2:
        return
    seen, drafts = Context(logits.shape[1], tuple(special)), []
    seen.add(context)
    for using in (kernels.loops(), None):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kernels, "loops", lambda using=using: using)
            candidates = top_candidates(logits, options)
            token = int(candidates.ids[0, rank % candidates.ids.shape[1]])
            drafts.append(exact.propose(candidates, token, table, seen, options, lambda: uniform, 4))
    ours, theirs = drafts
    assert [draft.token for draft in ours] == [draft.token for draft in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_allclose(mine.q, other.q, rtol=1e-9)
