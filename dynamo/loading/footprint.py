"""What a loaded pair takes in memory, part by part, and what it would take as it was before it was quantised.

Bytes of weights, copies and table are counted, those of the caches are for both lanes at full length. What
the weights would take in full is an estimate, from the shapes of the quantised layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dynamo.common.device_map import execution_device
from dynamo.decoding.packed import LARGEST_COPY, bytes_of_copies, copies_of, is_regular, layers_of
from dynamo.loading.devices import memory_of
from dynamo.loading.quantised import quantised_as

if TYPE_CHECKING:
    from dynamo.loading.pairs import Pair


@dataclass(frozen=True)
class Footprint:
    """Bytes of a pair. dtype: in words; quantised: "8bit", "4bit" or ""; copies: the decoder's packed copies
    of the weights; full: what weights and copies would take unquantised, None where nothing is quantised.
    """

    dtype: str
    quantised: str
    weights: int
    copies: int
    caches: int
    table: int
    full: int | None = None

    @classmethod
    def of(cls, pair: Pair) -> Footprint:
        models = (pair.base, pair.dynamo)
        dtype, quantised = pair.dynamo.dtype, quantised_as(pair.dynamo)
        return cls(
            dtype=str(dtype).removeprefix("torch."),
            quantised=quantised,
            weights=memory_of(*models),
            copies=sum(map(copies_of, models)),
            caches=sum(map(_cache, models)),
            table=sum(array.nbytes for array in _arrays(pair.table).values()),
            full=_in_full(models) if quantised else None,
        )

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.caches + self.table


def parameters_of(model: nn.Module) -> int:
    """How many numbers its weights stand for, quantised or not."""
    return sum({id(weight): count for weight, count in _counts(model)}.values())


def _arrays(holder: Any) -> dict[int, np.ndarray]:
    """What an object holds of numpy's, by identity: what shares its memory counts once."""
    if isinstance(holder, np.ndarray):
        whole = holder if holder.base is None else holder.base
        return {id(whole): whole}
    parts = holder if isinstance(holder, tuple) else getattr(holder, "__dict__", {}).values()
    return {key: array for part in parts for key, array in _arrays(part).items()}


def _layers(model: nn.Module) -> list[nn.Module]:
    """Of the stem and of the extra heads."""
    return [layer for part in layers_of(model) for layer in part]


def _cache(model: nn.Module) -> int:
    config = model.config
    each = 2 * config.max_position_embeddings * config.hidden_size * model.dtype.itemsize
    return len(_layers(model)) * each


def _in_full(models: tuple[nn.Module, ...]) -> int:
    """Weights that models share count once; each may have its own copies."""
    held = {id(weight): count for model in models for weight, count in _counts(model)}
    dtype = models[0].dtype
    weights = dtype.itemsize * sum(held.values())
    on_cpu = execution_device(models[0]).type == "cpu"
    if dtype != torch.float32 or not on_cpu:
        return weights
    # Copies in 16 bits, as of a checkpoint that was saved so.
    return weights + sum(
        bytes_of_copies(model, holds=lambda weight: True)
        for model in models
        if is_regular(model) and 2 * _count(_layers(model)) <= LARGEST_COPY
    )


def _count(layers: list[nn.Module]) -> int:
    return sum(count for layer in layers for _, count in _counts(layer))


def _counts(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Every weight and how many numbers it stands for, packed or not."""
    for each in module.modules():
        for weight in each.parameters(recurse=False):
            packed = isinstance(each, nn.Linear) and weight is each.weight
            yield weight, each.in_features * each.out_features if packed else weight.numel()
