"""What a link to the page looks like where it is shared: title, description and a picture of the page.

Gradio's own page names Gradio there, and its picture at another host. Behind a proxy, and below a root path,
addresses are made as Gradio makes the page's own.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from gradio.route_utils import get_root_url
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse

from dynamo.ui.server.bodies import Message

PICTURE = "/preview.png"
SIZE = (1200, 630)  # what most sites show whole
_TAGS = re.compile(rb'<meta\s[^>]*(?:property|name)="(?:og|twitter):[^>]*>\s*')
_BEFORE = b"window.gradio_config"  # after it come the page's components


class LinkPreview:
    """ASGI middleware: writes the page's tags, and serves their picture."""

    def __init__(self, app: Any, title: str, description: str, picture: Path):
        self._app = app
        self._title, self._description, self._picture = title, description, picture

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif scope["path"].removeprefix(scope.get("root_path", "")) == PICTURE:
            response = FileResponse(self._picture, headers={"cache-control": "public, max-age=3600"})
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, _Rewriting(send, lambda: self._tags(scope)))

    def _tags(self, scope: Message) -> str:
        root = get_root_url(Request(scope), "/", scope["app"].root_path or scope.get("root_path"))
        width, height = SIZE
        about = {
            "og:type": "website",
            "og:title": self._title,
            "og:description": self._description,
            "og:url": f"{root}/",
            "og:image": root + PICTURE,
            "og:image:width": str(width),
            "og:image:height": str(height),
            "og:image:alt": "The page: base model and DynaMo answer side by side",
        }
        named = {"description": self._description, "twitter:card": "summary_large_image"}
        tags = [f'<meta property="{name}" content="{escape(value)}" />' for name, value in about.items()]
        tags += [f'<meta name="{name}" content="{escape(value)}" />' for name, value in named.items()]
        return "\n".join([f"<title>{escape(self._title)}</title>", *tags, ""])


class _Rewriting:
    """Holds an HTML answer back until it is whole; all others pass through."""

    def __init__(self, send: Any, tags: Any):
        self._send, self._tags = send, tags
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if MutableHeaders(scope=message).get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = self._rewritten()
            if body != self._body:  # a HEAD request's answer has none
                MutableHeaders(scope=self._start)["content-length"] = str(len(body))
            await self._send(self._start)
            message = {"type": "http.response.body", "body": body}
        await self._send(message)

    def _rewritten(self) -> bytes:
        head, config, rest = self._body.partition(_BEFORE)
        if not config:
            return self._body
        first = _TAGS.search(head)
        at = first.start() if first else head.find(b"</head>")
        return head[:at] + self._tags().encode() + _TAGS.sub(b"", head[at:]) + config + rest
