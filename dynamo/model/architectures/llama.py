"""Llama and its relatives: RMSNorm, a gated MLP, attention of grouped heads, one residual after the other.

Llama (SmolLM2, TinyLlama, Llama 2 and 3 ..) is the plain case. Mistral sees no further than its window, so a
text is as long as that at most. Qwen2 has biases in the projections of queries, keys and values; Qwen3
normalises queries and keys by head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

from dynamo.model.architectures.base import Architecture, LayerWeights, join_rows
from dynamo.model.rotary import apply_rotary
from dynamo.model.shape import LayerShape, ModelShape


class Llama(Architecture):
    name = "Llama"
    model_type = "llama"
    config_class = LlamaConfig
    model_class = LlamaForCausalLM
    layer_class = LlamaDecoderLayer
    norm_class: type[nn.Module] = LlamaRMSNorm

    def layer_shape(self, config: PreTrainedConfig) -> LayerShape:
        # Some configurations say it, as their heads need not make up the hidden size (Qwen3's do not).
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        qkv_bias, output_bias, mlp_bias = self._biases(config)
        return LayerShape(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_dim=head_dim,
            norm="rms",
            activation=config.hidden_act,
            gated=True,
            parallel=False,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            mlp_bias=mlp_bias,
        )

    def _biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        """Of queries, keys and values; of attention's output; of the MLP."""
        return config.attention_bias, config.attention_bias, config.mlp_bias

    def new_config(self, shape: ModelShape, **fields: Any) -> PreTrainedConfig:
        layer = shape.layer
        return self.config_class(
            vocab_size=shape.vocabulary,
            hidden_size=layer.hidden,
            intermediate_size=layer.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=layer.heads,
            num_key_value_heads=layer.kv_heads,
            head_dim=layer.head_dim,
            hidden_act=layer.activation,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=shape.tied,
            attention_bias=layer.qkv_bias,
            mlp_bias=layer.mlp_bias,
            **fields,
        )

    def new_norm(self, config: PreTrainedConfig) -> nn.Module:
        return self.norm_class(config.hidden_size, eps=config.rms_norm_eps)

    def final_norm(self, base: PreTrainedModel) -> nn.Module:
        return base.base_model.norm

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.self_attn

    def project(
        self, layer: nn.Module, hidden_states: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden_states)
        q, k, v = (
            projection(normed).unflatten(-1, (-1, attention.head_dim))  # (new, heads or kv_heads, head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = self._normed_by_head(attention, q, k)
        kv = torch.stack((k, v), dim=1)  # (new, 2, kv_heads, head_dim), as the cache has them
        apply_rotary(q[:, None], cos, sin)  # in place: the products just made belong to nobody else
        apply_rotary(kv[:, :1], cos, sin)
        return q, kv

    def _normed_by_head(self, attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def finish(self, layer: nn.Module, attended: Tensor, hidden_states: Tensor) -> Tensor:
        # One residual after the other: the MLP reads what attention has added.
        hidden_states = hidden_states + layer.self_attn.o_proj(attended)
        return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))

    def layer_weights(self, layer: nn.Module) -> LayerWeights:
        attention, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        return LayerWeights(
            norms=((norm.weight, None), (layer.post_attention_layernorm.weight, None)),
            project=join_rows(
                *((each.weight, each.bias) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
            ),
            output=(attention.o_proj.weight, attention.o_proj.bias),
            # down(act(gate x) * up x)
            gate=(mlp.gate_proj.weight, mlp.gate_proj.bias),
            expand=(mlp.up_proj.weight, mlp.up_proj.bias),
            contract=(mlp.down_proj.weight, mlp.down_proj.bias),
            activation=mlp.act_fn,
            eps=norm.variance_epsilon,
            scaling=attention.scaling,
            parallel=False,
        )


class Mistral(Llama):
    name = "Mistral"
    model_type = "mistral"
    config_class = MistralConfig
    model_class = MistralForCausalLM
    layer_class = MistralDecoderLayer
    norm_class = MistralRMSNorm

    def _biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return False, False, False

    def window(self, config: PreTrainedConfig) -> int | None:
        return config.sliding_window


class Qwen2(Llama):
    name = "Qwen2"
    model_type = "qwen2"
    config_class = Qwen2Config
    model_class = Qwen2ForCausalLM
    layer_class = Qwen2DecoderLayer
    norm_class = Qwen2RMSNorm

    def _biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return True, False, False

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        windows = any(kind != "full_attention" for kind in config.layer_types)
        return "attention over windows (use_sliding_window)" if windows else super().unsupported(config)


class Qwen3(Qwen2):
    name = "Qwen3"
    model_type = "qwen3"
    config_class = Qwen3Config
    model_class = Qwen3ForCausalLM
    layer_class = Qwen3DecoderLayer
    norm_class = Qwen3RMSNorm

    def layer_shape(self, config: PreTrainedConfig) -> LayerShape:
        return replace(super().layer_shape(config), qk_norm=True)

    def _biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return config.attention_bias, config.attention_bias, False

    def _normed_by_head(self, attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return attention.q_norm(q), attention.k_norm(k)
