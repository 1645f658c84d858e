"""Packed copies of weights, made once for all decoders that run on the same weights.

The base of a pair is often a view of its DynaMo model's own weights, and each of them has a decoder. Copies
are held as long as a decoder has them. Another decoder takes them only if the weights have the same bits as
when they were made, however they may have been written to since.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Shared:
    """What was made of weights. `shared` knows of it for as long as somebody holds it."""

    def __init__(self, made: Any, weights: Sequence[Tensor], bits: list[int]):
        self.made, self.bits = made, bits
        self._weights = weights  # held, so that no other tensors get their ids


_known: WeakValueDictionary[tuple, Shared] = WeakValueDictionary()


def shared(make: Callable[[], Any], weights: Sequence[Tensor], *way: Any) -> Shared:
    """What `make` makes of weights on CPU, or has made of them before; way: what else this depends on."""
    key = (way, *map(id, weights))
    bits = [_checksum(weight) for weight in weights]
    found = _known.get(key)
    if found is None or found.bits != bits:
        found = _known[key] = Shared(make(), weights, bits)
    return found


def _checksum(weight: Tensor) -> int:
    return zlib.crc32(weight.detach().contiguous().view(torch.uint8).numpy())
