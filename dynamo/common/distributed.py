"""The processes that torchrun or `accelerate launch` started for one command, and this one's place among
them; and pools of worker processes that end with whoever started them.

A process that is alone sets nothing up. What the processes do together is up to the caller: training shares
out a batch, a benchmark its prompts.
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
LONGEST_WAIT = timedelta(days=7)  # for a process that has the longest texts to write
LOOK_SECONDS = 1.0


class Processes:
    """number: this process's, from 0; count: how many there are; device: the GPU that is this one's, None
    where there is no choice to make."""

    def __init__(self):
        self._state = _state(timeout=LONGEST_WAIT) if started_together() else None
        self.number: int = self._state.process_index if self._state else 0
        self.count: int = self._state.num_processes if self._state else 1
        own_gpu = self._state is not None and self._state.device.type == "cuda"
        self.device = str(self._state.device) if own_gpu else None

    def first_alone(self) -> AbstractContextManager[None]:
        """The first process goes through what is in it before the others do."""
        return self._state.main_process_first() if self._state else nullcontext()

    def wait(self) -> None:
        """Until all have come here."""
        if self._state:
            self._state.wait_for_everyone()


def started_together() -> bool:
    """Whether this process is one of several that a launcher started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def on_main_first(make: Callable[[], T]) -> T:
    """What `make` returns in every process; on each machine the first one runs it before the others."""
    with _state().local_main_process_first():
        return make()


def _state(**options: Any) -> Any:
    from accelerate import PartialState

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return PartialState(cpu=cpu, **options)


@atexit.register
def leave_group() -> None:
    """Before the interpreter goes: threads of a process group that nobody ended abort the whole process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def process_pool(workers: int, method: str) -> ProcessPoolExecutor:
    """Workers that end within a second or so of this process, also where a kill -9 took it.

    method: how they are started, "fork" or "spawn". A worker of `concurrent.futures` would wait for its
    next task for ever and keep its memory.
    """
    return ProcessPoolExecutor(workers, get_context(method), initializer=_follow, initargs=(os.getpid(),))


def _follow(parent: int) -> None:
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
