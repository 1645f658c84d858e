import json
import math

import pytest
import torch
from conftest import tiny_base, tiny_config, tiny_dynamo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

import dynamo  # noqa: F401  (registers the Auto classes)
from dynamo.model import (
    DynamoConfig,
    DynamoForCausalLM,
    extra_parameter_share,
    parameter_groups,
    scale_gradient,
)

IDS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))

PYTHIA_SHAPES = {  # hidden size, layers, attention heads, vocabulary
    "70m": (512, 6, 8, 50304),
    "160m": (768, 12, 12, 50304),
    "410m": (1024, 24, 16, 50304),
    "1b": (2048, 16, 8, 50304),
    "1.4b": (2048, 24, 16, 50304),
    "2.8b": (2560, 32, 32, 50304),
    "6.9b": (4096, 32, 32, 50432),
}


@pytest.mark.parametrize(
    "size, percent",
    [
        ("70m", 8.95),
        ("160m", 8.73),
        ("410m", 6.22),
        ("1b", 9.95),
        ("1.4b", 7.12),
        ("2.8b", 5.67),
        ("6.9b", 5.87),
    ],
)
def test_parameter_overhead_of_three_heads_is_the_papers_table_4(size, percent):
    hidden, layers, heads, vocab = PYTHIA_SHAPES[size]
    config = DynamoConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocab,
        intermediate_size=4 * hidden,
        num_token_heads=3,
    )
    assert 100 * extra_parameter_share(config) == pytest.approx(percent, abs=0.01)


