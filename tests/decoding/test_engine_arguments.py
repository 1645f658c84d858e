"""What an engine is asked with: taken in every form that means something, else refused by name and remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT, tokens_of
from tables import random_table

from dynamo.decoding.engine import Engine
from dynamo.loading import Pair
from dynamo.sampling.options import SamplingOptions


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "the prompt is empty"),
        ([1] * 10_000, "the prompt has 10000 tokens and the model reads 640"),
        ([1, 300], "expected ids from 0 to 299, got 300"),
        ([-1], "got -1"),
        (torch.ones(2, 4, dtype=torch.long), "expected one row"),
        (torch.ones(1, 1, 4, dtype=torch.long), "expected one row"),
        (7, "expected one row"),
        ([[1, 2], [3]], r"expected one row of token ids, got \[\[1, 2\], \[3\]\]"),
        (None, "expected one row of token ids, got None"),
        ([1.5, 2.0], "expected whole numbers, got torch.float32"),
        ([True, False], "expected whole numbers, got torch.bool"),
        ("Hello", "expected token ids, got str; encode text with"),
    ],
)
def test_bad_prompt_is_refused_before_anything_runs(prompt, message):
    with pytest.raises(ValueError, match=f"input_ids: .*{message}"):
        Engine(tiny_dynamo()).stream(prompt)


def test_a_tokenizers_whole_output_is_refused_and_its_ids_are_taken(tokenizer):
    """What `tokenizer(text)` and `apply_chat_template` give holds the ids and more."""
    engine, chat = Engine(tiny_dynamo()), [{"role": "user", "content": "Hello"}]
    for encoded in (tokenizer("Hello"), tokenizer.apply_chat_template(chat, return_tensors="pt")):
        with pytest.raises(ValueError, match="input_ids: "):
            engine.stream(encoded)
        assert tokens_of(engine.stream(encoded.input_ids, max_new_tokens=3))


def test_a_pair_in_a_models_place_is_told_of_its_parts():
    with pytest.raises(ValueError, match="model: "):
        Engine(Pair("name", "", tiny_base(), tiny_dynamo(), None, None))


def test_prompt_may_be_a_list_a_nested_list_an_array_or_a_tensor():
    engine = Engine(tiny_dynamo())
    forms = [PROMPT, [PROMPT], np.array(PROMPT), np.array([PROMPT]), torch.tensor([PROMPT])]
    assert len({tuple(tokens_of(engine.stream(form, max_new_tokens=12))) for form in forms}) == 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seed": -1}, "seed: "),
        ({"seed": None}, "seed: "),
        ({"max_new_tokens": 0}, "max_new_tokens: "),
        ({"max_new_tokens": 2.5}, "max_new_tokens: "),
    ],
)
def test_a_seed_or_a_length_that_is_none_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Engine(tiny_dynamo()).stream(PROMPT, **wrong)


def test_numpys_whole_numbers_serve_as_seed_and_length():
    engine = Engine(tiny_dynamo())
    expected = tokens_of(engine.stream(PROMPT, max_new_tokens=9, seed=4))
    assert tokens_of(engine.stream(PROMPT, max_new_tokens=np.int64(9), seed=np.uint8(4))) == expected


def test_table_of_another_vocabulary_or_a_lower_order_is_refused():
    with pytest.raises(ValueError, match="vocabulary"):
        Engine(tiny_dynamo(), random_table(vocab=200))
    low = Engine(tiny_dynamo(), random_table(order=2))
    with pytest.raises(ValueError, match="order"):
        low.stream(PROMPT)
    assert tokens_of(low.stream(PROMPT, SamplingOptions(max_order=2), 10))
    with pytest.raises(ValueError, match=r"^correction: "):
        Engine(tiny_dynamo()).stream(PROMPT, SamplingOptions(correction="smoothed"))
    assert tokens_of(low.stream(PROMPT, SamplingOptions(correction="none"), 10))
    assert tokens_of(low.stream(PROMPT, SamplingOptions(mask_strength=0), 10)), (
        "no mask: the table is not read"
    )
