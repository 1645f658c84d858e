"""Decode states that are lent and given back, and what becomes of them where memory runs out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dynamo.common.memory import enough_memory, release_when_short, run_out
from dynamo.decoding.cache import KVCache

BUCKET = 128  # capacities are whole multiples of this, so that states can be used again
LARGEST_POOL = 4

T = TypeVar("T")


class CachePool:
    """Lends decode states and takes them back, so that a stream does not begin by making its memory.

    Keeps at most `largest` idle states. Nobody waits: where no idle one is large enough, one is made.
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
        """Let go of every idle state."""
        with self._lock:
            self._idle.clear()

    @contextmanager
    def lease(self, capacity: int) -> Iterator[KVCache]:
        """An empty state for at least `capacity` positions (the model's `most` at most), for one stream."""
        with self._lock:
            fitting = [state for state in self._idle if state.capacity >= capacity]
            state = min(fitting, key=lambda state: state.capacity, default=None)
            if state is not None:
                self._idle.remove(state)
        if state is None:
            state = self._make(min(-(-capacity // BUCKET) * BUCKET, self._most))
        state.length = 0
        try:
            yield state
        finally:
            with self._lock:
                self._idle.append(state)
                self._idle.sort(key=lambda state: state.capacity)
                del self._idle[: -self._largest]


_pools: weakref.WeakSet[CachePool] = weakref.WeakSet()


def release_idle_caches() -> None:
    """All pools let go of what nobody uses, as they share the machine's memory."""
    for pool in list(_pools):
        pool.clear()


release_when_short(release_idle_caches)


def within_memory(records: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same records; a pass that finds no memory left frees the idle states and raises ValueError."""
    with enough_memory(lambda: run_out(device)):
        yield from records
