"""A GPT-NeoX layer as two matrix products, for small models that wait for their operators, not for memory.

Both layer norms of a parallel-residual layer normalise the same hidden states, so their scales and shifts
fold into the matrices behind them, and queries, keys, values and the MLP's first half become one product;
attention output and the MLP's second half become another. The half-rotated queries and keys that rotary
embedding needs are linear in the hidden states too: they are further rows of the first matrix. Layers that
read the same hidden states (a model's last layer and its extra heads) run as one, side by side.

Same numbers as the layers' own modules up to float32 rounding, at the price of a second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

MOST_ROWS = 8  # from about here on F.linear is as fast
LARGEST_COPY = 2**30  # bytes of packed weights; beyond it memory sets the pace and packing gains little


def can_pack(layers: Sequence[GPTNeoXLayer]) -> bool:
    """Whether these layers are plain enough: float32 on CPU, parallel residual, no quantised or hooked
    modules."""
    modules = [module for layer in layers for module in layer.modules()]
    weights = [weight for layer in layers for weight in layer.parameters()]
    return (
        all(layer.use_parallel_residual for layer in layers)
        and all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
        and not any(hasattr(module, "_hf_hook") for module in modules)
        and all(type(layer.attention.query_key_value) is nn.Linear for layer in layers)
        and sum(weight.numel() * weight.element_size() for weight in weights) <= LARGEST_COPY
    )


class PackedLayers:
    """`n` layers over the same hidden states, with caches in neighbouring slots.

    Rows of `weight_in` (n * rows, hidden), per layer: queries, keys, values, half-rotated queries and keys,
    MLP.
    """

    def __init__(self, layers: Sequence[GPTNeoXLayer], heads: int, rotary_dim: int):
        first = layers[0]
        self.hidden = first.attention.dense.out_features
        self.heads, self.head_dim, self.rotary_dim = heads, self.hidden // heads, rotary_dim
        self.inner = first.mlp.dense_h_to_4h.out_features
        self.eps = first.input_layernorm.eps
        self.scaling, self.activation = first.attention.scaling, first.mlp.act
        with torch.inference_mode():
            rows = [self._rows_in(layer) for layer in layers]
            self.weight_in = torch.cat([weight for weight, _ in rows])
            self.bias_in = torch.cat([bias for _, bias in rows])
            self.weight_out = torch.stack(
                [self._weight_out(layer) for layer in layers]
            )  # (n, hidden, h + inner)
            self.bias_out = torch.stack([self._bias_out(layer) for layer in layers])[:, None]
        self.rows = len(self.weight_in) // len(layers)

    def _rows_in(self, layer: GPTNeoXLayer) -> tuple[Tensor, Tensor]:
        attention, mlp = layer.attention.query_key_value, layer.mlp.dense_h_to_4h
        weight, bias = _folded(attention, layer.input_layernorm)
        shape = (self.heads, 3, self.head_dim)
        weight = weight.view(*shape, self.hidden).transpose(0, 1)  # (3, heads, head_dim, hidden)
        bias = bias.view(shape).transpose(0, 1)
        half_weight, half_bias = (_half_rotated(part[:2, :, : self.rotary_dim]) for part in (weight, bias))
        mlp_weight, mlp_bias = _folded(mlp, layer.post_attention_layernorm)
        return (
            torch.cat([weight.reshape(-1, self.hidden), half_weight.reshape(-1, self.hidden), mlp_weight]),
            torch.cat([bias.reshape(-1), half_bias.reshape(-1), mlp_bias]),
        )

    def _weight_out(self, layer: GPTNeoXLayer) -> Tensor:
        return torch.cat([layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight], dim=1)

    def _bias_out(self, layer: GPTNeoXLayer) -> Tensor:
        dense = layer.attention.dense.bias
        return layer.mlp.dense_4h_to_h.bias + (0 if dense is None else dense)

    def forward(
        self, hidden_states: Tensor, n: int, cache: Tensor, stop: int, cos: Tensor, sin: Tensor,
        mask: Tensor | None, queries: int,
    ) -> Tensor:  # fmt: skip
        """The first `n` layers' outputs, (n, queries, hidden), after writing the new positions into `cache`.

        hidden_states (new, hidden); cache (n, capacity, 2, heads, head_dim), filled up to `stop` afterwards;
        cos, sin (new, 1, 1, 1, rotary_dim); queries: of how many last positions.
        """
        new, hidden = len(hidden_states), self.hidden
        normed = F.layer_norm(hidden_states, (hidden,), None, None, self.eps)
        rows = n * self.rows
        projected = few_rows_linear(normed, self.weight_in[:rows], self.bias_in[:rows]).view(
            new, n, self.rows
        )
        qkv = projected[..., : 3 * hidden].view(new, n, 3, self.heads, self.head_dim)
        halves = projected[..., 3 * hidden : -self.inner].view(new, n, 2, self.heads, self.rotary_dim)
        qkv[:, :, :2, :, : self.rotary_dim].mul_(cos).addcmul_(halves, sin)
        cache[:, stop - new : stop] = qkv[:, :, 1:].transpose(0, 1)
        query, inner = qkv[-queries:, :, 0], projected[-queries:, :, -self.inner :]
        hidden_states = hidden_states[-queries:]
        attended = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            cache[:, :stop, 0].transpose(1, 2),
            cache[:, :stop, 1].transpose(1, 2),
            attn_mask=None if mask is None or queries == 1 else mask[-queries:],
            scale=self.scaling,
        )  # (n, heads, queries, head_dim)
        mixed = torch.cat(
            (attended.transpose(1, 2).flatten(2), self.activation(inner).transpose(0, 1)), dim=-1
        )
        if n == 1:
            return few_rows_linear(mixed[0], self.weight_out[0], self.bias_out[0, 0]).add_(hidden_states)[
                None
            ]
        columns = torch.baddbmm(
            self.bias_out[:n].transpose(1, 2), self.weight_out[:n], mixed.transpose(1, 2)
        )  # (n, hidden, queries)
        return columns.transpose(1, 2) + hidden_states


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for the few rows of a chunk: (rows, in), (out, in), (out,) -> (rows, out).

    With the weight as the left factor it is read once for all rows; F.linear reads it about once for each. A
    lone row goes as two: the matrix-vector kernel is slower than the matrix-matrix one where the weight is
    not in the cache.
    """
    rows = len(x)
    if rows > MOST_ROWS:
        return F.linear(x, weight, bias)
    columns = (x if rows > 1 else x.repeat(2, 1)).t()
    product = torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)
    return product[:, :rows].t().contiguous()


def _folded(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """linear(norm(x)) as weight and bias on the normalised x before the norm's own scale and shift."""
    bias = linear.weight @ norm.bias
    return linear.weight * norm.weight, bias if linear.bias is None else linear.bias + bias


def _half_rotated(part: Tensor) -> Tensor:
    """Rotary embedding's second term, (-x2, x1), along dimension 2: (2, heads, rotary_dim, ..)."""
    first, second = part.chunk(2, dim=2)
    return torch.cat((-second, first), dim=2)