def old_naming_checkpoint(folder):
    """A stock checkpoint as Pythia's files are: `embed_out`, stored masks and rotary frequencies."""
    base = tiny_base(seed=5)
    base.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("lm_head.", "embed_out."): tensor for name, tensor in weights.items()}
    for layer in range(base.config.num_hidden_layers):
        prefix = f"gpt_neox.layers.{layer}.attention."
        weights[prefix + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
        weights[prefix + "masked_bias"] = torch.tensor(-1e9)
        weights[prefix + "rotary_emb.inv_freq"] = torch.ones(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return base


def test_stock_checkpoint_in_the_old_naming_gives_transformers_logits(tmp_path):
    base = old_naming_checkpoint(tmp_path)
    model = DynamoForCausalLM.from_pythia(str(tmp_path), num_token_heads=3).eval()
    expected = GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()(IDS).logits
    with torch.no_grad():
        assert (model(IDS).logits - expected).abs().max() < 1e-5
        assert (base(IDS).logits - expected).abs().max() < 1e-5


def test_half_precision_checkpoint_is_loaded_in_float32_unless_told(tmp_path):
    GPTNeoXForCausalLM(tiny_config(dtype="float16")).half().save_pretrained(tmp_path)
    assert DynamoForCausalLM.from_pythia(str(tmp_path)).dtype == torch.float32
    assert DynamoForCausalLM.from_pythia(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_checkpoint_that_does_not_fill_the_model_is_refused(tmp_path):
    tiny_base().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fill a GPT-NeoX model.*dense_h_to_4h"):
        DynamoForCausalLM.from_pythia(str(tmp_path))


def test_other_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"expected a GPT-NeoX .* got model_type 'llama'"):
        DynamoForCausalLM.from_pythia(str(tmp_path))


VARIANTS = {
    "T1": {"num_token_heads": 1},
    "T2": {"num_token_heads": 2},
    "T4": {"num_token_heads": 4},
    "T5": {"num_token_heads": 5},
    "two layers per head": {"num_token_heads": 2, "head_layers": 2},
    "copied": {"num_token_heads": 3, "head_init": "copy"},
    "own output embedding": {"num_token_heads": 2, "own_output_embedding": True},
    "own output embedding, no layer": {"num_token_heads": 2, "own_output_embedding": True, "head_layers": 0},
    "own norm": {"num_token_heads": 2, "own_final_norm": True},
    "fed from the last layer": {"num_token_heads": 3, "head_source": "last"},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_survives_saving_and_keeps_the_base(variant, tmp_path):
    base = tiny_base()
    expected = base(IDS).logits
    model = DynamoForCausalLM.from_neox(base, **variant).eval()
    with torch.no_grad():
        logits = model(IDS).head_logits
    assert logits.shape == (variant["num_token_heads"], 2, 24, 300)
    assert torch.equal(logits[0], expected)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*.safetensors")] and not list(tmp_path.glob("*.bin"))
    for loaded in (
        DynamoForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, DynamoForCausalLM)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(IDS).head_logits, logits)


def test_export_is_a_stock_model_with_the_same_logits_bit_for_bit(tmp_path, dynamo_model):
    with torch.no_grad():
        expected = dynamo_model(IDS).logits
        exported = dynamo_model.to_pythia()
        assert type(exported) is GPTNeoXForCausalLM and exported.config.model_type == "gpt_neox"
        assert torch.equal(exported(IDS).logits, expected)
        exported.save_pretrained(tmp_path)
        assert torch.equal(GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()(IDS).logits, expected)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt_neox"


def test_export_is_a_copy():
    model = tiny_dynamo()
    exported = model.to_pythia()
    with torch.no_grad():
        exported.lm_head.weight.zero_()
    assert model.get_output_embeddings().weight.abs().sum() > 0


def test_end_of_text_ids_are_carried_along(tmp_path):
    base = tiny_base()
    base.generation_config.eos_token_id = [3, 7]
    model = DynamoForCausalLM.from_neox(base)
    model.save_pretrained(tmp_path)
    loaded = DynamoForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded, loaded.to_pythia()):
        assert each.generation_config.eos_token_id == [3, 7]


def test_copied_heads_start_as_the_last_layer_and_random_ones_do_not():
    base = tiny_base()
    with torch.no_grad():
        copied = DynamoForCausalLM.from_neox(base, head_init="copy").eval()(IDS).head_logits
        random = DynamoForCausalLM.from_neox(base, head_init="random").eval()(IDS).head_logits
    torch.testing.assert_close(copied[1], copied[0])
    assert (random[1] - random[0]).abs().max() > 0.1


def test_generate_and_cache_run_the_first_head_only(dynamo_model, base):
    prompt, mask = IDS[:1, :6], torch.ones(1, 6, dtype=torch.long)
    ask = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = base.generate(prompt, **ask)
    for use_cache in (True, False):
        assert torch.equal(dynamo_model.generate(prompt, use_cache=use_cache, **ask), expected)
    assert dynamo_model(prompt, logits_to_keep=1).head_logits is None


def test_loss_equals_a_double_loop_over_positions(dynamo_model):
    labels = IDS.clone()
    labels[0, 5] = labels[1, 20] = -100
    with torch.no_grad():
        output = dynamo_model(IDS, labels=labels)
    log_p = output.head_logits.double().log_softmax(-1)
    for head in range(3):
        terms = []
        for row in range(2):
            for t in range(24 - head - 1):
                target = labels[row, t + head + 1].item()
                if target != -100:
                    terms.append(-log_p[head, row, t, target].item())
        assert output.head_losses[head].item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)
    assert output.loss.item() == pytest.approx(output.head_losses.sum().item(), rel=1e-6)


def test_loss_of_labels_that_leave_nothing_is_zero_not_nan(dynamo_model):
    output = dynamo_model(IDS, labels=torch.full_like(IDS, -100))
    assert output.head_losses.tolist() == [0.0, 0.0, 0.0]


def test_training_leaves_logits_out_unless_asked(dynamo_model):
    model = tiny_dynamo().train()
    assert model(IDS, labels=IDS).logits is None
    assert model(IDS, labels=IDS, return_logits=True).head_logits.shape[0] == 3


def gradients(model, losses):
    model.zero_grad()
    losses.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_shared_parameters_get_a_tenth_of_the_extra_heads_gradient():
    """Two separate backward passes at scale 1 say what one pass at scale 0.1 must give."""
    model = tiny_dynamo(heads=3)

    def loss_of(head):
        state = model.head_states(IDS)[head]
        return model.head_nats(head, state, IDS) / IDS[:, head + 1 :].numel()

    model.config.head_gradient_scale = 1.0
    first = gradients(model, loss_of(0))
    extra = gradients(model, loss_of(1) + loss_of(2))
    model.config.head_gradient_scale = 0.1
    together = gradients(model, model(IDS, labels=IDS).loss)
    assert together.keys() == first.keys() | extra.keys()
    for name, gradient in together.items():
        own = name.startswith("token_heads")
        expected = first.get(name, 0) + (1.0 if own else 0.1) * extra.get(name, 0)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4, msg=name)
    shared = {"backbone.lm_head.weight", "backbone.gpt_neox.final_layer_norm.weight"}
    assert shared <= extra.keys(), "the extra heads do reach the shared norm and output embedding"


