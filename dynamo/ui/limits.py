"""What stands before Gradio: no request too large to be held, too many of one visitor, or past a full queue.

A request for work is refused before it is queued, with one sentence that the page shows and a program finds
under `detail`: 413 for its size, 408 for one that does not come to its end, 429 with `Retry-After` for the
rest. Who never ends a request takes no place in the queue. Who asks is told by the address that connects,
behind a proxy by the last public address of `X-Forwarded-For`, as a visitor can only put others before it.
Gradio's own functions stay as they are; all that is asked of it is how many wait.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from dynamo.spaces.limits import Limits

LARGEST_REQUEST = 4_000_000  # bytes; both lanes of the longest chat take less
LONGEST_READING = 30  # seconds until a request must be here
MOST_VISITORS = 10_000  # that are told apart; who asked longest ago is forgotten first
FIRST_WAIT = 15  # seconds after which to ask again, told to whom the queue refused before a run was measured
SHORTEST_WAIT, LONGEST_WAIT = 2, 300
RECENT_RUNS = 16

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Rates:
    """A token bucket for each visitor: `per_minute` requests at once, then one every 60 / `per_minute` s."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, visitor: str) -> float:
        """0 for a request that is granted, else the seconds after which the next one would be."""
        with self._lock:
            now = self._clock()
            left, since = self._buckets.pop(visitor, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
            granted = left >= 1
            self._buckets[visitor] = (left - granted, now)
            if len(self._buckets) > MOST_VISITORS:
                self._buckets.popitem(last=False)
            return 0.0 if granted else (1 - left) * 60 / self._per_minute


class Pace:
    """How long the model's last runs took, and so how long a queue of them will."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=RECENT_RUNS)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around a run; one that was stopped counts with what it took."""
        begun = self._clock()
        try:
            yield
        finally:
            self._seconds.append(self._clock() - begun)

    def wait(self, waiting: int) -> int:
        """Whole seconds until so many runs, which go one by one, will be over."""
        recent = tuple(self._seconds)
        if not recent:
            return FIRST_WAIT
        return min(LONGEST_WAIT, max(SHORTEST_WAIT, math.ceil(waiting * sum(recent) / len(recent))))


class Gate:
    """ASGI middleware with some `Limits`, in front of a page whose `pace` is known."""

    def __init__(self, app: Any, limits: Limits):
        self._app = app
        self._limits = limits
        rate = limits.requests_per_minute
        self._rates = Rates(rate) if rate is not None else None
        self._joining = 0  # let in, and perhaps not in Gradio's queue yet

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        refusal = self._too_often(scope)
        if refusal is None and not _is(scope, "/upload"):  # Gradio bounds files itself, while they come
            receive, refusal = await _held(receive)
        refusal = refusal or self._queue_full(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        joins = _is_work(scope)
        self._joining += joins  # nothing was awaited since the queue was looked at
        try:
            await self._app(scope, receive, send)
        finally:
            self._joining -= joins

    def _too_often(self, scope: Message) -> tuple[int, str, int] | None:
        """Status, sentence and seconds to wait."""
        if self._rates is None or not _is_work(scope):
            return None
        seconds = math.ceil(self._rates.wait(visitor_of(scope, self._limits.behind_proxy)))
        if not seconds:
            return None
        most = self._limits.requests_per_minute
        return 429, f"At most {most} requests a minute are answered here; ask again in {seconds} s.", seconds

    def _queue_full(self, scope: Message) -> tuple[int, str, int] | None:
        """Status, sentence and seconds to wait."""
        if not _is_work(scope):
            return None
        page = scope["app"].get_blocks()
        queue = page._queue  # Gradio has no public name for it
        waiting = len(queue) + self._joining
        if queue.max_size is None or waiting < queue.max_size:
            return None
        seconds = page.pace.wait(waiting)
        told = f"The queue is full: {waiting} requests are waiting already; ask again in {seconds} s."
        return 429, told, seconds


def visitor_of(scope: Message, behind_proxy: bool) -> str:
    """The address that stands for a visitor; of IPv6 the network, which is one household's.

    behind_proxy: read the proxies' chain from its end, past private addresses, as far as it can be read.
    """
    client = (scope.get("client") or ("",))[0]
    told = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    hops = [client, *reversed(told.decode("latin-1").split(","))] if behind_proxy else [client]
    known = list(takewhile(lambda address: address is not None, map(_address, hops)))
    chosen = next((address for address in known if address.is_global), known[0] if known else None)
    if chosen is None:
        return client
    return str(ipaddress.ip_network((chosen, 64), strict=False)) if chosen.version == 6 else str(chosen)


def _address(hop: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Of a hop such as 8.8.8.8, 8.8.8.8:443, 2001:db8::1 or [2001:db8::1]:443."""
    hop = hop.strip()
    bare = hop[1:].split("]")[0] if hop.startswith("[") else hop.split(":")[0] if hop.count(":") == 1 else hop
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is(scope: Message, ending: str) -> bool:
    return scope["path"].rstrip("/").endswith(ending)


def _is_work(scope: Message) -> bool:
    """Whether something is to be queued: by the page, by a program, or by a tool, which asks as a program."""
    return _is(scope, "/queue/join") or "/call/" in scope["path"]


async def _held(receive: Receive) -> tuple[Receive, tuple[int, str, int] | None]:
    """The whole body, to be received once more; or the refusal of one that is too large or too slow."""
    try:
        async with asyncio.timeout(LONGEST_READING):
            message = await _whole(receive)
    except TimeoutError:
        told = f"The request was not here within {LONGEST_READING} s; send it again, or less of it."
        return receive, (408, told, 0)
    if message is None:
        told = f"The request is larger than {LARGEST_REQUEST:,} bytes; send less, or start a new chat."
        return receive, (413, told, 0)
    waiting = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again, None


async def _whole(receive: Receive) -> Message | None:
    """All parts as one message, or that the visitor is gone; None where they are too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_REQUEST:
            return None
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}


async def _answer(send: Send, status: int, told: str, seconds: int) -> None:
    body = json.dumps({"detail": told}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if seconds:
        headers.append((b"retry-after", str(seconds).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
