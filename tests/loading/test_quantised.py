"""Models in 8 and 4 bits run the same decoder, heads included; the numbers stay close to the full ones."""

import copy
import json
import logging

import pytest
import torch
from conftest import tiny_base, tiny_dynamo

from dynamo import Engine, SamplingOptions, loading
from dynamo.__main__ import main
from dynamo.decoding.decoder import Decoder
from dynamo.loading import quantised
from dynamo.training.trainer import save_model

IDS = list(range(5, 60))
# Root mean square error over the spread of the full logits; random weights do worst (0.23 to 0.27 in 4 bits).
CLOSE = {"8bit": 0.03, "4bit": 0.35}


@pytest.fixture
def pair_folder(tmp_path, tokenizer):
    save_model(tiny_base(hidden_size=64), tokenizer, tmp_path / "base")
    save_model(wide_dynamo(), tokenizer, tmp_path / "dynamo")
    return tmp_path


def wide_dynamo(**heads):
    from dynamo.model import DynamoForCausalLM

    return DynamoForCausalLM.from_base(tiny_base(hidden_size=64), num_token_heads=3, **heads).eval()


def logits(model):
    decoder = Decoder(model, packed=False)
    return decoder.forward(decoder.new_cache(len(IDS)), IDS).float()


@pytest.mark.parametrize("quantize", loading.QUANTISATIONS)
def test_every_linear_layer_but_the_output_embedding_is_quantised(pair_folder, quantize):
    pair = loading.load(str(pair_folder), device="cpu", quantize=quantize)
    for model in (pair.base, pair.dynamo):
        plain = [name for name, each in model.named_modules() if type(each) is torch.nn.Linear]
        assert [name.split(".")[-1] for name in plain] == ["lm_head"]
    layer = pair.dynamo.token_heads[1].layers[0]
    assert type(layer.mlp.dense_h_to_4h).__module__.startswith("bitsandbytes")
    assert not Decoder(pair.dynamo).packed


def test_a_heads_own_output_embedding_stays_as_it_is(tmp_path, tokenizer):
    save_model(wide_dynamo(own_output_embedding=True), tokenizer, tmp_path / "own")
    model, _, _ = loading.load_model(str(tmp_path / "own"), device="cpu", quantize="4bit")
    assert [type(head.output_embedding) for head in model.token_heads] == 2 * [torch.nn.Linear]


@pytest.mark.parametrize("quantize", loading.QUANTISATIONS)
def test_logits_of_every_head_stay_close(pair_folder, quantize):
    full = logits(loading.load(str(pair_folder), device="cpu").dynamo)
    rough = logits(loading.load(str(pair_folder), device="cpu", quantize=quantize).dynamo)
    error = (full - rough).square().mean(-1).sqrt() / full.std(-1)
    assert error.shape == (3,) and (error > 0).all() and (error < CLOSE[quantize]).all(), error


@pytest.mark.parametrize("quantize", loading.QUANTISATIONS)
def test_a_lone_checkpoint_shares_its_quantised_weights_with_its_first_head(pair_folder, quantize):
    pair = loading.load(str(pair_folder / "dynamo"), device="cpu", quantize=quantize)
    alone = loading.memory_of(pair.dynamo)
    torch.testing.assert_close(logits(pair.base)[0], logits(pair.dynamo)[0])
    assert loading.memory_of(pair.dynamo, pair.base) < 1.01 * alone
    options = SamplingOptions(threshold=0.0, temperature=1.0)
    texts = [
        [token for step in Engine(model).stream(IDS, options, max_new_tokens=8) for token in step.tokens]
        for model in (pair.dynamo, pair.base)
    ]
    assert len(texts[0]) == len(texts[1]) == 8


@pytest.mark.parametrize("quantize", loading.QUANTISATIONS)
def test_saved_quantised_and_loaded_again_is_the_same_model(pair_folder, tmp_path, quantize):
    model, tokenizer, _ = loading.load_model(str(pair_folder), device="cpu", quantize=quantize)
    before = logits(model)
    save_model(model, tokenizer, tmp_path / "again")
    again, _, _ = loading.load_model(str(tmp_path / "again"), device="cpu")
    assert torch.equal(before, logits(again))
    other = {"8bit": "4bit", "4bit": "8bit"}[quantize]
    with pytest.raises(ValueError, match=f"is saved in {quantize} already; load it so, not as {other}"):
        loading.load_model(str(tmp_path / "again"), device="cpu", quantize=other)


