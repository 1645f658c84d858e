"""Bodies of requests, read as a whole before anything is done with them.

A body has a largest size and a longest time. Large ones on their way together have a bound, too, as a
hundred that never end would else be held at once; small ones are let in beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from dynamo.ui.server.guard import Refused

MOST_HELD = 100_000_000  # bytes of large bodies, together
SMALL = 64_000
COME_AGAIN = 30

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Bodies:
    """All that one page is being sent."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def whole(self, receive: Receive, largest: int, seconds: float) -> AsyncIterator[Message]:
        """All parts as one message, or that the visitor is gone; held until the context ends.

        Raises Refused for a body of more bytes than `largest`, that is not here in time, or that has no room.
        """
        parts = _Parts(self)
        try:
            async with asyncio.timeout(seconds):
                message = await parts.read(receive, largest)
        except TimeoutError:
            parts.release()
            told = f"The request was not here within {seconds:g} s; send it again, or less of it."
            raise Refused(408, told) from None
        except BaseException:
            parts.release()
            raise
        try:
            yield message
        finally:
            parts.release()

    def take(self, size: int) -> None:
        if self._held + size > MOST_HELD:
            told = f"Too much is being sent here at once; send it again in {COME_AGAIN} s."
            raise Refused(503, told, COME_AGAIN)
        self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size


class _Parts:
    """One body on its way."""

    def __init__(self, bodies: Bodies):
        self._bodies = bodies
        self._taken = 0

    async def read(self, receive: Receive, largest: int) -> Message:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > largest:
                told = f"The request is larger than {largest:,} bytes; send less, or start a new chat."
                raise Refused(413, told)
            if size > SMALL:
                more = size - self._taken
                self._bodies.take(more)
                self._taken += more
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def release(self) -> None:
        self._bodies.give_back(self._taken)
        self._taken = 0
