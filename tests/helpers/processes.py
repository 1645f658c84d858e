"""Processes for tests that kill them, or that need one in which nothing has run yet.

A fork of the test process itself would share the locks that libraries make for processes with every later
one (tqdm has such a lock): a process killed while it holds one leaves all others waiting, the tests too. It
would also copy the locks of threads that it does not copy. So these come from a server that has imported
what they need and done nothing else, and each gets a tqdm lock of its own. They also begin at once, where a
new interpreter would import for seconds.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import TextIOWrapper
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
from tqdm import tqdm

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(
    ["accelerate", "dynamo.__main__", "dynamo.training.trainer", "dynamo.ui.compare.votes"]
)
START_SECONDS = 240  # on a busy machine; imports belong to it
WORK_SECONDS = 240


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


def killed_itself(work: Callable[..., object], *args: Any) -> bool:
    """Whether work(*args) came to an end by its own kill -9."""
    process = started(work, *args)
    process.join(WORK_SECONDS)
    ended = process.exitcode
    process.kill()
    return ended == -signal.SIGKILL


def printed(code: str, **environment: str) -> str:
    """What `code` prints where the package is imported and nothing of it has run. It must not fail."""
    here, there = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_tell, args=(there, code, environment), daemon=True)
    process.start()
    there.close()
    assert here.poll(START_SECONDS + WORK_SECONDS), "it came to no end"
    well, told = here.recv()
    process.join(WORK_SECONDS)
    assert well, told
    return told.strip()


def completed(command: list[str], **_: Any) -> CompletedProcess[str]:
    """In place of `subprocess.run` for `python -m dynamo ..`: the same command, with the imports done."""
    assert command[1:3] == ["-m", "dynamo"]
    output = printed(f"from dynamo.__main__ import main\nassert main({command[3:]}) == 0")
    return CompletedProcess(command, 0, output, "")


def printed_by_ranks(folder: Path, count: int, work: Callable[..., object], *args: Any) -> list[str]:
    """What work(*args) prints in each of `count` processes with the variables that `torchrun` gives them, on
    CPU. None may fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    processes, files = [], [folder / f"rank-{rank}.txt" for rank in range(count)]
    for rank, file in enumerate(files):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), **size, **place}
        process = FRESH.Process(target=_rank, args=(file, environment, work, *args), daemon=True)
        process.start()
        processes.append(process)
    for process in processes:
        process.join(START_SECONDS + WORK_SECONDS)
        process.kill()
    output = [file.read_text() for file in files]
    assert [process.exitcode for process in processes] == [0] * count, "\n".join(output)
    return output


class ForkedCommand:
    """In place of `subprocess.Popen` for `python -m dynamo ..`: the same command, with the imports done."""

    def __init__(self, command: list[str], stdout: TextIOWrapper, env: dict[str, str], **_: Any):
        assert command[1:3] == ["-m", "dynamo"]
        self._process = FRESH.Process(target=_run_command, args=(stdout.name, env, command[3:]))
        self._process.start()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def pool(workers: int, method: str) -> ProcessPoolExecutor:
    """In place of `dynamo.common.distributed.process_pool`, which would fork the test process, threads and
    all."""
    return ProcessPoolExecutor(workers, FRESH)


def _run(ready: Connection, work: Callable[..., object], *args: Any) -> None:
    torch.set_num_threads(1)  # as in the test process: sums of floats depend on it
    tqdm.set_lock(threading.RLock())
    os.setsid()  # whom it starts belongs to its group
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    ready.send(None)
    if work(*args) not in (None, 0):
        os._exit(1)


def _rank(output: Path, environment: dict[str, str], work: Callable[..., object], *args: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if work(*args) not in (None, 0):
        os._exit(1)


def _run_command(output: str, environment: dict[str, str], arguments: list[str]) -> None:
    from dynamo.__main__ import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


def _tell(told: Connection, code: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            exec(code, {"__name__": "__main__"})
    except BaseException:
        told.send((False, traceback.format_exc()))
    else:
        told.send((True, output.getvalue()))