def test_memory_counts_weights_scales_and_shared_parts_once(pair_folder):
    full, eight, four = (
        loading.load(str(pair_folder), device="cpu", quantize=quantize).dynamo
        for quantize in (None, "8bit", "4bit")
    )
    assert loading.memory_of(full) == sum(each.nbytes for each in (*full.parameters(), *full.buffers()))
    assert loading.memory_of(full, full.backbone) == loading.memory_of(full)
    assert loading.memory_of(copy.deepcopy(full), full) == 2 * loading.memory_of(full)
    linear = [each for layer in (*full.backbone.gpt_neox.layers, *(h.layers[0] for h in full.token_heads))
              for each in layer.modules() if type(each) is torch.nn.Linear]  # fmt: skip
    weights = sum(each.weight.numel() for each in linear)
    rows = sum(each.weight.shape[0] for each in linear)
    kept = loading.memory_of(full) - 4 * weights
    # A byte a weight and a float32 scale a row; half a byte and a float32 scale for 64 weights, 16 levels.
    assert loading.memory_of(eight) == kept + weights + 4 * rows
    assert (
        kept + weights // 2 + weights // 16
        <= loading.memory_of(four)
        <= kept + weights // 2 + (weights // 16 + len(linear) * 16 * 4)
    )
    before = loading.memory_of(eight)
    logits(eight)
    assert loading.memory_of(eight) == before


def test_the_library_does_not_warn_at_every_pass(pair_folder, caplog):
    pair = loading.load(str(pair_folder), device="cpu", quantize="8bit")
    with caplog.at_level(logging.WARNING):
        logits(pair.dynamo)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_what_is_not_supported_is_refused_in_one_sentence(pair_folder, monkeypatch):
    with pytest.raises(ValueError, match="quantize: "):
        loading.load(str(pair_folder), quantize="int8")
    with pytest.raises(ValueError, match="bitsandbytes does not support meta"):
        quantised.loading_options("8bit", pair_folder / "dynamo", torch.float32, torch.device("meta"))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="needs bitsandbytes, which does not load here"):
        loading.load(str(pair_folder), device="cpu", quantize="4bit")


@pytest.mark.parametrize("verb", ["generate", "compare"])
def test_commands_load_in_fewer_bits(pair_folder, capsys, monkeypatch, verb):
    asked = []
    real = quantised.loading_options
    monkeypatch.setattr(
        "dynamo.loading.pairs.loading_options", lambda *given: asked.append(given[0]) or real(*given)
    )
    arguments = [verb, "Hello", "--model", str(pair_folder), "--quantize", "4bit", "--max-new-tokens", "3"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) and set(asked) == {"4bit"}


def test_a_gpu_that_is_too_old_is_named(pair_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    with pytest.raises(ValueError, match=r"capability 7\.5 or more, Tesla V100 has less"):
        quantised.loading_options("8bit", pair_folder / "dynamo", torch.float16, torch.device("cuda"))


def test_other_quantisations_are_named(pair_folder):
    config = pair_folder / "dynamo" / "config.json"
    config.write_text(config.read_text().replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1))
    with pytest.raises(ValueError, match="is quantised by 'gptq'"):
        loading.load(str(pair_folder), device="cpu")


def test_a_shared_base_is_a_stock_model_on_the_same_weights():
    model = tiny_dynamo()
    base = model.to_pythia(shared=True)
    assert type(base).__name__ == "GPTNeoXForCausalLM" and base.config.model_type == "gpt_neox"
    assert base.config is not model.backbone.config
    theirs = {each.data_ptr() for each in model.backbone.parameters()}
    assert {each.data_ptr() for each in base.parameters()} == theirs
    assert {each.data_ptr() for each in model.to_pythia().parameters()}.isdisjoint(theirs)
