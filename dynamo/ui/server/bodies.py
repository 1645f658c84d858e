"""Request bodies, read completely before anything is done with them.

A body has a largest size and a longest time. Large bodies that are being read at the same time share a bound,
as a hundred that never end would otherwise all be held; small ones are let in beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from dynamo.ui.server.guard import Refused

MOST_HELD = 100_000_000  # bytes of large bodies, together
SMALL = 64_000
RETRY_SECONDS = 30

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class RequestBodies:
    """All bodies that one page is being sent."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def read(self, receive: Receive, largest: int, seconds: float) -> AsyncIterator[Message]:
        """All parts as one message, or the message that the visitor is gone; held until the context ends.

        Raises Refused for a body of more than `largest` bytes, one that takes too long, and one without room.
        """
        held = 0

        async def receive_all() -> Message:
            nonlocal held
            parts, size = [], 0
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > largest:
                    reason = f"The request is larger than {largest:,} bytes; send less, or start a new chat."
                    raise Refused(413, reason)
                if size > SMALL:
                    self._hold(size - held)
                    held = size
                if not message.get("more_body", False):
                    return {"type": "http.request", "body": b"".join(parts), "more_body": False}

        try:
            try:
                async with asyncio.timeout(seconds):
                    message = await receive_all()
            except TimeoutError:
                reason = f"The request did not arrive within {seconds:g} s; send it again, or send less."
                raise Refused(408, reason) from None
            yield message
        finally:
            self._held -= held

    def _hold(self, size: int) -> None:
        if self._held + size > MOST_HELD:
            reason = f"Too much is being sent here at once; send it again in {RETRY_SECONDS} s."
            raise Refused(503, reason, RETRY_SECONDS)
        self._held += size
