"""One-step forward passes over a preallocated key-value cache, for a GPT-NeoX or a DynaMo model.

Per pass the decoder reads the new tokens, writes their keys and values in place, and returns the logits of
every head at the last position. Only that position needs a query in the last layer and in the extra heads;
all new positions need keys and values there. Small float32 models on CPU run on packed copies of their layers
(`dynamo.packed`); any other runs its own modules, so quantised or offloaded layers work unchanged.

A `DecodeState` is one lane's memory and is never shared; weights are shared by all lanes, and must not change
while a decoder is in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM

from dynamo.model import DynamoForCausalLM
from dynamo.packed import PackedLayers, can_pack, few_rows_linear


@dataclass
class DecodeState:
    """Keys and values, cache (slots, capacity, 2, heads, head_dim); `length` positions of every slot are
    filled."""

    cache: Tensor
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.cache.shape[1]

    def rewind(self, positions: int) -> None:
        """Forget the last positions, in every slot."""
        assert 0 <= positions <= self.length, f"{positions} positions of {self.length} to be forgotten"
        self.length -= positions


class Decoder:
    """Cached forward passes of one model, for batches of one.

    heads: how many token heads it has (1 for a stock GPT-NeoX); max_length: positions the model was made for;
    packed: whether it runs on packed copies of the layers. `packed=False` asks for the model's own modules.
    """

    def __init__(self, model: GPTNeoXForCausalLM | DynamoForCausalLM, packed: bool | None = None):
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
        self._slots = len(self._layers) + sum(len(head.layers) for head in self._token_heads)
        self._cos, self._sin = self._rotary_tables()
        # The last layer and the extra heads side by side, where each head is one layer on the stem's output.
        side_by_side = [self._layers[-1], *(layer for head in self._token_heads for layer in head.layers)]
        regular = not self._source_is_last and len(side_by_side) == self.heads
        self.packed = regular and can_pack([*self._layers[:-1], *side_by_side]) and packed is not False
        if self.packed:
            self._stem = [self._pack([layer]) for layer in self._layers[:-1]]
            self._finals = self._pack(side_by_side)

    @property
    def device(self) -> torch.device:
        return self._base.gpt_neox.embed_in.weight.device

    def _pack(self, layers: list[nn.Module]) -> PackedLayers:
        return PackedLayers(layers, self._attention_heads, self._cos.shape[-1])

    @torch.inference_mode()
    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        embed = self._base.gpt_neox.embed_in.weight
        positions = torch.arange(self.max_length, device=embed.device).unsqueeze(0)
        cos, sin = self._base.gpt_neox.rotary_emb(embed[:1], position_ids=positions)
        return cos[0, :, None, None, None], sin[0, :, None, None, None]  # (max_length, 1, 1, 1, rotary_dim)

    @torch.inference_mode()
    def new_state(self, capacity: int) -> DecodeState:
        """An empty cache for `capacity` positions."""
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"capacity: expected 1 to {self.max_length} positions, got {capacity}")
        dtype = self._base.gpt_neox.embed_in.weight.dtype
        shape = (self._slots, capacity, 2, self._attention_heads, self._head_dim)
        return DecodeState(torch.empty(shape, dtype=dtype, device=self.device))

    @torch.inference_mode()
    def forward(
        self,
        state: DecodeState,
        tokens: Sequence[int],
        heads: int | None = None,
        queries: int | None = None,
    ) -> Tensor:
        """Read `tokens` after what the state holds; logits (heads, vocab) at the last of them, or of the last
        `queries` of them (heads, queries, vocab), in the model's dtype.

        heads: how many to run, all by default; the others' caches then miss these positions for good.
        """
        heads = self.heads if heads is None else heads
        start, stop = state.length, state.length + len(tokens)
        assert 1 <= heads <= self.heads, f"{heads} heads asked of {self.heads}"
        assert start < stop <= state.capacity, f"positions {start} to {stop} in a cache of {state.capacity}"
        assert queries is None or 1 <= queries <= len(tokens), f"{queries} queries, {len(tokens)} tokens"
        step = _Step(
            state.cache,
            stop,
            self._cos[start:stop],
            self._sin[start:stop],
            self._mask(start, stop),
            queries or 1,
        )
        hidden_states = self._base.gpt_neox.embed_in(
            torch.tensor(tokens, device=self.device)
        )  # (new, hidden)
        finals = (self._packed_pass if self.packed else self._module_pass)(hidden_states, heads, step)
        state.length = stop
        logits = self._logits(finals)
        return logits[:, 0] if queries is None else logits

    def _mask(self, start: int, stop: int) -> Tensor | None:
        """Which cached positions each new one sees, (new, filled); None: a lone token sees them all."""
        if stop - start == 1:
            return None
        filled = torch.arange(stop, device=self.device)
        return filled <= filled[start:, None]

    def _packed_pass(self, hidden_states: Tensor, heads: int, step: _Step) -> Tensor:
        """Outputs of the last layer and the extra heads at the last positions, (heads, queries, hidden)."""
        shared = (step.stop, step.cos, step.sin, step.mask)
        for slot, layer in enumerate(self._stem):
            hidden_states = layer.forward(
                hidden_states, 1, step.cache[slot : slot + 1], *shared, queries=len(hidden_states)
            )[0]
        first = len(self._stem)
        cache = step.cache[first : first + heads]
        return self._finals.forward(hidden_states, heads, cache, *shared, queries=step.queries)

    def _module_pass(self, hidden_states: Tensor, heads: int, step: _Step) -> Tensor:
        """The same through the model's own modules."""
        for slot, layer in enumerate(self._layers[:-1]):
            hidden_states = self._layer(layer, hidden_states, slot, step, len(hidden_states))
        # Heads that read the last layer's output need it at every new position, not only at the last ones.
        new = len(hidden_states)
        every = self._source_is_last and heads > 1
        queries = new if every else step.queries
        last = self._layer(self._layers[-1], hidden_states, len(self._layers) - 1, step, queries)
        source = last if self._source_is_last else hidden_states
        outputs = [last[-step.queries :]]
        for head in self._token_heads[: heads - 1]:
            output = source
            for i, layer in enumerate(head.layers, start=1):
                slot = layer.attention.layer_idx
                output = self._layer(
                    layer, output, slot, step, step.queries if i == len(head.layers) else new
                )
            outputs.append(output[-step.queries :])
        return torch.stack(outputs)

    def _logits(self, outputs: Tensor) -> Tensor:
        """Final norm and output embedding, what is shared read once.

        (heads, queries, hidden) -> (heads, queries, vocab)
        """
        norm, embedding = self._base.gpt_neox.final_layer_norm, self._base.lm_head
        extra = self._token_heads[: len(outputs) - 1]
        if not any(head.final_layer_norm or head.output_embedding for head in extra):
            plain = self.packed and type(embedding) is nn.Linear
            rows = norm(outputs).flatten(0, 1)
            logits = few_rows_linear(rows, embedding.weight) if plain else embedding(rows)
            return logits.unflatten(0, outputs.shape[:2])
        rows = [embedding(norm(outputs[0]))]
        for head, output in zip(extra, outputs[1:], strict=True):
            rows.append((head.output_embedding or embedding)((head.final_layer_norm or norm)(output)))
        return torch.stack(rows)

    def _layer(self, layer: nn.Module, hidden_states: Tensor, slot: int, step: _Step, queries: int) -> Tensor:
        """One layer at the last `queries` of the new positions; keys and values at all of them."""
        attended = self._attention(layer.attention, layer.input_layernorm(hidden_states), slot, step, queries)
        hidden_states = hidden_states[-queries:]
        if layer.use_parallel_residual:
            return layer.mlp(layer.post_attention_layernorm(hidden_states)) + attended + hidden_states
        hidden_states = attended + hidden_states
        return layer.mlp(layer.post_attention_layernorm(hidden_states)) + hidden_states

    def _attention(
        self, attention: nn.Module, hidden_states: Tensor, slot: int, step: _Step, queries: int
    ) -> Tensor:
        new = len(hidden_states)
        qkv = attention.query_key_value(hidden_states).view(new, self._attention_heads, 3, self._head_dim)
        cos, sin = step.cos[:, 0], step.sin[:, 0]  # (new, 1, 1, rotary_dim)
        turned = qkv[:, :, :2, : cos.shape[-1]]  # queries and keys at once
        first, second = turned.chunk(2, dim=-1)
        qkv[:, :, :2, : cos.shape[-1]] = turned * cos + torch.cat((-second, first), dim=-1) * sin
        cache = step.cache[slot]
        cache[step.stop - new : step.stop] = qkv[:, :, 1:].transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            qkv[-queries:, :, 0].transpose(0, 1).unsqueeze(0),
            cache[: step.stop, 0].transpose(0, 1).unsqueeze(0),
            cache[: step.stop, 1].transpose(0, 1).unsqueeze(0),
            attn_mask=None if step.mask is None or queries == 1 else step.mask[-queries:],
            scale=attention.scaling,
        )  # (1, heads, queries, head_dim)
        return attention.dense(attended[0].transpose(0, 1).flatten(1))


@dataclass(frozen=True)
class _Step:
    """What all layers of one pass share: the lane's cache, where it ends, rotations and mask of the new
    positions, and of how many of them the outputs are wanted."""

    cache: Tensor
    stop: int
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    queries: int
