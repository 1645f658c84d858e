"""Hostile values in error messages."""

from __future__ import annotations

import pytest

from dynamo.common.validation import MAX_REPR_DIGITS, parse_json, short_repr
from dynamo.decoding.engine import checked_count
from dynamo.sampling.options import SamplingOptions
from dynamo.spaces.limits import Limits
from dynamo.training.options import TrainingOptions

MUCH = 10**5000


@pytest.mark.parametrize(
    "make",
    [
        lambda: SamplingOptions(top_k=-MUCH),
        lambda: SamplingOptions(threshold=MUCH),
        lambda: SamplingOptions(max_order=MUCH),
        lambda: SamplingOptions(temperature=[MUCH]),
        lambda: Limits(answer_tokens=9).check("hello", MUCH),
        lambda: TrainingOptions(seed=MUCH),
        lambda: checked_count("seed", -MUCH, 0),
    ],
)
def test_a_number_of_more_digits_than_python_writes_is_told_by_their_number(make):
    """It was Python's own sentence, which names no option."""
    with pytest.raises(ValueError, match=r"^\w+: expected .* got \[?about 5001 digits"):
        make()


def test_a_byte_order_mark_is_no_part_of_the_json():
    assert parse_json("\ufeff{}") == {} and parse_json('"\ufeff"') == "\ufeff"
    with pytest.raises(ValueError):
        parse_json("\ufeff\ufeff{}")


def test_a_number_that_can_be_written_is_shown():
    assert short_repr(-12) == "-12" and short_repr(10 ** (MAX_REPR_DIGITS - 10)).startswith("1000")
