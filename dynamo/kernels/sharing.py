"""Threads that share out the tasks of one step after the other.

Each takes the next task that no other has taken, and waits at the end of a step until all its tasks are done.
So a thread that comes late, or that the system has put aside, keeps nobody waiting but for the one task that
it is at; and a thread alone does everything. What a step reads may be overwritten as soon as the step is
done: a thread that finds its tasks all taken has no use for what it read.
"""

from __future__ import annotations

import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dynamo.kernels.compiling import compiled, compiled_for

LINE = 8  # integers of a line of the caches
PATIENCE = 2000  # pauses, some 50 microseconds: then who has the task may be waiting for this processor
PAUSE = "llvm.x86.sse2.pause"  # the processor's other thread may go first


def _integer(context, builder, signature, values):
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.gep(array.data, [values[1]])


@intrinsic
def _count(_, counts, at, more):
    """Adds to one; what it was."""

    def made(*given):
        return given[1].atomic_rmw("add", _integer(*given), given[3][2], "acq_rel")

    return types.int64(counts, at, types.int64), made


@intrinsic
def _counted(_, counts, at):
    return types.int64(counts, at), lambda *given: given[1].load_atomic(_integer(*given), "acquire", 8)


@intrinsic
def _pause(_):
    def made(context, builder, signature, values):
        if compiled_for("sse2"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, PAUSE), [])
        return context.get_dummy_value()

    return types.void(), made


@intrinsic
def _yield(_):
    def made(context, builder, signature, values):
        if sys.platform != "win32":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), made


@compiled
def new_counts(steps, threads):
    """For each step a line of each thread's, of tasks taken, and one of tasks done."""
    return np.zeros(steps * (threads + 1) * LINE, np.int64)


@compiled
def crew_of(counts, me, threads):
    """Of one type, whatever these integers' are: or what is called with it would be compiled for each."""
    return counts, np.int64(me), np.int64(threads)


@compiled
def next_task(crew, step, tasks):
    """The next task of a step, `tasks` where all are taken. crew: counts, which thread this is, of how many.

    Each thread has a share of its own, as writing by turns to one line takes longer than some of the tasks;
    when that is done it takes from the others'.
    """
    counts, me, threads = crew
    for distance in range(threads):
        whose = (me + distance) % threads
        line = (step * (threads + 1) + whose) * LINE
        begin, end = tasks * whose // threads, tasks * (whose + 1) // threads
        if begin + _counted(counts, line) < end:
            task = begin + _count(counts, line, 1)
            if task < end:
                return task
    return tasks


@compiled
def is_open(crew, step, tasks):
    """Whether a step has tasks that are not done."""
    counts, _, threads = crew
    return _counted(counts, (step * (threads + 1) + threads) * LINE) < tasks


@compiled
def finish(crew, step, done, tasks):
    """So many tasks of the step are done; waits until all of them are."""
    counts, _, threads = crew
    if done:
        _count(counts, (step * (threads + 1) + threads) * LINE, done)
    pauses = 0
    while is_open(crew, step, tasks):
        _pause()
        pauses += 1
        if pauses > PATIENCE:
            _yield()
