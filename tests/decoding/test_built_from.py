"""An engine says so where the weights that it was built from have changed: old and new ones never mix."""

from __future__ import annotations

import pytest
import torch
from bases import BASES, ids, new_base, with_heads

from dynamo import DynamoForCausalLM, Engine


def engine_of(model) -> Engine:
    engine = Engine(model)
    assert list(engine.stream(ids(1, 5), max_new_tokens=4)), "unchanged weights are no change"
    return engine


def one_step(model: DynamoForCausalLM) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(ids(1, 9), labels=ids(1, 9)).loss.backward()
    optimizer.step()


def through_data(model: DynamoForCausalLM) -> None:
    """As peft merges and old recipes write, without any trace in a version."""
    weight = next(model.token_heads[0].layers[0].mlp.parameters())
    weight.data += 0.01


CHANGES = {
    "training": one_step,
    "loading": lambda model: model.load_state_dict(with_heads(model.to_base()).state_dict()),
    ".data": through_data,
    "one row of .data": lambda model: model.get_output_embeddings().weight.data[41].fill_(0.5),
    "replaced .data": lambda model: setattr(
        model.get_input_embeddings().weight, "data", torch.ones_like(model.get_input_embeddings().weight)
    ),
    "resizing": lambda model: model.resize_token_embeddings(105),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_noticed(kind, change):
    model = with_heads(new_base(kind))
    engine = engine_of(model)
    assert engine._decoder.packed
    change(model)
    with pytest.raises(ValueError, match=r"model: "):
        engine.stream(ids(1, 5))
    with pytest.raises(ValueError, match=r"model: "):
        engine.stream_batch([ids(1, 5)])
    engine_of(model)


def test_an_engine_on_the_models_own_modules_follows_its_weights():
    """Nothing is copied there, so only a module that is no longer the model's is refused."""
    model = with_heads(new_base("llama")).to(torch.bfloat16)
    engine = engine_of(model)
    assert not engine._decoder.packed
    one_step(model)
    assert list(engine.stream(ids(1, 5), max_new_tokens=4)) and engine_of(model)
    model.resize_token_embeddings(105)
    with pytest.raises(ValueError, match=r"model: "):
        engine.stream(ids(1, 5))
