"""Marks in a forward pass for measuring where its time goes; almost free while no stopwatch runs.

A pass is a sequence of parts, each ended by `lap`. Marks of torch's profiler (`record_function`) would take
about 20 microseconds each even outside a profile, too much for a small model's pass.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Collects seconds by part, in the thread that created it.

    synchronise: waits for the device before the clock is read.
    """

    def __init__(self, synchronise: Callable[[], None] = lambda: None):
        self._synchronise = synchronise
        self._thread = threading.get_ident()
        self._last = time.perf_counter()
        self._seconds: Counter[str] = Counter()

    def lap(self, part: str) -> None:
        if threading.get_ident() == self._thread:
            self._synchronise()
            now = time.perf_counter()
            self._seconds[part] += now - self._last
            self._last = now

    def take(self) -> Counter[str]:
        """Seconds by part since the last call."""
        taken, self._seconds = self._seconds, Counter()
        return taken


_running: Stopwatch | None = None


def lap(part: str) -> None:
    """Count the time since the last lap as spent on `part`."""
    if _running is not None:
        _running.lap(part)


@contextmanager
def running(stopwatch: Stopwatch) -> Iterator[None]:
    """Send laps to this stopwatch; only one runs at a time."""
    global _running
    _running = stopwatch
    try:
        yield
    finally:
        _running = None
