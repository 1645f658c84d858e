"""Cached forward passes for a model whose layers are spread over devices: several GPUs, or weights that wait
in the CPU's memory or on disk until their layer's turn.

accelerate's hooks bring inputs and weights together where a module is called, so here every layer runs its
own `forward`, as transformers wrote it; `dynamo.decoding.decoder` takes layers apart and would miss the
hooks. What the layers remember is ours: keys and values stay on the device that computed them, and lanes of
different lengths share a pass. Slower than `dynamo.decoding.decoder` on one device, and the same numbers up
to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from dynamo.common.device_map import execution_device, is_dispatched
from dynamo.common.laps import lap
from dynamo.decoding.decoder import Decoder
from dynamo.model import DynamoForCausalLM


def decoder_for(
    model: GPTNeoXForCausalLM | DynamoForCausalLM, weights: str = "own"
) -> Decoder | DispatchedDecoder:
    """The decoder that a model's placement asks for. Raises ValueError for weights that it cannot have."""
    if not is_dispatched(model):
        return Decoder(model, weights=weights)
    if weights != "own":
        raise ValueError(f"weights: a model spread over devices runs its own, got {weights!r}")
    return DispatchedDecoder(model)


class DispatchedDecoder:
    """Cached forward passes of one dispatched model, with the interface of
    `dynamo.decoding.decoder.Decoder`."""

    packed = False

    def __init__(self, model: GPTNeoXForCausalLM | DynamoForCausalLM):
        dynamo = isinstance(model, DynamoForCausalLM)
        self._base = model.backbone if dynamo else model
        self._token_heads = list(model.token_heads) if dynamo else []
        self._source_is_last = dynamo and model.config.head_source == "last"
        config = self._base.config
        self.heads = 1 + len(self._token_heads)
        self.max_length = config.max_position_embeddings
        self.vocab_size = config.vocab_size

    def bytes_per_weight(self) -> int:
        """As `Decoder.bytes_per_weight`; there are no copies here."""
        return self._base.dtype.itemsize

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return execution_device(self._base.gpt_neox.embed_in)

    def new_state(self, capacity: int) -> SpreadLane:
        """An empty cache for `capacity` positions, made layer by layer as they run."""
        return self.new_batch(1, capacity).lanes[0]

    def new_batch(self, rows: int, capacity: int) -> SpreadState:
        """Empty caches for `rows` lanes of `capacity` positions each."""
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"capacity: expected 1 to {self.max_length} positions, got {capacity}")
        return SpreadState(rows, capacity)

    def forward(
        self, state: SpreadLane, tokens: Sequence[int], heads: int | None = None, queries: int | None = None
    ) -> Tensor:
        """As `Decoder.forward`: logits (heads, vocab), or (heads, queries, vocab) where asked for."""
        logits = self._run([state], [tokens], [queries or 1], heads)
        return logits[:, 0] if queries is None else logits

    def forward_batch(
        self,
        state: SpreadState,
        tokens: Sequence[Sequence[int]],
        heads: int | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """As `Decoder.forward_batch`: logits (heads, all queries, vocab)."""
        return self._run(state.lanes, tokens, queries or [1] * len(tokens), heads)

    @torch.inference_mode()
    def _run(
        self,
        lanes: Sequence[SpreadLane],
        tokens: Sequence[Sequence[int]],
        queries: Sequence[int],
        heads: int | None,
    ) -> Tensor:
        heads = self.heads if heads is None else heads
        assert 1 <= heads <= self.heads, f"{heads} heads asked of {self.heads}"
        assert all(1 <= asked <= len(each) for asked, each in zip(queries, tokens, strict=True)), queries
        step = _Step(lanes, [len(each) for each in tokens])
        lap("rest")
        outputs = self._outputs(step, tokens, heads)
        outputs = [step.wanted(output, queries) for output in outputs]
        lap("stem")  # all layers: they run where their weights are
        logits = self._logits(torch.stack([output.to(outputs[0].device) for output in outputs]))
        lap("output embedding")
        for lane, each in zip(lanes, tokens, strict=True):
            lane.length += len(each)
        return logits

    def _outputs(self, step: _Step, tokens: Sequence[Sequence[int]], heads: int) -> list[Tensor]:
        """Each head's last layer at all new positions: (rows, widest, hidden), on that layer's device."""
        neox = self._base.gpt_neox
        hidden_states = neox.embed_in(step.padded(tokens).to(self.device))
        context = {
            "attention_mask": step.mask(hidden_states),
            "position_embeddings": neox.rotary_emb(
                hidden_states, position_ids=step.places(hidden_states.device).clamp(max=self.max_length - 1)
            ),
            "layer_past": step,
            "use_cache": True,
        }
        for layer in neox.layers[:-1]:
            hidden_states = layer(hidden_states, **context)
        last = neox.layers[-1](hidden_states, **context)
        outputs = [last]
        for head in self._token_heads[: heads - 1]:
            output = last if self._source_is_last else hidden_states
            for layer in head.layers:
                output = layer(output, **context)
            outputs.append(output)
        return outputs

    def _logits(self, outputs: Tensor) -> Tensor:
        """(heads, queries, hidden) -> (heads, queries, vocab); what heads share is fetched once."""
        norm, unembed = self._base.gpt_neox.final_layer_norm, self._base.lm_head
        extra = self._token_heads[: len(outputs) - 1]
        if not any(head.final_layer_norm or head.output_embedding for head in extra):
            return unembed(norm(outputs))
        logits = [unembed(norm(outputs[0]))]
        for head, output in zip(extra, outputs[1:], strict=True):
            row = (head.output_embedding or unembed)((head.final_layer_norm or norm)(output))
            logits.append(row.to(logits[0].device))
        return torch.stack(logits)


class SpreadState:
    """Keys and values of several lanes. slots: by `layer_idx`, (2, rows, heads, capacity, head_dim) each."""

    def __init__(self, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.slots: dict[int, Tensor] = {}
        self.lanes = [SpreadLane(self, row) for row in range(rows)]

    def slot(self, number: int, like: Tensor) -> Tensor:
        """A layer's memory, beside its keys `like` (.., heads, new, head_dim). Zeros: masked, yet numbers."""
        if number not in self.slots:
            shape = (2, self.rows, like.shape[-3], self.capacity, like.shape[-1])
            self.slots[number] = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return self.slots[number]

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """A lane leaves; the last one takes its row."""
        moved = self.lanes.pop()
        if row < len(self.lanes):
            for cache in self.slots.values():
                cache[:, row, :, : moved.length] = cache[:, moved.row, :, : moved.length]
            self.lanes[row].length = moved.length


class SpreadLane:
    """One lane's row of a `SpreadState`, filled up to `length`."""

    def __init__(self, state: SpreadState, row: int):
        self.state, self.row, self.length = state, row, 0

    @property
    def capacity(self) -> int:
        return self.state.capacity

    def rewind(self, positions: int) -> None:
        """Forget the last positions, in every slot."""
        assert 0 <= positions <= self.length, f"{positions} positions of {self.length} to be forgotten"
        self.length -= positions


class _Step:
    """One pass's new positions in neighbouring lanes of a state; to a layer, the cache that it updates."""

    def __init__(self, lanes: Sequence[SpreadLane], counts: Sequence[int]):
        assert lanes and all(lane.row == lanes[0].row + i for i, lane in enumerate(lanes)), "rows with gaps"
        self._state, self._rows = lanes[0].state, slice(lanes[0].row, lanes[0].row + len(lanes))
        self._starts, self._counts = [lane.length for lane in lanes], counts
        self._widest = max(counts)
        self._filled = max(start + count for start, count in zip(self._starts, counts, strict=True))
        assert min(counts) > 0 and self._filled <= self._state.capacity, (
            f"{self._filled} positions of {self._state.capacity}"
        )

    def padded(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(rows, widest): short rows end in whatever, which nobody sees."""
        return torch.tensor([[*each, *[0] * (self._widest - len(each))] for each in tokens])

    def places(self, device: torch.device) -> Tensor:
        """Positions (rows, widest)."""
        offsets = torch.arange(self._widest, device=device)
        return torch.stack([offsets + start for start in self._starts])

    def mask(self, like: Tensor) -> Tensor | None:
        """What new positions do not see, (rows, 1, widest, filled) of 0 and -inf; None where they see all."""
        if self._widest == 1 and len(self._counts) == 1:
            return None
        later = torch.arange(self._filled, device=like.device) > self.places(like.device)[..., None]
        mask = torch.zeros(later.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(later, float("-inf")).unsqueeze(1)

    def update(self, keys: Tensor, values: Tensor, slot: int, *_: object, **__: object) -> tuple[Tensor, ...]:
        """Write (rows, heads, widest, head_dim) and return all that these rows hold, as a layer asks for."""
        cache = self._state.slot(slot, keys)[:, self._rows]
        for row, (start, count) in enumerate(zip(self._starts, self._counts, strict=True)):
            cache[0, row, :, start : start + count] = keys[row, :, :count]
            cache[1, row, :, start : start + count] = values[row, :, :count]
        return cache[:, :, :, : self._filled].unbind(0)

    def wanted(self, states: Tensor, queries: Sequence[int]) -> Tensor:
        """(rows, widest, hidden) -> (all queries, hidden): the last `queries[i]` positions of each row."""
        rows = zip(states, queries, self._counts, strict=True)
        return torch.cat([row[count - asked : count] for row, asked, count in rows])
