"""A lane in its own process: it may fail to compile, or take minutes, without harm to the others.

The process makes the lane, then replies to one prompt at a time and waits in between, so it can take turns
with lanes of this process. Whatever goes wrong there, a time limit included, is raised as `LaneLost`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynamo.decoding.generate import GenerateEngine
from dynamo.evaluation.shapes import random_pair
from dynamo.loading import Pair, checked_device, load
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

Lane = Callable[[Sequence[int], int], RunCounts]  # a prompt's ids and a seed to a reply


class LaneLost(RuntimeError):
    """A lane's process failed or was too slow; the message says which, and ends the lane."""


@dataclass(frozen=True)
class PairSpec:
    """Which pair another process is to load: a model's name, or a shape of random weights."""

    model: str
    shape: str | None = None
    device: str | None = None

    def load(self) -> Pair:
        if self.shape is not None:
            return random_pair(self.shape, checked_device(self.device))
        return load(self.model, device=self.device)


@dataclass(frozen=True)
class Compiled:
    """Makes the lane of `transformers`' generate with a static cache and a compiled step."""

    spec: PairSpec
    options: SamplingOptions
    max_new_tokens: int
    threads: int

    def __call__(self) -> Lane:
        torch.set_num_threads(self.threads)
        pair = self.spec.load()
        engine = GenerateEngine(pair.base, pair.tokenizer, compiled=True)
        return lambda prompt, seed: RunCounts.fold(
            engine.complete(prompt, self.options, self.max_new_tokens, seed)
        )


class RemoteLane:
    """The lane that `make` (picklable) returns, made and run in another process. Close it after use.

    seconds: how long making it and any single reply may take.
    """

    def __init__(self, make: Callable[[], Lane], seconds: float):
        self._seconds = seconds
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make))
        self._process.start()
        theirs.close()

    def __call__(self, prompt: Sequence[int], seed: int) -> RunCounts:
        """Raises LaneLost."""
        answer: Any = None
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send((list(prompt), seed))
            if not self._pipe.poll(self._seconds):
                self.close()
                raise LaneLost(f"no reply within {self._seconds:.0f} s")
            answer = self._pipe.recv()
        if isinstance(answer, RunCounts):
            return answer
        self.close()
        raise LaneLost(answer or f"its process ended with code {self._process.exitcode}")

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Any, make: Callable[[], Lane]) -> None:
    os.dup2(sys.stderr.fileno(), 1)  # stdout is for the command's result alone
    try:
        lane = make()
        while True:
            pipe.send(lane(*pipe.recv()))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__}: {words[0]}")
