"""Tables that do not fit a model, ids that are none, streams that cannot be counted are refused in words."""

import numpy as np
import pytest
import torch
from streams import BLOCKS

from dynamo.cooccurrence.table import CooccurrenceTable


def test_a_table_of_another_vocabulary_is_refused():
    table = CooccurrenceTable.count(BLOCKS, vocab_size=4096)
    table.check(vocab_size=4096, order=3)
    for vocab_size in (50_304, 2048, 4095):
        with pytest.raises(
            ValueError, match=f"vocabulary of 4096, the model has {vocab_size}: count a table"
        ):
            table.check(vocab_size=vocab_size)


def test_a_padded_vocabulary_is_accepted():
    table = CooccurrenceTable.count(BLOCKS, vocab_size=50_277)
    for padded in (50_304, 50_432, 50_688):  # 70M, 6.9B, 12B
        table.check(vocab_size=padded)


def test_a_vocabulary_that_was_inferred_may_be_any_part_of_the_models():
    table = CooccurrenceTable.count(BLOCKS)
    assert table.vocab_size == 3
    table.check(vocab_size=3)
    table.check(vocab_size=50_304)
    with pytest.raises(ValueError, match="vocabulary of 3, the model has 2"):
        table.check(vocab_size=2)


def test_a_table_of_too_low_an_order_is_refused_with_the_remedy():
    table = CooccurrenceTable.count(BLOCKS, order=2)
    table.check(order=2)
    with pytest.raises(ValueError, match="set max_order to 2 or less, or count a table of order 3"):
        table.check(order=3)


def test_a_table_of_another_tokenizer_is_refused_where_both_are_known():
    table = CooccurrenceTable.count(BLOCKS, tokenizer="a")
    table.check(tokenizer="a")
    table.check(tokenizer="")
    CooccurrenceTable.count(BLOCKS).check(tokenizer="b")
    with pytest.raises(ValueError, match="counts tokens of a, the model has b"):
        table.check(tokenizer="b")


@pytest.mark.parametrize("ids", [[0], [0, 1, 0, 1], np.zeros((2, 5), int), []])
def test_orders_that_the_table_does_not_hold_are_refused(ids):
    table = CooccurrenceTable.count(BLOCKS)
    with pytest.raises(ValueError, match=r"table holds tuples of 2 to 3 tokens|must be integers"):
        table.ratio(ids)


def test_candidates_refuses_orders_that_the_table_does_not_hold():
    table = CooccurrenceTable.count(BLOCKS)
    for heads in (1, 4):
        with pytest.raises(ValueError, match="table holds tuples of 2 to 3 tokens"):
            table.candidates([np.array([0, 1])] * heads)


@pytest.mark.parametrize("ids", [[0.5, 1.0], 3, torch.tensor([0.0, 1.0]), [True, False]])
def test_ratio_refuses_what_are_not_ids(ids):
    with pytest.raises(ValueError, match="ids must be integers"):
        CooccurrenceTable.count(BLOCKS).ratio(ids)


@pytest.mark.parametrize(
    "blocks, options, message",
    [
        ([], {}, "no tokens"),
        ([[], []], {}, "no tokens"),
        ([0, 1, 2], {}, "1-D integer"),
        ([[0.0, 1.0]], {}, "1-D integer"),
        ([[[0, 1], [1, 0]]], {}, "1-D integer"),
        ([[0, -100]], {}, "must not be negative, got -100"),
        ([[0, 7]], {"vocab_size": 7}, "below vocab_size 7, got 7"),
        ([[0, 1]], {"order": 1}, "order must be at least 2"),
        ([[0, 1]], {"min_count": 0}, "min_count at least 1"),
        ([[0, 55_108]], {"order": 4}, "token id 55108 is too large for order 4: .* 63 bits"),
        ([[0, 1]], {"order": 4, "vocab_size": 60_000}, "vocabulary of 60000 is too large for order 4"),
        ([[0, 2**21]], {"order": 3}, "ids must be below 2097152"),
    ],
)
def test_streams_that_cannot_be_counted_are_refused(blocks, options, message):
    with pytest.raises(ValueError, match=message):
        CooccurrenceTable.count(blocks, **options)
