"""The request guard in front of Gradio: bounds on sizes, on each visitor's rate, and on the queue.

A request for work is refused before it is queued, with one sentence that the page shows and a program finds
under `detail`: 413 for its size, 408 for one that does not end in time, 429 with `Retry-After` for the rest.
An upload counts as a request; calls that bypass the queue have a rate of their own, in bytes, as their cost
grows with what they send. A request that never ends takes no place in the queue. A visitor is identified by
the address that connects, behind a proxy by the last public address of `X-Forwarded-For`, as a visitor can
only prepend others to it. Of Gradio it reads how many requests wait and what was uploaded, and changes
nothing. Which routes are closed, and which files a request may name, is decided in `guard`.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from starlette.exceptions import HTTPException

from dynamo.spaces.limits import Limits
from dynamo.ui.server.bodies import Message, Receive, RequestBodies
from dynamo.ui.server.guard import Refused, check_files, check_route, check_sender, check_upload, make_room

log = logging.getLogger(__name__)

MOST_TOKENS = 256  # of one answer
LONGEST_FILE = 5_000_000  # bytes of a trace file
LARGEST_REQUEST = 4_000_000  # bytes; both lanes of the longest chat take less
LONGEST_READING = 30  # seconds until a request must be here
LONGEST_UPLOAD = 120
AROUND_A_FILE = 100_000  # bytes that an upload may have besides one file
MOST_UPLOADED = 200_000_000  # bytes that are kept; the oldest make room
# What is answered without the queue costs time by what it sends: so many bytes a minute for each request that
# is granted, and every call counts as more than it sends.
QUIET_BYTES, QUIET_CALL = 1_000_000, 15_000
MOST_VISITORS = 10_000  # that are remembered; the one that asked longest ago is forgotten first
FIRST_WAIT = 15  # seconds after which to ask again, before any run was measured
SHORTEST_WAIT, LONGEST_WAIT = 2, 300
RECENT_RUNS = 16

Send = Callable[[Message], Awaitable[None]]


class Busy(RuntimeError):
    """The model did not get free in time."""


class Rates:
    """A token bucket for each visitor: `per_minute` requests at once, then one every 60 / `per_minute` s."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, visitor: str, cost: int = 1) -> float:
        """0 for a request that is granted, else the seconds after which the next one would be."""
        with self._lock:
            now = self._clock()
            left, since = self._buckets.pop(visitor, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
            granted = left >= cost
            self._buckets[visitor] = (left - granted * cost, now)
            if len(self._buckets) > MOST_VISITORS:
                self._buckets.popitem(last=False)
            return 0.0 if granted else (cost - left) * 60 / self._per_minute


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


class RequestGuard:
    """ASGI middleware with some `Limits`, in front of a page whose `pace` is known."""

    def __init__(self, app: Any, limits: Limits):
        self._app = app
        self._limits = limits
        rate = limits.requests_per_minute
        self._rates = Rates(rate) if rate is not None else None
        self._quiet = Rates(QUIET_BYTES * rate) if rate is not None else None
        self._bodies = RequestBodies()
        self._joining = 0  # let in, and perhaps not in Gradio's queue yet

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_route(scope)
            if not self._limits.behind_proxy:
                check_sender(scope)
            if scope["method"] == "POST":
                await self._posted(scope, receive, send)
            else:
                await self._got(scope, receive, send)
        except Refused as refused:
            await _answer(send, refused)

    async def _got(self, scope: Message, receive: Receive, send: Send) -> None:
        """Ends a stream that was never begun: Gradio says so in it, and then fails with a long traceback."""
        try:
            await self._app(scope, receive, send)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _posted(self, scope: Message, receive: Receive, send: Send) -> None:
        joins, uploads = _is_work(scope), _is(scope, "/upload")
        if joins or uploads:
            self._check_rate(scope)
        largest, seconds = LARGEST_REQUEST, LONGEST_READING
        if uploads:  # Gradio bounds each file of them, but not their number
            largest, seconds = self._limits.upload_bytes(LONGEST_FILE) + AROUND_A_FILE, LONGEST_UPLOAD
        async with self._bodies.read(receive, largest, seconds) as message:
            uploaded = scope["app"].get_blocks().upload_file_set
            whole = message["type"] == "http.request"
            if uploads and whole:
                check_upload(scope, message["body"])
                make_room(uploaded, MOST_UPLOADED)
            elif whole:
                if not joins:
                    self._check_rate(scope, QUIET_CALL + len(message["body"]))
                if joins or _is_direct(scope):
                    check_files(message["body"], uploaded)
            if joins:
                self._check_queue(scope)
            self._joining += joins  # nothing was awaited since the queue was looked at
            try:
                await self._app(scope, _again(message, receive), send)
            except OSError as error:
                if not uploads:
                    raise
                log.error("an upload could not be written: %s", error)
                raise Refused(507, "There is no room for files here; try it later.") from None
            finally:
                self._joining -= joins

    def _check_rate(self, scope: Message, cost: int | None = None) -> None:
        """cost: in bytes, of what is not queued. Raises Refused."""
        rates = self._rates if cost is None else self._quiet
        if rates is None:
            return
        seconds = math.ceil(rates.wait(visitor_of(scope, self._limits.behind_proxy), cost or 1))
        if seconds:
            most = self._limits.requests_per_minute
            reason = f"At most {most} requests a minute are answered here; ask again in {seconds} s."
            raise Refused(429, reason, seconds)

    def _check_queue(self, scope: Message) -> None:
        """Raises Refused."""
        page = scope["app"].get_blocks()
        queue = page._queue  # Gradio has no public name for it
        waiting = len(queue) + self._joining
        if queue.max_size is not None and waiting >= queue.max_size:
            seconds = page.pace.wait(waiting)
            reason = f"The queue is full: {waiting} requests are waiting already; ask again in {seconds} s."
            raise Refused(429, reason, seconds)


def visitor_of(scope: Message, behind_proxy: bool) -> str:
    """The address that stands for a visitor; of IPv6 the network, which is one household's.

    behind_proxy: read the proxies' chain from its end, past private addresses, as far as it can be read.
    """
    client = (scope.get("client") or ("",))[0]
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    hops = [client, *reversed(forwarded.decode("latin-1").split(","))] if behind_proxy else [client]
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


def _is_direct(scope: Message) -> bool:
    """Whether a function is to be called past the queue."""
    return "/run/" in scope["path"] or "/api/" in scope["path"]


def _again(message: Message, receive: Receive) -> Receive:
    """As if the message had not been received yet."""
    waiting = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.seconds:
        headers.append((b"retry-after", str(refused.seconds).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
