"""What a loaded pair takes in memory, part by part, and what it would take as it was before it was quantised.

Bytes of weights, copies and table are counted, those of the caches are for both lanes at full length. What
the weights would take in full is an estimate, from the shapes of the quantised layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamo.common.device_map import execution_device
from dynamo.loading.devices import memory_of
from dynamo.loading.quantised import quantised_as
from dynamo.model import model_shape
from dynamo.model.packing import copies_of
from dynamo.model.shape import Copies, bytes_together

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
    def from_pair(cls, pair: Pair) -> Footprint:
        models = (pair.base, pair.dynamo)
        dtype, quantised = pair.dynamo.dtype, quantised_as(pair.dynamo)
        return cls(
            dtype=str(dtype).removeprefix("torch."),
            quantised=quantised,
            weights=memory_of(*models),
            copies=bytes_of_pair(pair, *copies_of(*models)),
            caches=sum(model_shape(model).cache_bytes(dtype.itemsize) for model in models),
            table=sum(array.nbytes for array in _arrays(pair.table).values()),
            full=_in_full(pair) if quantised else None,
        )

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.caches + self.table


def _arrays(holder: Any) -> dict[int, np.ndarray]:
    """What an object holds of numpy's, by identity: what shares its memory counts once."""
    if isinstance(holder, np.ndarray):
        whole = holder if holder.base is None else holder.base
        return {id(whole): whole}
    parts = holder if isinstance(holder, tuple) else getattr(holder, "__dict__", {}).values()
    return {key: array for part in parts for key, array in _arrays(part).items()}


def _in_full(pair: Pair) -> int:
    """What both models share counts once; copies are in 16 bits as of a checkpoint that was saved so."""
    shapes = [model_shape(model) for model in (pair.base, pair.dynamo)]
    dtype = pair.dynamo.dtype
    weights = sum(shape.weight_bytes(dtype.itemsize) for shape in shapes[pair.is_shared :])
    packed = dtype == torch.float32 and execution_device(pair.dynamo).type == "cpu"
    return weights + (bytes_of_pair(pair, *(shape.copies() for shape in shapes)) if packed else 0)


def bytes_of_pair(pair: Pair, base: Copies, dynamo: Copies) -> int:
    """Of the copies of a pair's models together."""
    return bytes_together(base, dynamo) if pair.is_shared else sum((*base.values(), *dynamo.values()))
