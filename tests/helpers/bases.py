"""Tiny random bases of two families, one with tied embeddings, and heads on them."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel

from dynamo import DynamoForCausalLM

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2,
         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
BASES = {
    "neox": (GPTNeoXConfig, {}),
    "llama": (LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}


def new_base(kind: str, **changes) -> PreTrainedModel:
    config_class, fields = BASES[kind]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_class(**SIZES | fields | changes)).eval()


def with_heads(base: PreTrainedModel, **heads) -> DynamoForCausalLM:
    torch.manual_seed(1)
    return DynamoForCausalLM.from_base(copy.deepcopy(base), **heads).eval()


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))
