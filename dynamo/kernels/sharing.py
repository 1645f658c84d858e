"""Threads that share out the tasks of one step after the other.

Each takes the next task that no other has taken, and waits at the end of a step until all its tasks are done.
So a thread that comes late, or that the system has put aside, keeps nobody waiting but for the one task that
it is at; and a thread alone does everything. What a step reads may be overwritten as soon as the step is
done: a thread that finds its tasks all taken has no use for what it read.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dynamo.kernels.compiling import compiled, compiled_for

LINE = 8  # integers of a line of the caches: a step has one for itself
PATIENCE = 2000  # pauses, some 50 microseconds: then who has the task may be waiting for this processor
PAUSE = "llvm.x86.sse2.pause"  # the processor's other thread may go first


def _integer(context, builder, signature, values):
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.gep(array.data, [values[1]])


@intrinsic
def _count(_, counts, at):
    """Adds 1; what it was."""

    def made(*given):
        return given[1].atomic_rmw("add", _integer(*given), ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counts, at), made


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
def next_task(counts, step):
    """The next task of a step, counts (steps x LINE,) zeros at first; none where it is `tasks` or more."""
    return _count(counts, step * LINE)


@compiled
def is_open(counts, step, tasks):
    """Whether a step has tasks that no thread has taken."""
    return _counted(counts, step * LINE) < tasks


@compiled
def finish(counts, step):
    """One task of the step is done."""
    _count(counts, step * LINE + 1)


@compiled
def wait(counts, step, tasks):
    """Until all of the step's tasks are done."""
    pauses = 0
    while _counted(counts, step * LINE + 1) < tasks:
        _pause()
        pauses += 1
        if pauses > PATIENCE:
            _yield()
