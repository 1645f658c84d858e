"""Worker processes that end with whoever started them.

A worker of `concurrent.futures` waits for its next task for ever where a kill -9 took the process that would
give it one, and keeps its memory. These look every second whether that process is still there.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

LOOK_SECONDS = 1.0


def process_pool(workers: int, method: str) -> ProcessPoolExecutor:
    """method: how processes are started, "fork" or "spawn"."""
    return ProcessPoolExecutor(workers, get_context(method), initializer=_follow, initargs=(os.getpid(),))


def _follow(parent: int) -> None:
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
