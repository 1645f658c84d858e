"""Cached forward passes for a model whose layers are spread over devices: several GPUs, or weights that wait
in the CPU's memory or on disk until their layer's turn.

accelerate's hooks bring a module's weights to the device that it computes on. Here hidden states are brought
there before each layer, and what the layer remembers stays there: every device has a cache of its own layers,
and attention over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dynamo.common.device_map import execution_device, is_dispatched
from dynamo.decoding.attention import AttentionStep, CausalMasks
from dynamo.decoding.cache import BatchKVCache, KVCache
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.static import StaticDecoder


def decoder_for(model: PreTrainedModel, weights: str = "own") -> Decoder:
    """The decoder that a model's placement asks for. Raises ValueError for weights that it cannot have."""
    if not is_dispatched(model):
        if weights == "own" and _captures(model):
            return StaticDecoder(model)
        return Decoder(model, weights=weights)
    if weights != "own":
        raise ValueError(f"weights: a model spread over devices runs its own, got {weights!r}")
    return DispatchedDecoder(model)


def _captures(model: PreTrainedModel) -> bool:
    """Whether passes of this model are to be captured as CUDA graphs. Quantised modules may look at their
    numbers on the host, which a graph cannot."""
    return model.device.type == "cuda" and getattr(model, "hf_quantizer", None) is None


class SpreadKVCache:
    """One text's keys and values, in parts: one `KVCache` for each device, of that device's layers."""

    def __init__(self, parts: Sequence[KVCache]):
        self.parts = parts

    @property
    def capacity(self) -> int:
        return self.parts[0].capacity

    @property
    def length(self) -> int:
        return self.parts[0].length

    @length.setter
    def length(self, positions: int) -> None:
        for part in self.parts:
            part.length = positions

    def crop(self, positions: int) -> None:
        """Forget the last `positions`, in every slot."""
        for part in self.parts:
            part.crop(positions)


class SpreadBatchKVCache:
    """The same of several texts; `rows` are theirs."""

    def __init__(self, parts: Sequence[BatchKVCache]):
        self.parts = parts
        self.rows = [SpreadKVCache(row) for row in zip(*(part.rows for part in parts), strict=True)]

    def drop(self, row: int) -> None:
        """Remove a text; the last one takes its row."""
        self.rows.pop()
        for part in self.parts:
            part.drop(row)


class SpreadStep:
    """One pass's attention: an `AttentionStep` for each device."""

    def __init__(self, steps: dict[torch.device, AttentionStep]):
        self.steps = steps

    def select_queries(self, states: Tensor) -> Tensor:
        # Indices must lie where the states do; which positions they are is the same on every device.
        return self.steps[states.device].select_queries(states)


class DispatchedDecoder(Decoder):
    """Cached forward passes of one dispatched model, through its modules."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model, packed=False)

    def _prepare(self) -> None:
        layers = [*self._layers, *(layer for head in self._token_heads for layer in head.layers)]
        # By a layer's slot: its device, and its slot among that device's layers.
        self._places: list[tuple[torch.device, int]] = []
        counts: dict[torch.device, int] = {}
        for layer in layers:
            device = torch.empty(0, device=execution_device(layer)).device  # "cuda" by its number
            self._places.append((device, counts.get(device, 0)))
            counts[device] = counts.get(device, 0) + 1
        self._counts = counts
        with torch.inference_mode():
            self._tables = {device: self._rotary_tables(device) for device in counts}
        self._masks_by_device = {
            device: CausalMasks(self.max_length, self._dtype, device) for device in counts
        }

    @property
    def device(self) -> torch.device:
        return execution_device(self._embed)  # weights that wait on disk say "meta"

    @torch.inference_mode()
    def new_cache(self, capacity: int) -> SpreadKVCache:
        return SpreadKVCache([KVCache(part) for part in self._memory(capacity)])

    @torch.inference_mode()
    def new_batch(self, rows: int, capacity: int) -> SpreadBatchKVCache:
        return SpreadBatchKVCache([BatchKVCache(part) for part in self._memory(capacity, rows)])

    def _memory(self, capacity: int, *rows: int) -> list[Tensor]:
        """For each device (*rows, 2, its slots, kv_heads, capacity, head_dim)."""
        two, _, *rest = self._cache_shape(capacity)
        return [
            torch.zeros((*rows, two, slots, *rest), dtype=self._dtype, device=device)
            for device, slots in self._counts.items()
        ]

    def _step(
        self, state: SpreadKVCache | SpreadBatchKVCache, counts: Sequence[int], queries: Sequence[int]
    ) -> SpreadStep:
        parts = zip(self._counts, state.parts, strict=True)
        return SpreadStep(
            {
                device: AttentionStep(
                    part, counts, queries, self._tables[device], self._masks_by_device[device]
                )
                for device, part in parts
            }
        )

    def _layer(
        self, layer: nn.Module, hidden_states: Tensor, step: SpreadStep, all_positions: bool
    ) -> Tensor:
        # Hidden states travel, (new, hidden) numbers; keys and values stay where their layer computes.
        device, slot = self._places[self._architecture.slot(layer)]
        return self._attend(layer, hidden_states.to(device), step.steps[device], slot, all_positions)
