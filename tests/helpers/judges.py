"""A local server that answers like an OpenAI-compatible endpoint, well or badly, as a script says."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answered(text: str) -> dict[str, Any]:
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }  # fmt: skip


class JudgeServer:
    """answer: the request's JSON to a reply: words, a status code, (status, headers), raw bytes, or seconds
    to be slow for before "[[5]]". requests, headers: what was received."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]):
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(request)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                outer.paths.append(self.path)
                reply, status, headers = answer(request), 200, {}
                if isinstance(reply, float):
                    time.sleep(reply)
                    reply = "[[5]]"
                if isinstance(reply, int):
                    reply = reply, {}
                if isinstance(reply, tuple):
                    status, headers = reply
                    reply = b'{"error": {"message": "key sk-secret is not good"}}'
                if isinstance(reply, str):
                    reply = json.dumps(answered(reply)).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(reply))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client did not wait
                    self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]
