"""Processes for tests that kill them.

A fork of the test process itself would share the locks that libraries make for processes with every later
one (tqdm has such a lock): a process killed while it holds one leaves all others waiting, the tests too. It
would also copy the locks of threads that it does not copy. So these come from a server that has imported
what they need and done nothing else, and each gets a tqdm lock of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from tqdm import tqdm

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["accelerate", "dynamo.__main__", "dynamo.training", "dynamo.ui.votes"])
START_SECONDS = 120  # on a busy machine; imports belong to it


def started(work: Callable[..., object], *args: Any) -> ForkServerProcess:
    """A process in which work(*args), a function of a module, begins at this moment.

    Its group is its own, its output is dropped, and it ends with 1 where work returned neither None nor 0.
    """
    here, there = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_run, args=(there, work, *args))
    process.start()
    there.close()
    assert here.poll(START_SECONDS), "no process could be started"
    here.recv()
    return process


def _run(ready: Connection, work: Callable[..., object], *args: Any) -> None:
    tqdm.set_lock(threading.RLock())
    os.setsid()  # whom it starts belongs to its group
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    ready.send(None)
    if work(*args) not in (None, 0):
        os._exit(1)
