"""Running out of memory, as one sentence with a remedy, after which the program lives on; and the most held.

torch says it in several ways: an error of its own on a GPU, others where a GPU's libraries found no room for
themselves, a plain RuntimeError of the CPU's allocator, and Python's MemoryError. What a failed pass held is
let go before the sentence is raised: the frames of the error hold tensors, and whoever catches it might keep
it.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SAID = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
NOWHERE_LEFT = (
    "memory: there is none left for this; use smaller batches, a smaller model or fewer bits, or run it "
    "where there is more"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


_releases: list[Callable[[], None]] = []


def release_when_short(release: Callable[[], None]) -> None:
    """Have `release` called wherever memory runs out, to free what is only kept for later use."""
    _releases.append(release)


@contextmanager
def enough_memory(sentence: Callable[[], str]) -> Iterator[None]:
    """What runs in it and finds no memory left raises ValueError with `sentence()`; first, what is only kept
    for later use is freed, and the GPU's allocator gives back what nobody holds.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
    for release in _releases:
        release()
    give_back()
    raise ValueError(sentence()) from None


def give_back() -> None:
    """What nobody holds goes back to the system; a GPU's allocator would keep it for this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_out(device: torch.device) -> str:
    """The sentence of a pass that did not fit."""
    return (
        f"memory: {device} has no room left for this run; shorten the chat or ask for fewer new tokens, load "
        "the model in 8bit or 4bit, spread it with device_map auto, or choose a smaller one"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's most since the process began, on CPU the process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident(workers: bool = False) -> int:
    """Bytes: the most that this process held, or one of its worker processes that have ended."""
    import resource  # which Windows does not have

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if workers else (resource.RUSAGE_SELF,)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds)
    return peak if sys.platform == "darwin" else 1024 * peak
