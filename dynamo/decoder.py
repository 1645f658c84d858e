"""One-step forward passes over a preallocated key-value cache, for a GPT-NeoX or a DynaMo model.

The decoder runs the model's own modules, so quantised or offloaded layers work unchanged; what it replaces is
the bookkeeping around them. Per pass it reads the new tokens, writes their keys and values in place, and
returns the logits of every head at the last position. Only that position needs a query in the last layer and
in the extra heads; all new positions need keys and values there.

A `DecodeState` is one lane's memory and is never shared; weights are shared by all lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM

from dynamo.model import DynamoForCausalLM


@dataclass
class DecodeState:
    """Keys and values (slots, heads, capacity, head_dim); `length` positions of each are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


class Decoder:
    """Cached forward passes of one model, for batches of one.

    `heads`: how many token heads it has (1 for a stock GPT-NeoX). `max_length`: positions the model was made
    for.
    """

    def __init__(self, model: GPTNeoXForCausalLM | DynamoForCausalLM):
        dynamo = isinstance(model, DynamoForCausalLM)
        self._base = model.backbone if dynamo else model
        self._token_heads = list(model.token_heads) if dynamo else []
        self._source_is_last = dynamo and model.config.head_source == "last"
        config = self._base.config
        self.heads = 1 + len(self._token_heads)
        self.max_length = config.max_position_embeddings
        self.vocab_size = config.vocab_size
        self._layers = list(self._base.gpt_neox.layers)
        self._attention_heads = config.num_attention_heads
        self._head_dim = config.hidden_size // config.num_attention_heads
        self._parallel = config.use_parallel_residual
        self._slots = len(self._layers) + sum(len(head.layers) for head in self._token_heads)
        self._cos, self._sin = self._rotary_tables()

    @property
    def device(self) -> torch.device:
        return self._base.gpt_neox.embed_in.weight.device

    @torch.inference_mode()
    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        embed = self._base.gpt_neox.embed_in.weight
        positions = torch.arange(self.max_length, device=embed.device).unsqueeze(0)
        cos, sin = self._base.gpt_neox.rotary_emb(embed[:1], position_ids=positions)
        return cos[0, :, None, None], sin[0, :, None, None]  # (max_length, 1, 1, rotary_dim)

    @torch.inference_mode()
    def new_state(self, capacity: int) -> DecodeState:
        """An empty cache for `capacity` positions."""
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"capacity: expected 1 to {self.max_length} positions, got {capacity}")
        shape = (self._slots, self._attention_heads, capacity, self._head_dim)
        dtype = self._base.gpt_neox.embed_in.weight.dtype
        return DecodeState(
            torch.empty(shape, dtype=dtype, device=self.device),
            torch.empty(shape, dtype=dtype, device=self.device),
        )

    @torch.inference_mode()
    def forward(self, state: DecodeState, tokens: Sequence[int], heads: int | None = None) -> Tensor:
        """Read `tokens` after what the state holds; logits (heads, vocab) at the last of them, in the model's
        dtype.

        heads: how many to run, all by default; the others' caches then miss these positions for good.
        """
        heads = self.heads if heads is None else heads
        start, stop = state.length, state.length + len(tokens)
        assert 1 <= heads <= self.heads, f"{heads} heads asked of {self.heads}"
        assert start < stop <= state.capacity, f"positions {start} to {stop} in a cache of {state.capacity}"
        neox = self._base.gpt_neox
        step = _Step(
            state, start, stop, self._cos[start:stop], self._sin[start:stop], self._mask(start, stop, state)
        )
        hidden_states = neox.embed_in(torch.tensor(tokens, device=self.device))  # (new, hidden)
        for slot, layer in enumerate(self._layers[:-1]):
            hidden_states = self._layer(layer, hidden_states, slot, step)
        # Heads that read the last layer's output need it at every new position, not only at the last one.
        every = self._source_is_last and heads > 1
        last = self._layer(self._layers[-1], hidden_states, len(self._layers) - 1, step, only_last=not every)
        source = last if self._source_is_last else hidden_states
        finals = [neox.final_layer_norm(last[-1:])]
        for head in self._token_heads[: heads - 1]:
            finals.append(self._extra_head(head, source, step))
        state.length = stop
        return self._logits(finals)

    def _mask(self, start: int, stop: int, state: DecodeState) -> Tensor | None:
        """Which cached positions each new one sees, (new, filled); None: a lone token sees them all."""
        if stop - start == 1:
            return None
        filled = torch.arange(stop, device=state.keys.device)
        return filled <= filled[start:, None]

    def _extra_head(self, head: nn.Module, source: Tensor, step: _Step) -> Tensor:
        hidden_states = source
        for i, layer in enumerate(head.layers):
            slot = layer.attention.layer_idx
            hidden_states = self._layer(layer, hidden_states, slot, step, only_last=i == len(head.layers) - 1)
        norm = head.final_layer_norm or self._base.gpt_neox.final_layer_norm
        return norm(hidden_states[-1:])

    def _logits(self, finals: list[Tensor]) -> Tensor:
        """One read of the shared output embedding for all heads that use it."""
        output = self._base.lm_head
        own = [head.output_embedding for head in self._token_heads[: len(finals) - 1]]
        if not any(own):
            return output(torch.cat(finals))
        return torch.cat([(e or output)(final) for e, final in zip([None, *own], finals, strict=True)])

    def _layer(
        self, layer: nn.Module, hidden_states: Tensor, slot: int, step: _Step, only_last: bool = False
    ) -> Tensor:
        attended = self._attention(layer, layer.input_layernorm(hidden_states), slot, step, only_last)
        if only_last:
            hidden_states = hidden_states[-1:]
        if self._parallel:
            return layer.mlp(layer.post_attention_layernorm(hidden_states)) + attended + hidden_states
        hidden_states = attended + hidden_states
        return layer.mlp(layer.post_attention_layernorm(hidden_states)) + hidden_states

    def _attention(
        self, layer: nn.Module, hidden_states: Tensor, slot: int, step: _Step, only_last: bool
    ) -> Tensor:
        attention, state = layer.attention, step.state
        qkv = attention.query_key_value(hidden_states).view(-1, self._attention_heads, 3, self._head_dim)
        rotary_dim = step.cos.shape[-1]
        turned = qkv[:, :, :2, :rotary_dim]  # queries and keys at once: (new, heads, 2, rotary_dim)
        half = torch.cat((-turned[..., rotary_dim // 2 :], turned[..., : rotary_dim // 2]), dim=-1)
        qkv[:, :, :2, :rotary_dim] = turned * step.cos + half * step.sin
        query, key, value = qkv.permute(2, 1, 0, 3)  # (heads, new, head_dim) each
        state.keys[slot, :, step.start : step.stop] = key
        state.values[slot, :, step.start : step.stop] = value
        mask = step.mask
        if only_last:
            query, mask = query[:, -1:], None
        attended = F.scaled_dot_product_attention(
            query.unsqueeze(0),
            state.keys[slot : slot + 1, :, : step.stop],
            state.values[slot : slot + 1, :, : step.stop],
            attn_mask=mask,
            scale=attention.scaling,
        )  # (1, heads, queries, head_dim)
        return attention.dense(attended[0].transpose(0, 1).reshape(query.shape[1], -1))


@dataclass(frozen=True)
class _Step:
    """What all layers of one pass share: the lane, the new positions, their rotations, their mask."""

    state: DecodeState
    start: int
    stop: int
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