def test_scaled_gradient_leaves_the_value_alone():
    x = torch.randn(4, requires_grad=True)
    y = scale_gradient(x, 0.25)
    assert torch.equal(x, y)
    y.sum().backward()
    assert x.grad.tolist() == [0.25] * 4


def test_parameter_groups_partition_and_carry_their_learning_rates(dynamo_model):
    groups = {g["name"]: g for g in dynamo_model.parameter_groups(1e-5, 1e-3, weight_decay=0.1)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "base_decay": (1e-5, 0.1),
        "base_no_decay": (1e-5, 0.0),
        "heads_decay": (1e-3, 0.1),
        "heads_no_decay": (1e-3, 0.0),
    }
    ids = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in dynamo_model.parameters())
    decayed = {id(p) for p in groups["base_decay"]["params"]}
    names = {name for name, p in dynamo_model.backbone.named_parameters() if id(p) in decayed}
    assert names and not [n for n in names if "norm" in n or "bias" in n or "embed" in n or "lm_head" in n]


def test_parameter_in_no_group_or_in_two_is_an_error(dynamo_model):
    with pytest.raises(AssertionError, match="parameter groups hold"):
        parameter_groups({"heads": (dynamo_model.token_heads, 1e-3)}, 0.0, whole=dynamo_model)
    twice = {"a": (dynamo_model, 1e-3), "b": (dynamo_model.token_heads, 1e-3)}
    with pytest.raises(AssertionError, match="parameter groups hold"):
        parameter_groups(twice, 0.0, whole=dynamo_model)


def test_heads_only_training_leaves_the_base_without_gradient():
    model = tiny_dynamo().train()
    model.freeze_base()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.token_heads.parameters())
    assert {group["name"].split("_")[0] for group in model.parameter_groups(1e-5, 1e-3)} == {"heads"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_token_heads": 0}, "num_token_heads: expected 1 to 5, got 0"),
        ({"num_token_heads": 6}, "num_token_heads: expected 1 to 5, got 6"),
        ({"head_layers": 0}, "head_layers: 0 leaves a head nothing to learn"),
        ({"head_source": "first"}, "head_source: expected 'penultimate' or 'last'"),
        ({"head_gradient_scale": 2.0}, "head_gradient_scale: expected 0 to 1, got 2.0"),
    ],
)
def test_impossible_shape_is_refused_with_its_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        DynamoConfig.from_neox(tiny_config(), **wrong)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_position_sees_a_later_one_whatever_attention_the_base_came_with(attention):
    """An eager base under masks made for sdpa (None) once read the future without any sign."""
    base = tiny_base()
    base.set_attn_implementation(attention)
    model = DynamoForCausalLM.from_neox(base, num_token_heads=3).eval()
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 300
    with torch.no_grad():
        one, other = model(IDS).head_logits, model(changed).head_logits
    torch.testing.assert_close(one[:, :, :-1], other[:, :, :-1])
    assert not torch.equal(one[:, :, -1], other[:, :, -1])


def test_losses_with_a_cache_are_refused(dynamo_model):
    with pytest.raises(ValueError, match="labels: losses need every position"):
        dynamo_model(IDS, labels=IDS, use_cache=True)


def test_padding_changes_nothing_for_the_real_tokens(dynamo_model):
    short = IDS[:1, :10]
    padded = torch.cat([short, torch.zeros(1, 6, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(1, 10), torch.zeros(1, 6)], dim=1).long()
    with torch.no_grad():
        alone = dynamo_model(short).head_logits
        together = dynamo_model(padded, attention_mask=mask).head_logits[:, :, :10]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
