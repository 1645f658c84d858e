"""Adapters of the library peft around the model's layers, and around its output embedding.

It takes two seconds to import, which each worker would spend: only the one that runs these tests does.
"""

from __future__ import annotations

import copy

import pytest
import torch
from bases import BASES, ids, new_base, with_heads

from dynamo import DynamoForCausalLM, Engine, SamplingOptions

LAYERS = {"neox": ["query_key_value", "dense_h_to_4h"], "llama": ["q_proj", "up_proj"]}
VARIANTS = {"shared output": {}, "own outputs": {"own_output_embedding": True, "correlator_rank": 4}}


def adapted(model, modules: list[str], **settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    settings = {"r": 4, "target_modules": modules, "init_lora_weights": False} | settings
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))


@pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_adapter_on_the_output_embedding_is_trained_and_loaded(kind, heads, tmp_path):
    from peft import PeftModel

    base, text = new_base(kind), ids(2, 12)
    modules = [*LAYERS[kind], "lm_head", *(["output_embedding"] if heads else [])]
    model = adapted(with_heads(base, **heads), modules).train()
    loss = model(input_ids=text, labels=text).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("lm_head.lora_A" in name for name in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    # By the logits of all positions, made by the adapter's own forward.
    model.zero_grad()
    other = model(input_ids=text, labels=text, return_logits=True).loss
    other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(with_heads(base, **heads), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=text).head_logits, model(input_ids=text).head_logits)


def test_heads_send_their_share_of_the_gradient_to_an_adapter():
    text, base, gradients = ids(2, 12), new_base("neox"), []
    for scale in (0.0, 0.5, 1.0):
        model = adapted(with_heads(base, head_gradient_scale=scale), ["lm_head"])
        model(input_ids=text, labels=text).loss.backward()
        gradients.append(next(weight.grad for name, weight in model.named_parameters() if "lora_B" in name))
    none, half, whole = gradients
    torch.testing.assert_close(half, (none + whole) / 2, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(none, whole)


@pytest.mark.parametrize("again", [False, True], ids=["at once", "from its folder"])
@pytest.mark.parametrize(
    "kind, embeddings",
    [("neox", ["lm_head"]), ("llama", []), ("llama", ["lm_head"]), ("llama", ["embed_tokens"]),
     ("llama", ["lm_head", "embed_tokens"])],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_merged_model_is_the_adapted_one_and_saves_as_any(kind, embeddings, again, tmp_path):
    """Also where input and output embedding are tied, and an adapter stands around one of them."""
    from peft import PeftModel

    base, text = new_base(kind), ids(2, 12)
    model = adapted(with_heads(base), [*LAYERS[kind], *embeddings]).train()
    model(input_ids=text, labels=text).loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
        expected = model.eval()(input_ids=text).head_logits
        if again:
            model.save_pretrained(tmp_path / "adapter")
            model = PeftModel.from_pretrained(with_heads(base), tmp_path / "adapter")
        merged = model.merge_and_unload()
        assert not hasattr(merged, "peft_config")
        assert merged.config.tie_word_embeddings == (kind == "llama" and not embeddings)
        assert type(merged) is DynamoForCausalLM
        torch.testing.assert_close(merged(text).head_logits, expected, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path)
        again = DynamoForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(text).head_logits, merged(text).head_logits)
        assert torch.equal(merged.to_base()(text).logits, merged(text).logits)


@pytest.mark.parametrize("kind", BASES)
def test_an_engine_decodes_with_the_adapter(kind):
    """Packed copies of layers would be made of the weights beneath it."""
    model = with_heads(new_base(kind, eos_token_id=None))
    plain = model.to_base()
    adapter = adapted(model, LAYERS[kind]).eval()
    with pytest.raises(ValueError, match="merge_and_unload"):
        Engine(adapter)
    prompt = ids(1, 7)
    ask = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(prompt, **ask)[0, 7:].tolist()
    assert expected != plain.generate(prompt, **ask)[0, 7:].tolist()
    greedy = SamplingOptions(temperature=0, repetition_penalty=1.0, threshold=1.0)
    merged = copy.deepcopy(adapter).merge_and_unload()
    for each in (model, merged):
        records = Engine(each).stream(prompt, greedy, 12)
        assert [token for record in records for token in record.tokens] == expected
