"""Cached forward passes for a base or a DynaMo model: one pass, one chunk of new tokens for each text.

Per pass the decoder reads the new tokens, writes their keys and values in place, and returns the logits of
every head at the last position. Only that position needs a query in the last layer and in the extra heads;
all new positions need keys and values there. Exact mode asks for the logits of several last positions.
Float32 models on CPU run on packed copies of their layers (`dynamo.decoding.packed`); any other runs its
own modules, so quantised layers work unchanged, and offloaded ones too (`dynamo.decoding.offloaded`).

Weights are shared by all texts, and must not change while a decoder is in use; caches are each text's own
(`dynamo.decoding.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from dynamo import kernels
from dynamo.common.laps import lap
from dynamo.decoding import few_bits
from dynamo.decoding.attention import AttentionStep, CausalMasks, Rotary
from dynamo.decoding.by_position import LogitsByPosition
from dynamo.decoding.cache import BatchKVCache, KVCache
from dynamo.decoding.few_bits import BYTES
from dynamo.decoding.in_loops import GatedPass, InLoop, gated_pass, half_product
from dynamo.decoding.packed import WEIGHTS, LayerCopies, LoopedLayers, Product, matrix_product, pack
from dynamo.decoding.shared import Shared, shared
from dynamo.model import LayerWeights, architecture_of, model_shape, walk_heads
from dynamo.model.packing import can_pack, power_of_copy, split_layers
from dynamo.model.shape import LARGEST_COPY


class Decoder:
    """Cached forward passes of one model.

    heads: how many token heads it has (1 for a base); max_length: positions the model was made for; packed:
    whether it runs on packed copies of the layers. `packed=False` asks for the model's own modules,
    weights="int8" or "int4" for copies in so many bits (ValueError where there can be none).
    """

    def __init__(self, model: PreTrainedModel, packed: bool | None = None, weights: str = "own"):
        if weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
        self._architecture, self._shape = architecture_of(model), model_shape(model)
        self._base = getattr(model, "backbone", model)
        self._token_heads = list(getattr(model, "token_heads", ()))
        self._source_is_last = getattr(model.config, "head_source", "") == "last"
        self._weights = weights
        self.heads = 1 + len(self._token_heads)
        self.max_length, self.vocab_size = self._shape.positions, self._shape.vocabulary
        self._layers = self._architecture.layers(self._base)
        self._embed = self._base.get_input_embeddings()
        self._final_norm = self._architecture.final_norm(self._base)
        self._unembed = self._base.get_output_embeddings()
        self._order: Tensor | None = getattr(model, "tokens_by_frequency", None)
        self._output_is_shared = not any(
            head.final_layer_norm or head.output_embedding for head in self._token_heads
        )
        self.packed = packed is not False and can_pack(model, weights)
        if weights != "own" and not (self.packed and few_bits.fits_few_bits(self._shape.layer)):
            raise ValueError(
                f"weights: {weights} is for float32 models on CPU whose layers are plain and their widths "
                f"multiples of 32, in packed copies of at most {LARGEST_COPY // 2**30} GB; this one runs its "
                f"{self._dtype} weights on {self.device}"
            )
        self._prepare()
        self._in_loops: GatedPass | LoopedLayers | None = None
        self._of_few: dict[int, tuple[NDArray[np.int64], Product | None]] = {}
        if self.packed:
            self._pack(model)
            self._warm_up()

    @torch.inference_mode()
    def _prepare(self) -> None:
        self._rotary = self._rotary_tables(self.device)
        self._masks = CausalMasks(self.max_length, self._dtype, self.device)

    @torch.inference_mode()
    def _pack(self, model: PreTrainedModel) -> None:
        stem, finals = split_layers(model)
        modules = [*stem, *finals]
        layers = list(map(self._architecture.layer_weights, modules))
        self._copies = [
            self._shared(partial(LayerCopies, layer, self._weights), module, self._weights)
            for layer, module in zip(layers, modules, strict=True)
        ]
        copies = [each.made for each in self._copies]
        self._stem = [pack([layers[slot]], [copies[slot]], slot) for slot in range(len(stem))]
        own = self._weights == "own"
        in_loop = self._shape.layer.in_loop(len(layers), len(finals)) if own else 0
        first, looped = len(stem), in_loop == len(finals) < len(layers)
        self._finals = pack(layers[first:], copies[first:], first, looped)
        # Beside the stem's own products, which are for more rows.
        if in_loop == len(layers):
            self._in_loops = LoopedLayers(layers, 0)
        elif own and self._shape.layer.fits_passes(len(layers)) and all(each.half for each in copies):
            self._in_loops = gated_pass(layers, self._copies, lambda: list(map(_in_halves, layers, copies)))
        elif few_bits.in_loops(self._weights) and self._shape.layer.fits_passes():
            self._in_loops = gated_pass(layers, self._copies, lambda: [each.products for each in copies])
        if type(self._unembed) is nn.Linear:
            # Its rounding goes into every logit, so it has 8 bits where the layers have 4.
            kept = "int8" if self._weights == "int4" else self._weights
            # Not torch's kernel beside the loops: its threads would wait on processors that theirs need.
            way = kept, own and self._in_loops is not None
            unembed, self._output_way = self._unembed, way
            made = partial(_output_product, unembed.weight, unembed.bias, *way)
            self._output = self._shared(made, unembed, *way)
            self._unembed = self._output.made

    def _shared(self, make: Callable[[], Any], module: nn.Module, *way: Any) -> Shared:
        """What is made of a module's weights, once for all decoders that make it so."""
        return shared(make, list(module.parameters()), *way, few_bits.in_loops(self._weights))

    def _warm_up(self) -> None:
        """Compile or load the loops that a pass runs, before one is timed."""
        if kernels.loops() is not None:
            with kernels.tried():
                self.forward(self.new_cache(1), [0])

    def bytes_per_weight(self) -> float:
        """How many bytes a pass reads of one weight: fewer in a packed copy than in the model, or as many."""
        if self._weights in BYTES:
            return BYTES[self._weights]
        halves = self.packed and all(each.made.half for each in self._copies[: len(self._layers)])
        return 2 if halves else self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return self._embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return self._embed.weight.device

    def _rotary_tables(self, device: torch.device) -> Rotary:
        """Cosines and sines, (max_length, 1, 1, rotary_dim) each."""
        positions = torch.arange(self.max_length, device=device).unsqueeze(0)
        like = torch.empty(1, dtype=self._dtype, device=device)  # only its device and dtype are read
        cos, sin = self._base.base_model.rotary_emb(like, position_ids=positions)
        return tuple(each[0, :, None, None].to(device) for each in (cos, sin))

    @torch.inference_mode()
    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for `capacity` positions."""
        return KVCache(torch.empty(self._cache_shape(capacity), dtype=self._dtype, device=self.device))

    @torch.inference_mode()
    def new_batch(self, rows: int, capacity: int) -> BatchKVCache:
        """Empty caches for `rows` texts of `capacity` positions each."""
        shape = (rows, *self._cache_shape(capacity))
        return BatchKVCache(torch.zeros(shape, dtype=self._dtype, device=self.device))

    def _cache_shape(self, capacity: int) -> tuple[int, ...]:
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"capacity: expected 1 to {self.max_length} positions, got {capacity}")
        layer = self._shape.layer
        return (2, self._shape.all_layers, layer.kv_heads, capacity, layer.head_dim)

    @torch.inference_mode()
    def forward(
        self,
        state: KVCache,
        tokens: Sequence[int],
        heads: int | None = None,
        queries: int | None = None,
    ) -> Tensor:
        """Read `tokens` after what the cache holds; logits (heads, vocab) at the last of them, or of the last
        `queries` of them (heads, queries, vocab), in the model's dtype; heads as in `read`.
        """
        logits = self.logits(self.read(state, tokens, heads, queries or 1))
        return logits[:, 0] if queries is None else logits

    @torch.inference_mode()
    def read(
        self, state: KVCache, tokens: Sequence[int], heads: int | None = None, queries: int = 1
    ) -> Tensor:
        """`forward` up to the final norm: hidden states behind it, (heads, queries, hidden).

        heads: how many to run, all by default; the others' caches then miss these positions for good.
        """
        step = self._step(state, [len(tokens)], [queries])
        states = self._run(tokens, step, heads)
        state.length += len(tokens)
        return states

    def by_position(self, states: Tensor) -> LogitsByPosition | Tensor:
        """Logits (queries, heads, vocab) from states (heads, queries, hidden).

        On CPU those are made that are asked for: exact mode reads the further heads' at one position.
        """
        return LogitsByPosition(self.logits, states) if self.packed else self.logits(states).transpose(0, 1)

    @torch.inference_mode()
    def forward_batch(
        self,
        state: BatchKVCache,
        tokens: Sequence[Sequence[int]],
        heads: int | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """One pass for all texts: row i reads `tokens[i]`, one or more; rows need not agree in number.

        Logits (heads, all queries, vocab) at the last `queries[i]` positions of each row, 1 by default.
        """
        return self.logits(self.read_batch(state, tokens, heads, queries))

    @torch.inference_mode()
    def read_batch(
        self,
        state: BatchKVCache,
        tokens: Sequence[Sequence[int]],
        heads: int | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """`forward_batch` up to the final norm: (heads, all queries, hidden)."""
        step = self._step(state, [len(each) for each in tokens], queries or [1] * len(tokens))
        states = self._run([token for each in tokens for token in each], step, heads)
        for row, each in zip(state.rows, tokens, strict=True):
            row.length += len(each)
        return states

    def _step(
        self, state: KVCache | BatchKVCache, counts: Sequence[int], queries: Sequence[int]
    ) -> AttentionStep:
        return AttentionStep(state, counts, queries, self._rotary, self._masks)

    def _run(self, tokens: Sequence[int], step: AttentionStep, heads: int | None) -> Tensor:
        heads = self.heads if heads is None else heads
        assert 1 <= heads <= self.heads, f"{heads} heads asked of {self.heads}"
        hidden_states = self._embed(torch.tensor(tokens, device=self.device))  # (new, hidden)
        lap("rest")
        run = self._packed_pass if self.packed else self._module_pass
        outputs = run(hidden_states, heads, step)  # (heads, queries, hidden)
        lap("heads")
        return self._normed(outputs)

    def _packed_pass(self, hidden_states: Tensor, heads: int, step: AttentionStep) -> Tensor:
        """Outputs of the last layer and the extra heads where they are wanted, (heads, queries, hidden)."""
        loops = self._in_loops if step.alone and step.loop is not None else None
        if loops is not None:
            hidden_states = loops.forward(hidden_states, 0, len(self._stem), step, apart=False)[0]
            lap("stem")
            return loops.forward(hidden_states, len(self._stem), heads, step, apart=True)
        for layer in self._stem:
            hidden_states = layer.forward(hidden_states, 1, step, all_positions=True)[0]
        lap("stem")
        return self._finals.forward(hidden_states, heads, step, all_positions=False)

    def _module_pass(self, hidden_states: Tensor, heads: int, step: AttentionStep) -> Tensor:
        """The same through the model's own modules."""
        outputs = walk_heads(
            self._layers,
            self._token_heads[: heads - 1],
            self._source_is_last,
            hidden_states,
            lambda layer, states, all_positions: self._layer(layer, states, step, all_positions),
            step.select_queries,
        )
        return torch.stack([output.to(outputs[0].device) for output in outputs])

    def _layer(
        self, layer: nn.Module, hidden_states: Tensor, step: AttentionStep, all_positions: bool
    ) -> Tensor:
        """One layer, (new, hidden) -> (new, hidden), or (queries, hidden) unless `all_positions`; keys and
        values at all new positions.
        """
        return self._attend(layer, hidden_states, step, self._architecture.slot(layer), all_positions)

    def _attend(
        self, layer: nn.Module, hidden_states: Tensor, step: AttentionStep, slot: int, all_positions: bool
    ) -> Tensor:
        architecture = self._architecture
        q, kv = architecture.project(layer, hidden_states, step.cos, step.sin)
        attended = step.attend(q[None], kv[None], slot, architecture.scaling(layer), all_positions)[0]
        if not all_positions:
            hidden_states = step.select_queries(hidden_states)
        return architecture.finish(layer, attended, hidden_states)

    def _normed(self, outputs: Tensor) -> Tensor:
        """Behind the final norm: (heads, queries, hidden) -> (heads, queries, hidden)."""
        norm = self._final_norm
        if self._output_is_shared:
            return norm(outputs) if self._in_loops is None else self._in_loops.normed(outputs, norm)
        extra = self._token_heads[: len(outputs) - 1]
        norms = [norm, *(head.final_layer_norm or norm for head in extra)]
        rows = [each(output) for each, output in zip(norms, outputs, strict=True)]
        return torch.stack([row.to(rows[0].device) for row in rows])

    @torch.inference_mode()
    def drafted(self, few: int) -> NDArray[np.int64] | None:
        """Ids of `few` tokens, those that the checkpoint lists first, or the vocabulary's first: to ask for
        their logits alone. None where that is no quicker, and for none or all of the vocabulary.
        """
        if not (self.packed and 0 < few < self.vocab_size):
            return None
        if few not in self._of_few:
            order = torch.arange(self.vocab_size) if self._order is None else self._order
            ids, unembed, product = order[:few].long().cpu(), self._base.get_output_embeddings(), None
            if type(unembed) is nn.Linear:
                bias = None if unembed.bias is None else unembed.bias[ids]
                product = _output_product(unembed.weight[ids], bias, *self._output_way)
            self._of_few[few] = ids.numpy(), product
        return self._of_few[few][0]

    @torch.inference_mode()
    def logits(self, states: Tensor, first: int = 0, tokens: NDArray[np.int64] | None = None) -> Tensor:
        """The output embedding, read once where it is shared: states (heads, queries, hidden), of the heads
        from `first` on -> (heads, queries, vocab), or of `tokens`, as `drafted` gave them, only.
        """
        if self._output_is_shared:
            logits = self._to_tokens(states.flatten(0, 1), tokens).view(*states.shape[:2], -1)
        else:
            rows = []
            for head, own in enumerate(states, start=first):
                other = self._token_heads[head - 1].output_embedding if head else None
                rows.append(self._to_tokens(own, tokens) if other is None else _some(other(own), tokens))
            logits = torch.stack([each.to(rows[0].device) for each in rows])
        lap("output embedding")
        return logits

    def _to_tokens(self, states: Tensor, tokens: NDArray[np.int64] | None) -> Tensor:
        """(rows, hidden) -> (rows, vocab), or (rows, tokens)."""
        _, product = (None, None) if tokens is None else self._of_few[len(tokens)]
        return _some(self._unembed(states), tokens) if product is None else product(states)


def _in_halves(layer: LayerWeights, copies: LayerCopies) -> dict[str, InLoop]:
    return {name: half_product(*part, copies.powers[name]) for name, part in layer.packed().items()}


def _some(logits: Tensor, tokens: NDArray[np.int64] | None) -> Tensor:
    return logits if tokens is None else logits[:, tokens]


def _output_product(weight: Tensor, bias: Tensor | None, weights: str, looped: bool) -> Product:
    """Looped: in the compiled loop rather than by torch's kernel, where 16 bits hold it."""
    power = power_of_copy(weight) if weights == "own" else None
    looped = looped and power is not None
    product = half_product(weight, bias, power) if looped else matrix_product(weights, weight, bias, power)
    return product.in_large_pages() if isinstance(product, InLoop) else product
