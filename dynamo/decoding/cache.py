"""What a text's decoding remembers: keys and values of every layer, and the pool that lends their memory.

A `KVCache` is one text's memory, a `BatchKVCache` that of several in one tensor; neither is ever shared.
Slots are the base's layers and then the heads' layers, in the order of their `layer_idx`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from dynamo.common.memory import enough_memory, release_when_short, run_out

BUCKET = 128  # capacities are whole multiples of this, so that a cache can be used again
LARGEST_POOL = 4

T = TypeVar("T")


@dataclass(eq=False)  # a cache is its memory, not what it holds
class KVCache:
    """One text's keys and values, filled up to `length` positions.

    cache: (2, slots, kv_heads, capacity, head_dim), keys and then values; passes: those of fixed shape that
    were made for this memory (`dynamo.decoding.static`).
    """

    cache: Tensor
    length: int = 0
    passes: dict[tuple[int, ...], Any] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        return self.cache.shape[3]

    def crop(self, positions: int) -> None:
        """Forget the last `positions`, in every slot."""
        assert 0 <= positions <= self.length, f"{positions} positions of {self.length} to be forgotten"
        # What is behind `length` is never read, so nothing is cleared.
        self.length -= positions


class BatchKVCache:
    """Several texts in one tensor, cache (2, slots, rows, kv_heads, capacity, head_dim).

    memory (rows, 2, slots, kv_heads, capacity, head_dim): zeros, as what a short row has not filled is
    masked, but must be numbers. `rows[i]` is row i as a cache of its own, and may be used alone: it lies
    together, which is what the loops are compiled for.
    """

    def __init__(self, memory: Tensor):
        self.cache = memory.movedim(0, 2)
        self.rows = [KVCache(row) for row in memory]

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Remove a text; the last one takes its row, so that the rows in use stay the first ones."""
        moved = self.rows.pop()
        if row < len(self.rows):
            kept = self.rows[row]
            kept.cache[..., : moved.length, :] = moved.cache[..., : moved.length, :]
            kept.length = moved.length


class CachePool:
    """Lends caches and takes them back, so that a stream does not begin by making its memory.

    make: a cache for a capacity; most: the largest capacity that the model allows. At most `largest` idle
    caches are kept. Nobody waits: where no idle one is large enough, one is made.
    """

    def __init__(self, make: Callable[[int], KVCache], most: int, largest: int = LARGEST_POOL):
        self._make, self._most, self._largest = make, most, largest
        self._idle: list[KVCache] = []
        self._lock = threading.Lock()
        _pools.add(self)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def clear(self) -> None:
        """Free every idle cache."""
        with self._lock:
            self._idle.clear()

    @contextmanager
    def lease(self, capacity: int) -> Iterator[KVCache]:
        """An empty cache for at least `capacity` positions, for one stream."""
        with self._lock:
            fitting = [cache for cache in self._idle if cache.capacity >= capacity]
            # The smallest that fits, so that large ones stay for long texts.
            cache = min(fitting, key=lambda cache: cache.capacity, default=None)
            if cache is not None:
                self._idle.remove(cache)
        if cache is None:  # made outside the lock, as it may take long
            cache = self._make(min(-(-capacity // BUCKET) * BUCKET, self._most))
        cache.length = 0
        try:
            yield cache
        finally:
            with self._lock:
                self._idle.append(cache)
                self._idle.sort(key=lambda cache: cache.capacity)
                del self._idle[: -self._largest]  # the smallest go


_pools: weakref.WeakSet[CachePool] = weakref.WeakSet()


def release_idle_caches() -> None:
    """Free the idle caches of all pools, as they share the machine's memory."""
    for pool in list(_pools):
        pool.clear()


release_when_short(release_idle_caches)


def within_memory(records: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same records; a pass that finds no memory left frees the idle caches and raises ValueError."""
    with enough_memory(lambda: run_out(device)):
        yield from records
