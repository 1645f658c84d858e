"""Tiny models as GGUF files, as llama.cpp's converter would write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

Kind = GGMLQuantizationType
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def tiny(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model whose every shape is told apart: two query heads to a head of keys, tied as `changes` say."""
    fields = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "bos_token_id": 0,
        "eos_token_id": 3,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**fields | changes)).eval()
    for weight in model.parameters():
        if weight.ndim == 1:  # norms of 1 and biases of 0 would hide that they were left out
            torch.nn.init.normal_(weight.data, mean=1.0, std=0.1)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    matrices: Kind = Kind.Q8_0,
    split: str = "gpt-2",
    fields: dict[str, int | str] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """fields, tensors: more of them, or others in place of the model's."""
    config = model.config
    family = config.model_type
    writer = GGUFWriter(None, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_file_type({Kind.F32: 0, Kind.F16: 1, Kind.BF16: 32}.get(matrices, 7))
    _add_tokenizer(writer, tokenizer, split)
    for key, value in (fields or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    family_key = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family)
    names = get_tensor_name_map(family_key, config.num_hidden_layers)
    stored = {}
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # As llama.cpp wants them: what is rotated together stands side by side.
            halves = values.reshape(-1, 2, head_dim // 2, config.hidden_size)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        stored[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    for name, values in (stored | (tensors or {})).items():
        kind = matrices if values.ndim == 2 else Kind.F32
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, split: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
