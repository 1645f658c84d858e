"""How many CPU threads to decode with.

A pass of a small model is many short operators, and each one that runs in parallel costs a synchronisation of
all threads: more threads are not always faster, and on a busy machine they can be much slower. The best
number depends on the model, the processor and its load, so it is measured when a command starts, in well
under a second, on the model itself; `bench --thread-counts` prints the curve.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Protocol

import torch

AUTO = "auto"
SECONDS = 0.4  # for measuring all counts together
SLOW_PASS = 0.05  # seconds; passes that take one thread this long parallelise well
TOLERANCE = 1.05  # within 5 % of the fastest, the fewest threads win: they leave cores to others
PROMPT, TOKENS = (0,), 16


class Streaming(Protocol):
    """An engine (`dynamo.Engine`)."""

    device: torch.device

    def stream(self, input_ids: Sequence[int], options: Any, max_new_tokens: int, seed: int) -> Iterable: ...


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        default=AUTO,
        metavar="N",
        help=f"CPU threads, or {AUTO}: the number that a few timed passes find fastest (default: {AUTO})",
    )


def settle_threads(
    engine: Streaming, threads: str | int = AUTO, most: int | None = None, seconds: float = SECONDS
) -> int:
    """Set torch's number of threads to `threads`, or to the best measured for "auto", and return it.

    most: the largest number to try, by default torch's current one: a thread per core, or OMP_NUM_THREADS.
    Raises ValueError for anything but "auto" and integers of 1 or more.
    """
    most = torch.get_num_threads() if most is None else most
    if threads != AUTO:
        torch.set_num_threads(checked_threads(threads))
    elif engine.device.type == "cpu" and most > 1:
        torch.set_num_threads(_fastest(engine, candidates(most), seconds))
    return torch.get_num_threads()


def checked_threads(threads: str | int) -> int:
    """`threads` as an int of 1 or more. Raises ValueError."""
    if not str(threads).isdecimal() or int(threads) < 1:
        raise ValueError(f"threads: expected {AUTO}, or 1 or more, got {threads}")
    return int(threads)


def candidates(most: int) -> list[int]:
    """Numbers of threads to try: 1, 2, 4 .. and `most`."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _fastest(engine: Streaming, counts: list[int], seconds: float) -> int:
    started = time.perf_counter()
    passes: dict[int, list[float]] = {count: [] for count in counts}
    round_ = 0
    while round_ < 2 or time.perf_counter() - started < seconds:
        for count in counts:
            torch.set_num_threads(count)
            spent = _passes(engine, round_)
            if round_:  # the first round warms up
                passes[count] += spent
            elif count == 1 and spent and min(spent) > SLOW_PASS:
                return counts[-1]
        round_ += 1
    medians = {count: median(spent) for count, spent in passes.items() if spent}
    return choose(medians) if medians else counts[-1]


def _passes(engine: Streaming, seed: int) -> list[float]:
    """Seconds of each pass of a short text after the prompt's; with it if that one is slow already."""
    spent = []
    for record in engine.stream(PROMPT, None, TOKENS, seed):
        if record.prefill and record.seconds < 2 * SLOW_PASS:
            continue
        spent.append(record.seconds)
        if sum(spent) > 2 * SLOW_PASS:
            break
    return spent


def choose(seconds: dict[int, float]) -> int:
    """The fewest threads within 5 % of the fastest. seconds: of a pass, by number of threads."""
    limit = TOLERANCE * min(seconds.values())
    return min(count for count, each in seconds.items() if each <= limit)
