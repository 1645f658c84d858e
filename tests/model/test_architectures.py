"""Every supported family of bases: the same promises as the paper's, whatever the shape of its layers."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import dynamo
from dynamo import DynamoConfig, DynamoForCausalLM, Engine, SamplingOptions
from dynamo.decoding.decoder import Decoder
from dynamo.evaluation.shapes import SHAPES
from dynamo.model import architecture_of, model_shape
from dynamo.model.architectures import ARCHITECTURES, new_base_config

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.2,
         "bos_token_id": 0, "eos_token_id": None}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
SHAPED = {
    "neox": (GPTNeoXConfig, {}),
    "neox, yarn on half of a head": (
        GPTNeoXConfig, {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
    ),
    "neox, sequential, no biases": (GPTNeoXConfig, {"use_parallel_residual": False, "attention_bias": False}),
    "neox, tied, whole heads turned": (GPTNeoXConfig, {"tie_word_embeddings": True, "rotary_pct": 1.0}),
    "llama": (LlamaConfig, {}),
    "llama, grouped, tied": (LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama, one key head, biases": (
        LlamaConfig, {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3, wide heads": (
        LlamaConfig, {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": LLAMA3},
    ),
    "llama, yarn": (LlamaConfig, {"rope_parameters": YARN}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral, wide heads": (MistralConfig, {"num_key_value_heads": 2, "head_dim": 16}),
    "mistral, one key head, yarn": (MistralConfig, {"num_key_value_heads": 1, "rope_parameters": YARN}),
    "mistral, every head its own, tied": (
        MistralConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "qwen2, tied": (Qwen2Config, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen2, one key head, yarn": (Qwen2Config, {"num_key_value_heads": 1, "rope_parameters": YARN}),
    "qwen2, wide heads": (Qwen2Config, {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "qwen3, wide heads, biases, tied": (
        Qwen3Config,
        {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3, one key head, yarn": (
        Qwen3Config, {"num_key_value_heads": 1, "head_dim": 8, "rope_parameters": YARN},
    ),
    "qwen3, every head its own": (Qwen3Config, {"num_key_value_heads": 4, "head_dim": 8}),
}  # fmt: skip


def tiny(name: str):
    """A random base of one of `SHAPED`; its norms and biases are no ones and zeros."""
    config_class, changes = SHAPED[name]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_class(**SIZES, **changes))
    with torch.no_grad():
        for weight in base.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return base.eval()


FIRST = {config_class: name for name, (config_class, _) in reversed(SHAPED.items())}.values()
# `make check` looks at one shape of each family.
PARAMS = [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in SHAPED]


@pytest.fixture(params=PARAMS, ids=SHAPED)
def base(request):
    return tiny(request.param)


@pytest.fixture
def model(base):
    return DynamoForCausalLM.from_base(copy.deepcopy(base), head_init="random").eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(1))


def test_the_first_head_is_the_base_and_comes_out_of_it_whole(base, model, tmp_path):
    text = ids(2, 40)
    with torch.no_grad():
        expected = base(text).logits
        torch.testing.assert_close(model(text).logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(model.to_base()(text).logits, expected)
        model.save_pretrained(tmp_path)
        again = DynamoForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(text).head_logits, model(text).head_logits)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(text).logits, model(text).logits)
    for config in (again.config, model.config):
        config.dtype = config.text_config.dtype = None
        config.name_or_path = ""
    assert again.config.to_json_string() == model.config.to_json_string()
    assert again.config.text_config is again.backbone.config
    tied = base.config.tie_word_embeddings
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


def test_the_shape_counts_what_the_model_has(base, model):
    shape = model_shape(model)
    assert shape.base_parameters == sum(weight.numel() for weight in base.parameters())
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.positions == model.config.max_position_embeddings == 256
    again = new_base_config(shape.base, bos_token_id=None)
    if type(again) is type(base.config):
        assert architecture_of(again).model_shape(again) == shape.base


@pytest.mark.parametrize(("packed", "length"), [(True, 100), (False, 50)])
def test_cached_decoding_in_chunks_gives_the_uncached_logits(model, packed, length):
    """One text by itself and a batch of three, chunks of one to three, to the end and nearly as far."""
    decoder = Decoder(model, packed=None if packed else False)
    assert decoder.packed == (packed and not model_shape(model).layer.qk_norm)
    texts = ids(3, length)
    with torch.no_grad():
        expected = model(texts).head_logits  # (heads, texts, positions, vocab)
    alone, batch = decoder.new_cache(256), decoder.new_batch(3, 256)
    at, rows = 0, [0, 0, 0]
    sizes = torch.randint(1, 4, (150, 4), generator=torch.Generator().manual_seed(2)).tolist()
    for *each, own in sizes:
        own = min(own, length - at)
        if own:
            logits = decoder.forward(alone, texts[0, at : at + own].tolist(), queries=own)
            torch.testing.assert_close(logits, expected[:, 0, at : at + own], atol=2e-4, rtol=1e-3)
            at += own
        each = [min(size, length - row) for size, row in zip(each, rows, strict=True)]
        if min(each):
            ends = [row + size for row, size in zip(rows, each, strict=True)]
            places = enumerate(zip(rows, ends, strict=True))
            last = decoder.forward_batch(batch, [texts[i, row:end].tolist() for i, (row, end) in places])
            rows = ends
            wanted = torch.stack([expected[:, i, row - 1] for i, row in enumerate(rows)], dim=1)
            torch.testing.assert_close(last, wanted, atol=2e-4, rtol=1e-3)
    assert at == length and min(rows) > 0.75 * length


def test_exact_mode_writes_the_bases_own_text(base, model):
    """Drafts of copied heads are often right here, so that texts of several heads are compared."""
    copied = DynamoForCausalLM.from_base(copy.deepcopy(base), head_init="copy").eval()
    prompt, greedy = ids(6).tolist(), SamplingOptions(temperature=0.0, repetition_penalty=1.0)
    with torch.no_grad():
        expected = base.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, 6:].tolist()
    for each in (model, copied):
        exact = replace(greedy, exact=True)
        steps = list(Engine(each).stream(prompt, exact, max_new_tokens=30))
        assert [token for step in steps for token in step.tokens] == expected


def test_one_training_step_is_the_double_loop(model):
    """Losses of every head by hand, and the gradients of two rates and one scale."""
    text = ids(2, 12)
    model.train()
    output = model(text, labels=text)
    output.loss.backward()
    oracle = copy.deepcopy(model).double()
    oracle.zero_grad()
    logits = oracle(text, return_logits=True).head_logits
    total = torch.zeros((), dtype=torch.float64)
    for head in range(3):
        nats = [
            cross_entropy(logits[head, row, at], text[row, at + head + 1])
            for row in range(2)
            for at in range(12 - head - 1)
        ]
        total += torch.stack(nats).mean()
        assert output.head_losses[head].item() == pytest.approx(torch.stack(nats).mean().item(), rel=1e-4)
    total.backward()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), oracle.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_heads_send_back_their_share_of_the_gradient(base):
    text = ids(1, 12)
    gradients = {}
    for scale in (0.0, 0.5, 1.0):
        torch.manual_seed(3)
        model = DynamoForCausalLM.from_base(copy.deepcopy(base), head_gradient_scale=scale)
        model(text, labels=text).loss.backward()
        norm = architecture_of(model).final_norm(model.backbone).weight.grad
        gradients[scale] = (model.get_input_embeddings().weight.grad, norm)
    for none, half, whole in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(half, (none + whole) / 2, atol=1e-5, rtol=1e-3)
        assert not torch.allclose(none, whole)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(),
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1),
        Qwen3Config(use_sliding_window=True, sliding_window=16, max_window_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_what_is_not_built_is_refused_by_name(config: PreTrainedConfig):
    names = [each.name for each in ARCHITECTURES]
    with pytest.raises(ValueError, match=f"{config.model_type}|{'|'.join(names)}"):
        DynamoConfig.from_base(config)


def test_a_text_is_no_longer_than_a_window():
    base = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=64))
    model = DynamoForCausalLM.from_base(base)
    assert Decoder(model).max_length == model_shape(model).positions == 64
    with pytest.raises(ValueError, match=r"input_ids: .*64"):
        model(ids(1, 65))


def test_a_base_can_be_read_and_set_through_the_configuration():
    config = DynamoConfig.from_base(LlamaConfig(**SIZES))
    config.vocab_size = 99
    assert config.text_config.vocab_size == 99 and "vocab_size" not in config.to_dict()
    assert copy.deepcopy(config).hidden_size == 32
    with pytest.raises(AttributeError, match="no_such"):
        _ = config.no_such


def test_a_configuration_without_a_base_is_of_the_papers_family():
    """Files of the first edition hold the base's fields beside the heads'."""
    flat = DynamoConfig(**SIZES, num_token_heads=2, rotary_pct=0.5)
    assert flat.text_config.model_type == "gpt_neox" and flat.hidden_size == 32
    assert DynamoConfig(**flat.to_dict()).to_dict() == flat.to_dict()


def test_smollm2_gets_five_percent_more_parameters():
    """Design's figure for three heads; the hub's model has 134,515,008 parameters."""
    shape = SHAPES["smollm2-135m"]
    assert shape.parameters == 134_515_008
    assert 2 * shape.layer.parameters / shape.parameters == pytest.approx(0.053, abs=5e-4)


# Names of the contract, and of tables of a suite's checkpoints.
KNOWN = ("from_pythia", "to_pythia", "pythia", "pythia_shape")


@pytest.mark.slow
def test_families_are_named_in_their_folder_alone():
    """Imports, names and attributes; prose and the names of checkpoints may say them."""
    families = ("neox", "llama", "mistral", "qwen", "pythia")
    root = Path(dynamo.__file__).parent
    for path in root.rglob("*.py"):
        if "architectures" in path.parts or path.stem == "peer_process":  # llama.cpp is a program
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "attr", "name", "module", "arg", "asname"):
                name = str(getattr(node, field, "")).lower()
                found = any(family in name for family in families) and name not in KNOWN
                assert not found, f"{path.relative_to(root)}:{node.lineno}: {name}"
