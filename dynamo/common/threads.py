"""How many of the processor's threads to decode with.

A pass of a small model is many short operators, and every one that is shared out costs a meeting of all
threads: more threads are not always faster, and on a busy machine they can be much slower. How many are best
depends on the model, the processor and who else is on it, so it is measured when a command starts, in well
below a second, on the model itself; `bench --thread-counts` shows the curve that this looks at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Protocol

import torch

AUTO = "auto"
SECONDS = 0.4  # for all counts together
SLOW_PASS = 0.05  # seconds; passes that take one thread so long share their work out well
NEARLY = 1.05  # within 5 % of the fastest, the fewest threads are chosen: they leave more to others
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
        help=f"threads of the processor, or {AUTO}: what a few passes find fastest (default: {AUTO})",
    )


def settle_threads(
    engine: Streaming, asked: str | int = AUTO, most: int | None = None, seconds: float = SECONDS
) -> int:
    """Set how many threads torch computes with, `asked` or what is measured best, and return it.

    most: measured are no more, by default what torch has been set to: one for each core, or OMP_NUM_THREADS.
    Raises ValueError for anything but "auto" and whole numbers from 1 on.
    """
    most = torch.get_num_threads() if most is None else most
    if asked != AUTO:
        torch.set_num_threads(checked_threads(asked))
    elif engine.device.type == "cpu" and most > 1:
        torch.set_num_threads(_fastest(engine, candidates(most), seconds))
    return torch.get_num_threads()


def checked_threads(asked: str | int) -> int:
    if not str(asked).isdecimal() or int(asked) < 1:
        raise ValueError(f"threads: expected {AUTO}, or 1 or more, got {asked}")
    return int(asked)


def candidates(most: int) -> list[int]:
    """1, 2, 4 .. and `most`."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _fastest(engine: Streaming, counts: list[int], seconds: float) -> int:
    started = time.perf_counter()
    passes: dict[int, list[float]] = {count: [] for count in counts}
    turn = 0
    while turn < 2 or time.perf_counter() - started < seconds:
        for count in counts:
            torch.set_num_threads(count)
            spent = _passes(engine, turn)
            if turn:  # the first is to warm up
                passes[count] += spent
            elif count == 1 and spent and min(spent) > SLOW_PASS:
                return counts[-1]
        turn += 1
    medians = {count: median(spent) for count, spent in passes.items() if spent}
    return choose(medians) if medians else counts[-1]


def _passes(engine: Streaming, seed: int) -> list[float]:
    """Seconds of the passes of a short text after the prompt's, or of that one where it is slow already."""
    spent = []
    for record in engine.stream(PROMPT, None, TOKENS, seed):
        if record.prefill and record.seconds < 2 * SLOW_PASS:
            continue
        spent.append(record.seconds)
        if sum(spent) > 2 * SLOW_PASS:
            break
    return spent


def choose(seconds: dict[int, float]) -> int:
    """The fewest threads whose passes are nearly as fast as the fastest; seconds of a pass by count."""
    limit = NEARLY * min(seconds.values())
    return min(count for count, each in seconds.items() if each <= limit)
