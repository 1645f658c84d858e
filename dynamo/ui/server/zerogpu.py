"""Model time on a ZeroGPU Space: lent call by call, in a worker process that has the GPU.

The Space's own process holds the models and never computes. A decorated generator is what its worker runs;
each decorated function would get workers of its own, so there is one for everything, `run_task`, and what it
runs is looked up by name among the tasks that were offered before the page was served. Arguments and values
are pickled on their way; a ValueError travels as its text, since the library would show its class alone.

Elsewhere nothing here is used. It refuses to know models and pages.
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
    """In the worker: one task's values, then perhaps the reason why it went no further."""
    try:
        with closing(_tasks[name](*arguments, **keywords)) as values:
            for value in values:
                yield VALUE, value
    except ValueError as error:
        yield REFUSED, str(error)


class GpuWorker:
    """Offers tasks to the worker. Make one before any model is loaded, offer before the page is served.

    seconds: what a task asks of a visitor's quota; or a function of its name, arguments and keywords.
    """

    def __init__(self, seconds: int | Callable[..., int], spaces: Any = None):
        # Its import teaches torch to keep CUDA tensors back until a worker has the GPU.
        spaces = spaces or importlib.import_module("spaces")
        self._run = spaces.GPU(duration=seconds)(run_task)

    def generator(self, name: str, task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same generator function, run by the worker. Raises ValueError for a name given before."""
        if name in _tasks:
            raise ValueError(f"task: {name!r} is offered already")
        _tasks[name] = task
        return partial(self._call, name)

    def function(self, name: str, task: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, run by the worker."""

        def once(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            yield task(*arguments, **keywords)

        lent = self.generator(name, once)
        return lambda *arguments, **keywords: next(iter(list(lent(*arguments, **keywords))))

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        with closing(self._run(name, arguments, keywords)) as answers:
            for kind, value in answers:
                if kind == REFUSED:
                    raise ValueError(value)
                yield value
