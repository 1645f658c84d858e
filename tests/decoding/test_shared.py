"""Decoders over the same weights have the same copies, and nobody gets copies of other weights."""

from __future__ import annotations

import copy
import gc
import weakref
from itertools import chain

import pytest
import torch
from bases import BASES, new_base, with_heads
from engines import saved_in_half

from dynamo import kernels
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.in_loops import GatedPass

TOKENS = [[5, 7, 11, 3], [8], [9, 20]]


def model_of(kind: str):
    return saved_in_half(with_heads(new_base(kind, intermediate_size=64), num_token_heads=3))


def copies_in(decoder: Decoder) -> list[object]:
    """Of the base's layers and the output embedding."""
    return [each.made for each in (*decoder._copies[:3], decoder._output)]


def logits_of(decoder: Decoder) -> torch.Tensor:
    cache = decoder.new_cache(64)
    return torch.stack([decoder.forward(cache, tokens) for tokens in TOKENS])


def alone(model, weights: str = "own") -> torch.Tensor:
    """Logits of a decoder with copies of its own."""
    return logits_of(Decoder(copy.deepcopy(model), weights=weights))


@pytest.mark.parametrize("base_first", [True, False])
@pytest.mark.parametrize("weights", ["own", "int8", "int4"])
@pytest.mark.parametrize("kind", BASES)
def test_a_base_on_its_dynamo_models_weights_shares_their_copies(kind, weights, base_first):
    dynamo = model_of(kind)
    base = dynamo.to_base(shared=True)
    expected = alone(base, weights), alone(dynamo, weights)
    order = (base, dynamo) if base_first else (dynamo, base)
    built = {model: Decoder(model, weights=weights) for model in order}
    ours, theirs = copies_in(built[base]), copies_in(built[dynamo])
    assert all(one is other for one, other in zip(ours[:-1], theirs[:-1], strict=True))
    loops = built[base]._in_loops, built[dynamo]._in_loops
    if kind == "llama" or not kernels.loops():
        assert ours[-1] is theirs[-1]
    if isinstance(loops[0], GatedPass):
        assert all(one is other for one, other in zip(loops[0]._matrices, loops[1]._matrices, strict=True))
        assert base_first or loops[0] is loops[1]
        # In fewer bits these are all, as no product keeps numbers of its own.
        if weights != "own":
            products = chain(*(each.products[0].values() for each in built[base]._stem))
            assert all(any(each.numbers.base is m.base for m in loops[1]._matrices) for each in products)
    assert torch.equal(logits_of(built[base]), expected[0])
    assert torch.equal(logits_of(built[dynamo]), expected[1])


def test_decoders_of_equal_shapes_share_nothing_where_the_weights_are_not_the_same():
    one = model_of("llama")
    other = copy.deepcopy(one)  # equal in everything, and may change alone
    decoders = Decoder(one), Decoder(other), Decoder(one, weights="int8")
    for first, second in ((0, 1), (0, 2)):
        pairs = zip(copies_in(decoders[first]), copies_in(decoders[second]), strict=True)
        assert not any(left is right for left, right in pairs)


def written_to(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight[3, 5] = 1


def written_without_a_trace(weight: torch.Tensor) -> None:
    weight.data[3, 5] = 1


def swapped(weight: torch.Tensor) -> None:
    weight.data[:, [4, 9]] = weight.data[:, [9, 4]]


@pytest.mark.parametrize("change", [written_to, written_without_a_trace, swapped])
@pytest.mark.parametrize("kind", BASES)
def test_copies_of_weights_as_they_were_are_never_taken_again(kind, change):
    model = model_of(kind)
    before = Decoder(model)
    change(model.backbone.base_model.layers[1].mlp.get_parameter(
        "down_proj.weight" if kind == "llama" else "dense_4h_to_h.weight"
    ))  # fmt: skip
    after = Decoder(model)
    same = [one is other for one, other in zip(copies_in(before), copies_in(after), strict=True)]
    assert same == [True, False, True, True], "the other layers are as they were"
    assert torch.equal(logits_of(after), alone(model)) and not torch.equal(
        logits_of(after), logits_of(before)
    )


@pytest.mark.parametrize("kind", BASES)
def test_copies_go_with_the_last_decoder_that_has_them(kind):
    model = model_of(kind)
    dynamo, base = Decoder(model), Decoder(model.to_base(shared=True))
    held = [weakref.ref(each) for each in copies_in(base)]
    loops = weakref.ref(base._in_loops) if base._in_loops else held[0]
    del dynamo
    gc.collect()
    assert all(each() for each in (*held, loops)), "the base's decoder has them still"
    assert torch.equal(logits_of(base), alone(model.to_base(shared=True)))
    del base
    gc.collect()
    assert not any(each() for each in (*held, loops)), "though the model is there"
