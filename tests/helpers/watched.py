"""A served page whose engines are watched, and a browser that is plain HTTP: it can be cut at any byte."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import httpx
from fakes import ScriptedEngine, Vocabulary, scripted_pair
from visitors import PATIENCE

from dynamo.ui import build_demo, launch_options
from dynamo.ui.server.engines import LocalEngines

ANSWER = "one two three four five six seven eight nine ten ."
PREFILL_SECONDS = 1.5


class Watched(ScriptedEngine):
    """Counts the streams that were opened; slow: a prompt is read for long; endless: nobody waits as long as
    an answer takes, so a run that is over was ended."""

    def __init__(self, heads: int):
        super().__init__(Vocabulary(ANSWER), heads, seconds=0.02, sleep=True, repeat=4000)
        self.opened = 0
        self.reading = threading.Event()
        self.slow = self.endless = False

    def stream(self, input_ids, options, max_new_tokens=128, seed=0, stop=()):
        longest = len(self.answer) if self.endless else max_new_tokens
        stream = super().stream(input_ids, options, longest, seed, stop)

        def watched():
            self.opened += 1
            try:
                if self.slow:
                    self.reading.set()
                    time.sleep(PREFILL_SECONDS)
                yield from stream
            finally:
                stream.close()

        return watched()


class Page:
    """A served page with engines that are watched."""

    def __init__(self):
        self.base, self.dynamo = Watched(1), Watched(3)
        pair = replace(
            scripted_pair(ANSWER), engines=LocalEngines({"loop": self.base, "dynamo": self.dynamo})
        )
        self.demo = build_demo(pair)
        _, self.url, _ = self.demo.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options()
        )
        self.api = f"{self.url}gradio_api"
        config = self.demo.get_config_file()
        self.send = next(each for each in config["dependencies"] if each["api_name"] == "send")
        parts = {part["id"]: part for part in config["components"]}
        self.inputs = [parts[number]["props"].get("value") for number in self.send["inputs"]]

    def at_rest(self) -> bool:
        return all(engine.opened == engine.closed for engine in (self.base, self.dynamo))

    def runs(self) -> bool:
        return self.dynamo.opened > self.dynamo.closed

    @contextmanager
    def endless_answers(self):
        self.base.endless = self.dynamo.endless = True
        try:
            yield
        finally:
            self.base.endless = self.dynamo.endless = False

    def answers(self) -> bool:
        """Whether a program gets its whole answer."""
        joined = httpx.post(
            f"{self.api}/call/v2/generate", json={"prompt": "hello", "max_new_tokens": 4}, timeout=PATIENCE
        )
        told = httpx.get(f"{self.api}/call/generate/{joined.json()['event_id']}", timeout=PATIENCE).text
        return "event: complete" in told and '"tokens": 4' in told


class Browser:
    """One window: sends a message as the page's script does, and listens."""

    def __init__(self, page: Page):
        self.page, self.session = page, uuid4().hex[:11]

    def send(self, prompt: str = "hello") -> str:
        data = [prompt, *self.page.inputs[1:]]
        body = {"data": data, "fn_index": self.page.send["id"], "session_hash": self.session}
        joined = httpx.post(f"{self.page.api}/queue/join", json=body, timeout=PATIENCE)
        joined.raise_for_status()
        return joined.json()["event_id"]

    def listen(self) -> socket.socket:
        """The open stream of messages."""
        address = httpx.URL(self.page.url)
        line = socket.create_connection((address.host, address.port), timeout=PATIENCE)
        path = f"/gradio_api/queue/data?session_hash={self.session}"
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n\r\n".encode())
        return line

    def stop(self, event: str) -> None:
        body = {"session_hash": self.session, "fn_index": self.page.send["id"], "event_id": event}
        httpx.post(f"{self.page.api}/cancel", json=body, timeout=PATIENCE)


def read_until(line: socket.socket, word: bytes) -> bytes:
    read = b""
    while word not in read:
        more = line.recv(4096)
        assert more, read
        read += more
    return read


def close(line: socket.socket) -> None:
    line.close()


def reset(line: socket.socket) -> None:
    """As a network that goes away for good: no goodbye, the other end gets a reset."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()
