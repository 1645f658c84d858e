import json

import pytest
import torch
from conftest import tiny_base, tiny_config, tiny_dynamo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

import dynamo  # noqa: F401  (registers the Auto classes)
from dynamo.model import DynamoConfig, DynamoForCausalLM, extra_parameter_share

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
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"'gpt2', supported are: GPT-NeoX, Llama"):
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
    model = DynamoForCausalLM.from_base(base, **variant).eval()
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
    model = DynamoForCausalLM.from_base(base)
    model.save_pretrained(tmp_path)
    loaded = DynamoForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded, loaded.to_pythia()):
        assert each.generation_config.eos_token_id == [3, 7]


def test_copied_heads_start_as_the_last_layer_and_random_ones_do_not():
    base = tiny_base()
    with torch.no_grad():
        copied = DynamoForCausalLM.from_base(base, head_init="copy").eval()(IDS).head_logits
        random = DynamoForCausalLM.from_base(base, head_init="random").eval()(IDS).head_logits
    torch.testing.assert_close(copied[1], copied[0])
    assert (random[1] - random[0]).abs().max() > 0.1


def test_generate_and_cache_run_the_first_head_only(dynamo_model, base):
    prompt, mask = IDS[:1, :6], torch.ones(1, 6, dtype=torch.long)
    ask = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = base.generate(prompt, **ask)
    for use_cache in (True, False):
        assert torch.equal(dynamo_model.generate(prompt, use_cache=use_cache, **ask), expected)
    assert dynamo_model(prompt, logits_to_keep=1).head_logits is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_token_heads": 0}, "num_token_heads: "),
        ({"num_token_heads": 6}, "num_token_heads: "),
        ({"head_layers": 0}, "head_layers: "),
        ({"head_source": "first"}, "head_source: "),
        ({"head_gradient_scale": 2.0}, "head_gradient_scale: "),
    ],
)
def test_impossible_shape_is_refused_with_its_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        DynamoConfig.from_base(tiny_config(), **wrong)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_position_sees_a_later_one_whatever_attention_the_base_came_with(attention):
    """An eager base under masks made for sdpa (None) once read the future without any sign."""
    base = tiny_base()
    base.set_attn_implementation(attention)
    model = DynamoForCausalLM.from_base(base, num_token_heads=3).eval()
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 300
    with torch.no_grad():
        one, other = model(IDS).head_logits, model(changed).head_logits
    torch.testing.assert_close(one[:, :, :-1], other[:, :, :-1])
    assert not torch.equal(one[:, :, -1], other[:, :, -1])


def test_padding_changes_nothing_for_the_real_tokens(dynamo_model):
    short = IDS[:1, :10]
    padded = torch.cat([short, torch.zeros(1, 6, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(1, 10), torch.zeros(1, 6)], dim=1).long()
    with torch.no_grad():
        alone = dynamo_model(short).head_logits
        together = dynamo_model(padded, attention_mask=mask).head_logits[:, :, :10]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["", "someone/base"])
def test_the_folder_of_a_base_is_not_in_its_configuration_and_a_hub_id_is(tmp_path, name):
    tiny_base().save_pretrained(tmp_path / "base")
    model = DynamoForCausalLM.from_base(tmp_path / "base")
    assert model.config.text_config.name_or_path == str(tmp_path / "base")
    model.config.text_config.name_or_path = name or model.config.text_config.name_or_path
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["text_config"].get("_name_or_path", "") == name
