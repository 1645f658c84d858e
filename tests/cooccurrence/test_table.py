"""The co-occurrence table against pencil and paper, and against a double loop over a Counter.

The stream of the hand-worked cases is two documents, 0 1 0 1 2 and 0 1: seven tokens (0: 3, 1: 3, 2: 1), five
adjacent pairs (01: 3, 10: 1, 12: 1), three triples (010, 101, 012).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import BLOCKS, counts_of, naive_counts, naive_ratio, random_blocks

from dynamo.cooccurrence.table import CooccurrenceTable


def search_the_grid(table, heads):
    """What `candidates` must find, by asking for the ratio of every cell."""
    grid = np.stack(np.meshgrid(*heads, indexing="ij"), axis=-1)
    ratios = table.ratio(grid)
    return np.argwhere(ratios > 0), ratios[ratios > 0]


def same(found, expected):
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


# --- worked out by hand ---


def test_the_ratio_of_adjacent_tokens_worked_out_by_hand():
    table = CooccurrenceTable.count(BLOCKS)
    assert table.total_tokens == 7
    assert table.totals == {2: 5, 3: 3}
    # M(0, 1) = (3/5) / (3/7 * 3/7) = 49/15, M(1, 2) = (1/5) / (3/7 * 1/7) = 49/15,
    # M(1, 0) = (1/5) / (3/7 * 3/7) = 49/45.
    pairs = table.ratio([[0, 1], [1, 2], [1, 0], [0, 2], [2, 2]])
    np.testing.assert_allclose(pairs, [49 / 15, 49 / 15, 49 / 45, 0, 0], rtol=1e-15)
    # M(0, 1, 2) = (1/3) / (3/7 * 3/7 * 1/7) = 343/27; M(0, 1, 0) = (1/3) / (27/343) = 343/81
    triples = table.ratio([[0, 1, 2], [0, 1, 0], [1, 0, 1], [1, 2, 0]])
    np.testing.assert_allclose(triples, [343 / 27, 343 / 81, 343 / 81, 0], rtol=1e-15)


def test_tuples_do_not_cross_from_one_block_to_the_next():
    table = CooccurrenceTable.count(BLOCKS)
    assert counts_of(table, 2) == {(0, 1): 3, (1, 0): 1, (1, 2): 1}  # 2 0 is a border
    assert counts_of(table, 3) == {(0, 1, 0): 1, (0, 1, 2): 1, (1, 0, 1): 1}


def test_candidates_of_a_grid_worked_out_by_hand():
    table = CooccurrenceTable.count(BLOCKS)
    # Heads (1, 0) and (2, 1, 0): 12 at ranks (0, 0), 10 at (0, 2), 01 at (1, 1); 11, 02 and 00 never occur.
    ranks, ratios = table.candidates([np.array([1, 0]), np.array([2, 1, 0])])
    assert ranks.tolist() == [[0, 0], [0, 2], [1, 1]]
    np.testing.assert_allclose(ratios, [49 / 15, 49 / 45, 49 / 15], rtol=1e-15)
    # One more head, (0, 2): of the five such triples 010 and 012 occur, both from ranks (1, 1).
    ranks, ratios = table.candidates([np.array([1, 0]), np.array([2, 1, 0]), np.array([0, 2])])
    assert ranks.tolist() == [[1, 1, 0], [1, 1, 1]]
    np.testing.assert_allclose(ratios, [343 / 81, 343 / 27], rtol=1e-15)


def test_min_count_drops_rare_tuples_of_every_order_and_keeps_the_frequencies():
    table = CooccurrenceTable.count(BLOCKS, min_count=2)
    assert table.min_count == 2
    assert counts_of(table, 2) == {(0, 1): 3}
    assert table.sizes == {2: 1, 3: 0}
    # Single tokens and the totals are those of the whole stream: M(0, 1) is unchanged.
    assert table.totals == {2: 5, 3: 3}
    assert table.unigrams.tolist() == [3, 3, 1]
    np.testing.assert_allclose(table.ratio([0, 1]), 49 / 15, rtol=1e-15)
    assert table.ratio([[0, 1, 0]]).tolist() == [0]
    ranks, ratios = table.candidates([np.array([0, 1])] * 3)
    assert ranks.shape == (0, 3) and ratios.shape == (0,)


# --- against a double loop ---


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7, 64, 10**6])
def test_streamed_counts_are_those_of_a_double_loop_whatever_the_chunk(order, chunk_tokens):
    blocks = random_blocks(order, vocab_size=6, lengths=[0, 1, 2, 3, 50, 0, 7, 64, 1, 5, 129])
    table = CooccurrenceTable.count(blocks, order=order, chunk_tokens=chunk_tokens)
    assert table.order == order
    assert table.total_tokens == sum(map(len, blocks))
    for m in range(2, order + 1):
        expected = naive_counts(blocks, m)
        assert counts_of(table, m) == expected
        assert table.sizes[m] == len(expected)
        assert table.totals[m] == sum(expected.values())


@pytest.mark.parametrize("min_count", [2, 3, 10])
def test_min_count_is_a_filter_on_the_double_loop(min_count):
    blocks = random_blocks(5, vocab_size=8, lengths=[200, 2, 100])
    table = CooccurrenceTable.count(blocks, order=4, min_count=min_count, chunk_tokens=50)
    for m in (2, 3, 4):
        kept = {ids: count for ids, count in naive_counts(blocks, m).items() if count >= min_count}
        assert counts_of(table, m) == kept


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ratios_are_exact_over_every_tuple_of_the_vocabulary(order):
    blocks = random_blocks(7, vocab_size=5, lengths=[40, 3, 90])
    table = CooccurrenceTable.count(blocks, order=4)
    every = np.array(list(product(range(5), repeat=order)))
    expected = [naive_ratio(blocks, ids) for ids in every.tolist()]
    assert 0 < np.count_nonzero(expected) < len(expected) or order == 2
    np.testing.assert_allclose(table.ratio(every), expected, rtol=1e-14)


def test_blocks_may_be_lists_arrays_tensors_or_the_rows_of_a_grid():
    blocks = random_blocks(1, vocab_size=9, lengths=[20, 20, 20])
    table = CooccurrenceTable.count(blocks)
    for alike in (
        [block.tolist() for block in blocks],
        [torch.tensor(block) for block in blocks],
        [block.astype(np.uint16) for block in blocks],
        np.stack(blocks),
        torch.tensor(np.stack(blocks)),
        (block for block in blocks),
    ):
        again = CooccurrenceTable.count(alike)
        assert counts_of(again, 3) == counts_of(table, 3)


def test_tuples_of_the_largest_vocabularies_are_told_apart():
    # 50,432 ids (the largest Pythia models) need 47 bits at order 3 and 63 at order 4.
    top = 50_431
    blocks = [[top, top, top, top], [top - 1, top, top, top], [0, top, top, top]]
    table = CooccurrenceTable.count(blocks, order=4, vocab_size=50_432)
    assert counts_of(table, 4) == {tuple(block): 1 for block in blocks}
    largest = [[55_107] * 4, [55_107, 55_107, 55_107, 0]]
    assert counts_of(CooccurrenceTable.count(largest, order=4), 4) == {tuple(block): 1 for block in largest}
    largest = [[2**21 - 1] * 3]
    assert counts_of(CooccurrenceTable.count(largest, order=3), 3) == {(2**21 - 1,) * 3: 1}


# --- asking ---


def test_ratio_keeps_the_leading_shape_and_gives_tensors_for_tensors():
    table = CooccurrenceTable.count(BLOCKS)
    ids = np.array([[[0, 1], [1, 0]], [[2, 0], [1, 2]], [[0, 0], [0, 1]]])
    ratio = table.ratio(ids)
    assert ratio.shape == (3, 2) and ratio.dtype == np.float64
    assert table.ratio([0, 1]).shape == ()
    assert table.ratio(np.zeros((0, 4, 3), int)).shape == (0, 4)
    as_tensor = table.ratio(torch.tensor(ids))
    assert as_tensor.dtype == torch.float64
    np.testing.assert_array_equal(as_tensor.numpy(), ratio)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, torch.int32, torch.uint8])
def test_ids_of_any_integer_type_are_read_alike(dtype):
    table = CooccurrenceTable.count(BLOCKS)
    make = torch.tensor if isinstance(dtype, torch.dtype) else np.array
    ids = make([[0, 1], [2, 2], [9, 0]], dtype=dtype)
    np.testing.assert_allclose(table.ratio(ids), [49 / 15, 0, 0], rtol=1e-15)


def test_ids_outside_the_vocabulary_were_never_seen():
    table = CooccurrenceTable.count(BLOCKS)
    assert table.ratio([[0, 3], [3, 1], [-1, 1], [0, -1], [0, 10**9], [2, 63], [1, 64]]).tolist() == [0] * 7
    ranks, ratios = table.candidates([np.array([99, 0, -5]), np.array([3, 1]), np.array([64, 0, 2, 10**6])])
    assert ranks.tolist() == [[1, 1, 1], [1, 1, 2]]
    np.testing.assert_allclose(ratios, [343 / 81, 343 / 27])


@st.composite
def tables_and_heads(draw):
    vocab_size = draw(st.integers(1, 90))
    order = draw(st.integers(2, 4))
    lengths = draw(st.lists(st.integers(0, 80), min_size=1, max_size=4).filter(any))
    blocks = random_blocks(draw(st.integers(0, 1000)), vocab_size, lengths)
    table = CooccurrenceTable.count(blocks, order, draw(st.integers(1, 2)), vocab_size)
    head = st.lists(st.integers(0, vocab_size + 5), unique=True, max_size=8)
    return table, [np.array(draw(head), dtype=np.int64) for _ in range(draw(st.integers(2, order)))]


@settings(max_examples=150, deadline=None)
@given(tables_and_heads())
def test_candidates_are_the_seen_cells_of_the_grid_in_rank_order(case):
    table, heads = case
    assert same(table.candidates(heads), search_the_grid(table, heads))


def test_candidates_of_a_wide_grid_are_the_seen_cells():
    rng = np.random.default_rng(0)
    table = CooccurrenceTable.count([rng.integers(0, 70, 60_000)])
    heads = [rng.permutation(70)[:60] for _ in range(3)]
    found = table.candidates(heads)
    assert len(found[0]) > 2000
    assert same(found, search_the_grid(table, heads))


def test_threads_that_share_a_table_get_what_one_thread_gets():
    blocks = random_blocks(3, vocab_size=200, lengths=[5000])
    rng = np.random.default_rng(4)
    grids = [[rng.permutation(200)[:40] for _ in range(3)] for _ in range(50)]
    expected = [search_the_grid(CooccurrenceTable.count(blocks), heads) for heads in grids]
    table = CooccurrenceTable.count(blocks)  # a fresh one: its lazy parts are made under contention
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(table.candidates, grids * 4))
    assert all(same(a, b) for a, b in zip(found, expected * 4, strict=True))


def test_the_masked_product_is_the_optimum_of_the_entropic_transport_problem():
    # Appendix B: over distributions P on the grid, <C, P> - H(P relative to f_1 x f_2) with C = -log M and no
    # marginal constraint is least at P proportional to M * f_1 x f_2, where it is -log of the normaliser.
    rng = np.random.default_rng(0)
    table = CooccurrenceTable.count([rng.integers(0, 4, 300)], order=2)
    prior = np.outer(rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)))
    grid = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1)
    with np.errstate(divide="ignore"):
        cost = -np.log(table.ratio(grid))

    def objective(plan):
        return (cost * plan).sum() + (plan * np.log(plan / prior)).sum()

    masked = table.ratio(grid) * prior
    best = masked / masked.sum()
    assert objective(best) == pytest.approx(-np.log(masked.sum()), abs=1e-12)
    for scale in (1e-3, 0.1, 3.0):
        for _ in range(50):
            other = best * np.exp(scale * rng.standard_normal(best.shape))
            assert objective(other / other.sum()) > objective(best)


# --- what it says of itself ---


def test_repr_states_what_was_counted():
    table = CooccurrenceTable.count(BLOCKS, source="hand")
    assert repr(table) == (
        "CooccurrenceTable(order=3, vocab_size=3, sizes={2: 3, 3: 3}, total_tokens=7, min_count=1, "
        "source='hand')"
    )


def test_progress_shows_a_bar_that_counts_tokens(capsys):
    CooccurrenceTable.count(BLOCKS, progress=True, chunk_tokens=2)
    assert "counting: 7.00 tokens" in capsys.readouterr().err
    CooccurrenceTable.count(BLOCKS)
    assert capsys.readouterr().err == ""
