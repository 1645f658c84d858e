"""The processes that torchrun or `accelerate launch` started for one command, and this one's rank among
them; and pools of worker processes that end with their parent.

A single process sets nothing up. How the processes share the work is up to the caller: training divides a
batch, a benchmark its prompts.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)  # for the process with the longest texts to write
LOOK_SECONDS = 1.0


class Processes:
    """number: this process's rank, from 0; count: of processes; device: this process's GPU, None on CPU or
    for a single process."""

    def __init__(self):
        self._state = _state(timeout=LONGEST_WAIT) if started_together() else None
        self.number: int = self._state.process_index if self._state else 0
        self.count: int = self._state.num_processes if self._state else 1
        own_gpu = self._state is not None and self._state.device.type == "cuda"
        self.device = str(self._state.device) if own_gpu else None

    def first_alone(self) -> AbstractContextManager[None]:
        """The first process runs the block before the others do."""
        return self._state.main_process_first() if self._state else nullcontext()

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        if self._state:
            self._state.wait_for_everyone()


def started_together() -> bool:
    """Whether a launcher started several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def on_main_first(make: Callable[[], T]) -> T:
    """Call `make` in every process; on each machine the first one runs it before the others."""
    with _state().local_main_process_first():
        return make()


def _state(**options: Any) -> Any:
    from accelerate import PartialState

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return PartialState(cpu=cpu, **options)


@atexit.register
def leave_group() -> None:
    """Threads of a process group that is still open would abort the process as the interpreter exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def process_pool(workers: int, method: str) -> ProcessPoolExecutor:
    """Workers that end within about a second of this process, even if it was killed with -9.

    method: how they are started, "fork" or "spawn". A plain worker of `concurrent.futures` would wait for
    its next task for ever and keep its memory.
    """
    return ProcessPoolExecutor(workers, get_context(method), initializer=_follow, initargs=(os.getpid(),))


def _follow(parent: int) -> None:
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
