"""All layers of a Llama in one call against its modules, whichever threads there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases import ids, new_base, with_heads
from engines import saved_in_half
from transformers import AutoModelForCausalLM, Qwen2Config

from dynamo import kernels
from dynamo.decoding.attention import FEW_QUERIES
from dynamo.decoding.decoder import Decoder

pytestmark = pytest.mark.skipif(
    kernels.loops() is None or not kernels.loops().widens_halves(),
    reason="numba is missing, was not asked for, or the processor does not widen halves",
)
TEXT = ids(60).tolist()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def with_biases():
    """Queries, keys and values of Qwen2 have biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    others = {"vocab_size": 97, "num_key_value_heads": 1, "max_position_embeddings": 128}
    model = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, **others, initializer_range=0.2)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    return model


def llama():
    return new_base("llama", intermediate_size=64)


@pytest.mark.parametrize("build", [llama, with_biases, lambda: with_heads(llama(), num_token_heads=3)])
@pytest.mark.parametrize("weights", ["int8", "int4", "own"])
def test_a_pass_in_one_call_is_that_of_the_layers_one_by_one(build, weights, threads):
    model = saved_in_half(build(), torch.bfloat16) if weights == "own" else build()
    in_one, by_layer = (Decoder(model, weights=weights) for _ in range(2))
    assert in_one._in_loops is not None
    by_layer._in_loops = None
    states = in_one.new_cache(64), by_layer.new_cache(64)
    for new in (20, 1, 2, 3, 4, 7, 8):
        tokens = TEXT[states[0].length : states[0].length + new]
        for heads in range(1, in_one.heads + 1):
            for queries in sorted({1, new - 1 or 1, new}):
                found = []
                for count in (1, 2):
                    threads(count)
                    found.append(in_one.forward(states[0], tokens, heads, queries))
                    states[0].crop(new)
                if new <= FEW_QUERIES:  # torch reads longer texts, and adds up by threads on some processors
                    assert torch.equal(*found), "each number is one thread's work"
                theirs = by_layer.forward(states[1], tokens, heads, queries)
                torch.testing.assert_close(found[0], theirs, rtol=1e-3, atol=1e-3)  # a rounded step apart
                states[1].crop(new)
        for decoder, state in zip((in_one, by_layer), states, strict=True):
            decoder.forward(state, tokens)  # what a later pass attends to is the same too


def test_other_layers_are_not_taken():
    for changes in (
        {"intermediate_size": 64, "hidden_act": "gelu"},
        {"intermediate_size": 64, "mlp_bias": True},
    ):
        assert Decoder(new_base("llama", **changes), weights="int8")._in_loops is None
    assert Decoder(new_base("neox", intermediate_size=64), weights="int8")._in_loops is None


def test_numbers_that_are_none_stay_so():
    decoder = Decoder(llama(), weights="int4")
    state = decoder.new_cache(8)
    decoder._embed = torch.nn.Embedding.from_pretrained(torch.full((97, 32), np.nan))
    assert decoder.forward(state, [1, 2]).isnan().all()
