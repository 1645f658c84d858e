"""Cached forward passes for a GPT-NeoX or a DynaMo model: one pass, one chunk of new tokens for each lane.

Per pass the decoder reads the new tokens, writes their keys and values in place, and returns the logits of
every head at the last position. Only that position needs a query in the last layer and in the extra heads;
all new positions need keys and values there. Exact mode asks for the logits of several last positions.
Float32 models on CPU run on packed copies of their layers (`dynamo.decoding.packed`); any other runs its
own modules, so quantised or offloaded layers work unchanged.

Weights are shared by all lanes, and must not change while a decoder is in use; memory is each lane's own
(`dynamo.decoding.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM

from dynamo import kernels
from dynamo.common.laps import lap
from dynamo.decoding.cache import BatchKVCache, KVCache, Lanes, OneLane, turn, warm_up
from dynamo.decoding.packed import WEIGHTS, PackedLayers, has_int8, product
from dynamo.model import DynamoForCausalLM, model_shape
from dynamo.model.packing import can_pack, fits_half, split_layers
from dynamo.model.shape import LARGEST_COPY

USUAL_CHUNK = 8  # chunks of up to so many tokens find their mask made
ALIGNED = 8  # numbers: CUDA's attention reads masks by 16 bytes, and fails where a row begins in between


class Decoder:
    """Cached forward passes of one model.

    heads: how many token heads it has (1 for a stock GPT-NeoX); max_length: positions the model was made for;
    packed: whether it runs on packed copies of the layers. `packed=False` asks for the model's own modules,
    weights="int8" for copies in 8 bits (ValueError where there can be none).
    """

    def __init__(
        self,
        model: GPTNeoXForCausalLM | DynamoForCausalLM,
        packed: bool | None = None,
        weights: str = "own",
    ):
        if weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
        self._weights = weights
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
        self._rotary = self._rotary_tables()
        self.packed = can_pack(model, weights) and packed is not False
        if weights == "int8" and not (self.packed and has_int8()):
            raise ValueError(
                "weights: int8 is for float32 models on CPUs with fbgemm whose layers are plain, in packed "
                f"copies of at most {LARGEST_COPY // 2**30} GB; this one runs its {self._dtype} weights on "
                f"{self.device}"
            )
        self._causal_ends: dict[tuple[int, int], Tensor] = {}
        if self.packed:
            stem, side_by_side = split_layers(model)
            self._stem = [self._pack([layer], slot) for slot, layer in enumerate(stem)]
            looped = model_shape(model).layer.fits_loop(len(side_by_side))
            self._finals = self._pack(side_by_side, len(stem), looped)
        self._embed, self._final_norm = self._base.gpt_neox.embed_in, self._base.gpt_neox.final_layer_norm
        self._unembed = self._output_embedding()
        self._output_is_shared = not any(
            head.final_layer_norm or head.output_embedding for head in self._token_heads
        )
        if self.packed:
            self._warm_up()

    def bytes_per_weight(self) -> int:
        """How many bytes a pass reads of one weight: fewer in a packed copy than in the model, or as many."""
        if self.packed and self._weights == "int8":
            return 1
        matrices = [each for layer in self._layers for each in layer.parameters() if each.ndim > 1]
        return 2 if self.packed and all(map(fits_half, matrices)) else self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return self._base.gpt_neox.embed_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self._base.gpt_neox.embed_in.weight.device

    def _warm_up(self) -> None:
        """Have the loops that a pass runs compiled, or read from where they are kept, before one is timed."""
        if self._finals.looped is None:
            warm_up()
            return
        with kernels.tried():
            self.forward(self.new_state(1), [0])

    def _pack(self, layers: list[nn.Module], slot: int, looped: bool = False) -> PackedLayers:
        return PackedLayers(layers, slot, self._attention_heads, self._weights, looped)

    @torch.inference_mode()
    def _output_embedding(self) -> Callable[[Tensor], Tensor]:
        embedding = self._base.lm_head
        return (
            product(embedding, self._weights) if self.packed and type(embedding) is nn.Linear else embedding
        )

    @torch.inference_mode()
    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        embed = self._base.gpt_neox.embed_in.weight
        positions = torch.arange(self.max_length, device=embed.device).unsqueeze(0)
        cos, sin = self._base.gpt_neox.rotary_emb(embed[:1], position_ids=positions)
        return cos[0, :, None, None], sin[0, :, None, None]  # (max_length, 1, 1, rotary_dim)

    @torch.inference_mode()
    def new_state(self, capacity: int) -> KVCache:
        """An empty cache for `capacity` positions."""
        self._check_capacity(capacity)
        shape = (2, self._slots, self._attention_heads, capacity, self._head_dim)
        return KVCache(torch.empty(shape, dtype=self._dtype, device=self.device))

    @torch.inference_mode()
    def new_batch(self, rows: int, capacity: int) -> BatchKVCache:
        """Empty caches for `rows` lanes of `capacity` positions each."""
        self._check_capacity(capacity)
        shape = (2, self._slots, rows, self._attention_heads, capacity, self._head_dim)
        return BatchKVCache(torch.zeros(shape, dtype=self._dtype, device=self.device))

    def _check_capacity(self, capacity: int) -> None:
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"capacity: expected 1 to {self.max_length} positions, got {capacity}")

    @torch.inference_mode()
    def forward(
        self,
        state: KVCache,
        tokens: Sequence[int],
        heads: int | None = None,
        queries: int | None = None,
    ) -> Tensor:
        """Read `tokens` after what the state holds; logits (heads, vocab) at the last of them, or of the last
        `queries` of them (heads, queries, vocab), in the model's dtype.

        heads: how many to run, all by default; the others' caches then miss these positions for good.
        """
        step = OneLane(state, len(tokens), queries or 1, self._rotary, self._causal)
        logits = self._run(tokens, step, heads)
        state.length += len(tokens)
        return logits[:, 0] if queries is None else logits

    @torch.inference_mode()
    def forward_batch(
        self,
        state: BatchKVCache,
        tokens: Sequence[Sequence[int]],
        heads: int | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """One pass for all lanes: lane i reads `tokens[i]`, one or more; lanes need not agree in number.

        Logits (heads, all queries, vocab) at the last `queries[i]` positions of each lane, 1 by default.
        """
        counts = [len(each) for each in tokens]
        step = Lanes(state, counts, queries or [1] * len(tokens), self._rotary)
        logits = self._run([token for each in tokens for token in each], step, heads)
        for lane, each in zip(state.lanes, tokens, strict=True):
            lane.length += len(each)
        return logits

    def _run(self, tokens: Sequence[int], step: OneLane | Lanes, heads: int | None) -> Tensor:
        heads = self.heads if heads is None else heads
        assert 1 <= heads <= self.heads, f"{heads} heads asked of {self.heads}"
        hidden_states = self._embed(torch.tensor(tokens, device=self.device))
        lap("rest")
        run = self._packed_pass if self.packed else self._module_pass
        outputs = run(hidden_states, heads, step)
        lap("heads")
        logits = self._logits(outputs)
        lap("output embedding")
        return logits

    def _causal(self, new: int, stop: int) -> Tensor:
        """What the last `new` of `stop` positions do not see, as (new, stop) of 0 and -inf; each row begins
        at a multiple of `ALIGNED`.
        """
        usual, key = new <= USUAL_CHUNK, (new, stop % ALIGNED)
        end = self._causal_ends.get(key) if usual else None
        if end is None:
            # As much wider than `stop` as the longest text may need, by whole pieces.
            width = stop + (_whole(self.max_length - stop) if usual else 0)
            end = torch.zeros(new, _whole(width), dtype=self._dtype, device=self.device)[:, :width]
            end[:, width - new :] = torch.full_like(end[:, :new], float("-inf")).triu(1)
            if usual:
                self._causal_ends[key] = end
        return end[:, end.shape[1] - stop :]

    def _packed_pass(self, hidden_states: Tensor, heads: int, step: OneLane | Lanes) -> Tensor:
        """Outputs of the last layer and the extra heads where they are wanted, (heads, queries, hidden)."""
        for layer in self._stem:
            hidden_states = layer.forward(hidden_states, 1, step, whole=True)[0]
        lap("stem")
        return self._finals.forward(hidden_states, heads, step, whole=False)

    def _module_pass(self, hidden_states: Tensor, heads: int, step: OneLane | Lanes) -> Tensor:
        """The same through the model's own modules."""
        for layer in self._layers[:-1]:
            hidden_states = self._layer(layer, hidden_states, step, whole=True)
        lap("stem")
        # Heads that read the last layer's output need it at every new position, not only where it is wanted.
        whole = self._source_is_last and heads > 1
        last = self._layer(self._layers[-1], hidden_states, step, whole)
        source = last if self._source_is_last else hidden_states
        outputs = [step.wanted(last) if whole else last]
        for head in self._token_heads[: heads - 1]:
            output = source
            for layer in head.layers[:-1]:
                output = self._layer(layer, output, step, whole=True)
            if head.layers:
                outputs.append(self._layer(head.layers[-1], output, step, whole=False))
            else:
                outputs.append(step.wanted(source))
        return torch.stack(outputs)

    def _logits(self, outputs: Tensor) -> Tensor:
        """Final norm and output embedding, what is shared read once.

        (heads, queries, hidden) -> (heads, queries, vocab)
        """
        norm = self._final_norm
        if self._output_is_shared:
            heads, queries, hidden = outputs.shape
            return self._unembed(norm(outputs).view(-1, hidden)).view(heads, queries, -1)
        extra = self._token_heads[: len(outputs) - 1]
        rows = [self._unembed(norm(outputs[0]))]
        for head, output in zip(extra, outputs[1:], strict=True):
            rows.append((head.output_embedding or self._unembed)((head.final_layer_norm or norm)(output)))
        return torch.stack(rows)

    def _layer(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        step: OneLane | Lanes,
        whole: bool,
    ) -> Tensor:
        """One layer at all new positions, or unless `whole` where it is wanted; keys and values at all."""
        attention = layer.attention
        new = len(hidden_states)
        qkv = attention.query_key_value(layer.input_layernorm(hidden_states))
        qkv = qkv.view(new, self._attention_heads, 3, self._head_dim)
        turn(qkv[:, :, :2], step.cos, step.sin)
        q, kv = qkv[None, :, :, 0], qkv[None, :, :, 1:].transpose(2, 3)
        attended = step.attend(q, kv, attention.layer_idx, attention.scaling, whole)
        attended = attention.dense(attended[0])
        if not whole:
            hidden_states = step.wanted(hidden_states)
        if layer.use_parallel_residual:
            return layer.mlp(layer.post_attention_layernorm(hidden_states)) + attended + hidden_states
        hidden_states = attended + hidden_states
        return layer.mlp(layer.post_attention_layernorm(hidden_states)) + hidden_states


def _whole(numbers: int) -> int:
    """Rounded up to whole pieces of `ALIGNED`."""
    return -(-numbers // ALIGNED) * ALIGNED
