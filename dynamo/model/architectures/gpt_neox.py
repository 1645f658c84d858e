"""GPT-NeoX, as the Pythia suite is: one projection by head, part of it rotated, attention beside the MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo.model.architectures.base import Architecture, LayerWeights, Part
from dynamo.model.rotary import apply_rotary
from dynamo.model.shape import LayerShape, ModelShape


class GPTNeoX(Architecture):
    name = "GPT-NeoX"
    model_type = "gpt_neox"
    config_class = GPTNeoXConfig
    model_class = GPTNeoXForCausalLM
    layer_class = GPTNeoXLayer

    def layer_shape(self, config: GPTNeoXConfig) -> LayerShape:
        head_dim = config.hidden_size // config.num_attention_heads
        return LayerShape(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            rotary_dim=int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)),
            activation=config.hidden_act,
            parallel=config.use_parallel_residual,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
        )

    def new_config(self, shape: ModelShape, **fields: Any) -> GPTNeoXConfig:
        layer = shape.layer
        return GPTNeoXConfig(
            vocab_size=shape.vocabulary,
            hidden_size=layer.hidden,
            intermediate_size=layer.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=layer.heads,
            hidden_act=layer.activation,
            max_position_embeddings=shape.positions,
            rotary_pct=layer.rotary_dim / layer.head_dim,
            use_parallel_residual=layer.parallel,
            attention_bias=layer.qkv_bias,
            tie_word_embeddings=shape.tied,
            **fields,
        )

    def new_norm(self, config: GPTNeoXConfig) -> nn.LayerNorm:
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def final_norm(self, base: GPTNeoXForCausalLM) -> nn.LayerNorm:
        return base.base_model.final_layer_norm

    def embed_dropout(self, base: GPTNeoXForCausalLM, embedded: Tensor) -> Tensor:
        return base.base_model.emb_dropout(embedded)

    def attention(self, layer: GPTNeoXLayer) -> nn.Module:
        return layer.attention

    def project(
        self, layer: GPTNeoXLayer, hidden_states: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        attention = layer.attention
        projected = attention.query_key_value(layer.input_layernorm(hidden_states))
        # A head's query, key and value lie side by side, so both that are rotated are one view.
        qkv = projected.view(len(hidden_states), -1, 3, attention.head_size)  # (new, heads, 3, head_dim)
        apply_rotary(qkv[:, :, :2], cos, sin)
        return qkv[:, :, 0], qkv[:, :, 1:].transpose(1, 2)

    def finish(self, layer: GPTNeoXLayer, attended: Tensor, hidden_states: Tensor) -> Tensor:
        attended = layer.attention.dense(attended)  # (queries, hidden)
        if layer.use_parallel_residual:  # in transformers' order of additions, or rounding would differ
            return layer.mlp(layer.post_attention_layernorm(hidden_states)) + attended + hidden_states
        hidden_states = attended + hidden_states
        return layer.mlp(layer.post_attention_layernorm(hidden_states)) + hidden_states

    def layer_weights(self, layer: GPTNeoXLayer) -> LayerWeights:
        attention, mlp = layer.attention, layer.mlp
        first, second = layer.input_layernorm, layer.post_attention_layernorm
        return LayerWeights(
            norms=((first.weight, first.bias), (second.weight, second.bias)),
            project=_by_kind(attention.query_key_value, attention.head_size),
            output=(attention.dense.weight, attention.dense.bias),
            gate=None,
            expand=(mlp.dense_h_to_4h.weight, mlp.dense_h_to_4h.bias),
            contract=(mlp.dense_4h_to_h.weight, mlp.dense_4h_to_h.bias),
            # The function itself, where transformers wraps it in a module.
            activation=getattr(mlp.act, "act", mlp.act),
            eps=first.eps,
            scaling=attention.scaling,
            parallel=layer.use_parallel_residual,
        )


def _by_kind(linear: nn.Linear, head_dim: int) -> Part:
    """Rows by head and then query, key, value -> by query, key, value and then head."""
    weight, bias = (
        None if part is None else part.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)
        for part in (linear.weight, linear.bias)
    )
    return weight, bias
