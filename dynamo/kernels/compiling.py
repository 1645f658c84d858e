"""How the loops of this package are compiled. Importing this imports numba."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from threading import Lock, local
from typing import Any

import llvmlite.binding
from filelock import FileLock
from numba import config, njit, set_num_threads
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError

FREE_SUMS = {"reassoc", "contract", "arcp", "nsz"}  # sums may be taken in any order
_all_cores = Lock()
_asked = local()
FAILURES = (OSError, NumbaError)  # what a first call may end in, on a full disk for one


def compiled(function: Callable) -> Callable:
    """By numba at the first call. The result is kept on disk, or where there is no folder that may be written
    to, made anew by each process.

    Of several processes, ranks for one, that find nothing there, one compiles a loop and the others wait for
    it, or compile other loops.

    numba's cache notices changes to a function's own file only; here, to any file of this package. The loops
    hold the interpreter's lock: on small models they last some ten microseconds, and giving it up would
    cost more than it lets others do. They share nothing but tables, which do not change.
    """
    return _compiled(function)


def merged(function: Callable) -> Callable:
    """Compiled as a part of the loops that call it, not by itself and then again with each of these."""
    return njit(inline="always")(function)


def compiled_for_sums(function: Callable) -> Callable:
    """`compiled`, where sums may be taken in any order: the compiler then works on vectors of numbers, in
    loops over places (`range`); not in those over an array's numbers, whose iterator it does not see through.
    """
    return _compiled(function, fastmath=FREE_SUMS)


def compiled_on_all_cores(function: Callable) -> Callable:
    """`compiled_for_sums`, whose `prange` is shared out over numba's threads.

    These serve one caller after the other: where numba has threads of its own, as on systems without GNU's
    OpenMP, a second caller would end the process. No loop may call one of these (nor can it, as they are
    wrapped): loaded from the cache alone it would come with nothing that starts the threads, and crash.
    """
    loop = _compiled(function, fastmath=FREE_SUMS, parallel=True)

    @wraps(function)
    def one_at_a_time(*given: Any) -> Any:
        with _all_cores:
            return loop(*given)

    return one_at_a_time


def _compiled(function: Callable, **options: Any) -> Callable:
    try:
        loop = njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no such folder
        return njit(error_model="numpy", **options)(function)
    loop._cache._cache_file._source_stamp = _package()
    loop.compile = _alone(loop.compile, FileLock(loop._cache._cache_file._index_path + ".lock"))
    return loop


@cache
def _package() -> str:
    """A digest of all files of this package, as loops call those of others."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(each.name.encode() + each.read_bytes() for each in files)).hexdigest()


def _alone(compile: Callable, lock: FileLock) -> Callable:
    """numba numbers the files that it keeps of a loop without a lock: two processes that compile it for
    different types at once may give both the same file, and one then runs the code of the other."""

    @wraps(compile)
    def compile_alone(signature: Any) -> Any:
        # numba's own lock first: a loop compiles those that it calls, and would wait at the lock of one that
        # another thread holds, which waits for numba's.
        with global_compiler_lock, lock:
            return compile(signature)

    return compile_alone


def use_threads(count: int) -> None:
    """How many threads of numba's the loops on all cores have in this thread; never more than it has."""
    if getattr(_asked, "threads", None) != count:  # numba itself takes some 20 microseconds to be told
        set_num_threads(min(count, config.NUMBA_NUM_THREADS))
        _asked.threads = count


def widens_halves() -> bool:
    """Whether this processor widens 16-bit floats by itself; loops that do so are for no other."""
    return platform.machine().lower() in ("arm64", "aarch64") or compiled_for("f16c")


def compiled_for(feature: str) -> bool:
    """Whether loops are compiled for processors with this: for this one, or as NUMBA_CPU_FEATURES says."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return llvmlite.binding.get_host_cpu_features().get(feature, False)
