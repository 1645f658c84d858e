"""Model time on a ZeroGPU Space: lent call by call, in a worker process that has the GPU.

The Space's own process holds the models and never computes. A decorated generator is what its worker runs;
each decorated function would get workers of its own, so there is one for everything, `run_task`, which looks
its task up by name among those that were registered before the page was served. Arguments and values are
pickled on their way; a ValueError travels as its text, since the library would show only its class.

Elsewhere nothing here is used. This module knows no models and no page.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

VALUE, REFUSED = "value", "refused"

_tasks: dict[str, Callable[..., Iterator[Any]]] = {}


def run_task(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """In the worker: one task's values, then the reason if it was refused."""
    try:
        with closing(_tasks[name](*arguments, **keywords)) as values:
            for value in values:
                yield VALUE, value
    except ValueError as error:
        yield REFUSED, str(error)


class GpuWorker:
    """Runs tasks in the worker. Make it before any model is loaded; register tasks before serving the page.

    seconds: what a task takes of a visitor's quota; or a function of its name, arguments and keywords.
    """

    def __init__(self, seconds: int | Callable[..., int], spaces: Any = None):
        # Importing it makes torch hold CUDA tensors back until a worker has the GPU.
        spaces = spaces or importlib.import_module("spaces")
        self._run = spaces.GPU(duration=seconds)(run_task)

    def generator(self, name: str, task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same generator function, run by the worker. Raises ValueError for a name given before."""
        if name in _tasks:
            raise ValueError(f"task: {name!r} is registered already")
        _tasks[name] = task
        return partial(self._call, name)

    def function(self, name: str, task: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, run by the worker."""

        def once(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            yield task(*arguments, **keywords)

        remote = self.generator(name, once)

        def run(*arguments: Any, **keywords: Any) -> Any:
            (value,) = remote(*arguments, **keywords)
            return value

        return run

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        with closing(self._run(name, arguments, keywords)) as answers:
            for kind, value in answers:
                if kind == REFUSED:
                    raise ValueError(value)
                yield value
