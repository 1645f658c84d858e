"""Where there are no compiled loops, or none can be kept: numpy, or loops that are compiled anew."""

from __future__ import annotations

import tempfile

import pytest
from processes import printed

pytestmark = pytest.mark.timeout(900)  # compilers run
ASK = "import numpy as np\nfrom dynamo import kernels\nloops = kernels.loops()\n"
DRAW = "print(loops.drawn(np.array([0.25, 0.75]), 0.5))"


def test_a_machine_without_numba_does_it_in_numpy():
    assert printed(f"import sys; sys.modules['numba'] = None\n{ASK}print(loops)") == "None"


def test_the_environment_chooses():
    assert printed(f"{ASK}print(loops)", DYNAMO_KERNELS="numpy") == "None"
    assert printed(ASK + DRAW, DYNAMO_KERNELS="numba") == "1"
    code = "from dynamo import kernels\ntry: kernels.loops()\nexcept ValueError as error: print(error)"
    assert printed(code, DYNAMO_KERNELS="cuda").startswith(
        "DYNAMO_KERNELS: expected numba or numpy, got 'cuda'"
    )


def test_without_a_folder_to_keep_them_in_loops_are_compiled_anew():
    """As in an image whose files belong to someone else: numba finds no place for its cache and says so."""
    none = "from numba.core.caching import CacheImpl\nCacheImpl._locator_classes = []\n"
    assert printed(none + ASK + DRAW + "; print(loops.drawn.stats.cache_path)") == "1\nNone"


def test_loops_are_kept_where_numba_is_told_to(tmp_path):
    printed(ASK + DRAW, NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.nbi")), "an index of what was compiled"
    hits = "; print(sum(loops.drawn.stats.cache_hits.values()))"
    assert printed(ASK + DRAW + hits, NUMBA_CACHE_DIR=str(tmp_path)) == "1\n1"


def test_loops_are_compiled_anew_where_another_file_of_the_package_has_changed(tmp_path):
    """numba looks at a loop's own file only, and a loop may call another's."""
    hits = "; print(sum(loops.drawn.stats.cache_hits.values()))"
    assert printed(ASK + DRAW + hits, NUMBA_CACHE_DIR=str(tmp_path)) == "1\n0"
    other = "from dynamo.kernels import compiling; compiling._package = lambda: 'other'\n"
    assert printed(other + ASK + DRAW + hits, NUMBA_CACHE_DIR=str(tmp_path)) == "1\n0"
    assert printed(other + ASK + DRAW + hits, NUMBA_CACHE_DIR=str(tmp_path)) == "1\n1"


def test_no_two_processes_write_to_the_cache_at_once(tmp_path):
    """numba itself locks nothing: both would compile, and might give different code the same file."""
    code = """
from filelock import FileLock, Timeout
from numba.core.caching import IndexDataCacheFile
def save(*_):
    try:
        FileLock(f"{loops.drawn._cache._cache_file._index_path}.lock").acquire(timeout=0)
    except Timeout:
        print("locked")
IndexDataCacheFile.save = save
"""
    assert printed(ASK + code + DRAW, NUMBA_CACHE_DIR=str(tmp_path)) == "locked\n1"


def test_threads_of_numbas_own_serve_several_callers():
    """Two at once would end the process."""
    code = """
from threading import Thread
import numba, numpy as np
from dynamo.kernels.compiling import compiled_on_all_cores
@compiled_on_all_cores
def count(numbers):
    for i in numba.prange(len(numbers)):
        numbers[i] += 1
def run(numbers):
    for _ in range(300):
        count(numbers)
run(np.zeros(64))
each = [np.zeros(64) for _ in range(4)]
callers = [Thread(target=run, args=(numbers,)) for numbers in each]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(numba.threading_layer(), {float(number) for numbers in each for number in numbers})
"""
    threads = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    assert printed(code, **threads) == "workqueue {300.0}"


def test_a_full_disk_leaves_the_engine_running_in_numpy():
    """numba hands on what the disk says when it keeps a compiled function."""
    code = """
import errno, os
from numba.core.caching import IndexDataCacheFile
def refuse(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
IndexDataCacheFile.save = refuse
from dynamo import kernels
from dynamo.sampling.sampler import warm_up
warm_up(2, 9)
print(kernels.loops())
"""
    with tempfile.TemporaryDirectory() as empty:
        assert printed(code, NUMBA_CACHE_DIR=empty) == "None"
