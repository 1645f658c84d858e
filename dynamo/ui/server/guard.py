"""Which of Gradio's routes are closed here, who may send requests, and which files a request may name.

Gradio serves more than this page uses, and some of it is harmful in a stranger's hands: it writes what a
visitor typed to the disk for a link, stores recordings, fetches any address, writes what a request says into
the log. All of that is answered with 404. A request may only name files that were uploaded here, as Gradio
fetches names that are addresses, and reveals the server's folders when it refuses the rest.

A page on your own machine loads models and reads texts by their path. Any site that is open in a browser
there can send it requests, or point its own name to this machine; so the page answers only to this machine's
names, and to no other site's pages.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_CLOSED = re.compile(
    r"/gradio_api/(process_recording|deep_link|custom_component|dev/reload|file[=/]https?://)|^/monitoring"
)
_BOUNDARY = re.compile(rb"""boundary="?([\w'()+,./:=?-]+)""", re.IGNORECASE)
_HOME = {"localhost", socket.gethostname().lower()}

SMALL_FILE = 100_000


class Refused(Exception):
    """A request that is refused, with one sentence. status: of HTTP; seconds: after which to try again."""

    def __init__(self, status: int, reason: str, seconds: int = 0):
        super().__init__(reason)
        self.status, self.seconds = status, seconds


def check_route(scope: MutableMapping[str, Any]) -> None:
    """Raises Refused for a route that is closed."""
    if _CLOSED.search(scope["path"].removeprefix(scope.get("root_path", ""))):
        raise Refused(404, "Not found.")


def check_sender(scope: MutableMapping[str, Any]) -> None:
    """Raises Refused for a request to this machine's own address under another's name, or from another
    site's page."""
    if not _is_loopback((scope.get("server") or ("",))[0]):
        return
    headers = dict(scope["headers"])
    host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    if host and not _is_home(f"//{host}"):
        raise Refused(
            403,
            "This page answers only to its own machine's names; behind a proxy set DYNAMO_LIMITS=proxy, "
            "for a network GRADIO_SERVER_NAME to this machine's address there.",
        )
    if origin and scope["method"] == "POST" and not _is_home(origin):
        raise Refused(
            403,
            "Pages of other sites may not send requests here; if this is the page's own address, set "
            "DYNAMO_LIMITS=proxy.",
        )


def check_files(body: bytes, uploaded: Collection[str]) -> None:
    """Raises Refused for a request that names a file which was not uploaded, or that is not JSON."""
    try:
        # Numbers name no file, and the longest take long.
        waiting = [json.loads(body, parse_int=len, parse_float=len)]
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not valid JSON; correct it and send it again.") from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            # What Gradio takes for a file.
            path = value.get("path")
            if "meta" in value and not (isinstance(path, str) and path in uploaded):
                raise Refused(422, "file: it was not uploaded here, or was removed since; upload it again")
            waiting += value.values()


def check_upload(scope: MutableMapping[str, Any], body: bytes) -> None:
    """Raises Refused for an upload that breaks off: Gradio answers it, and leaves what came on the disk."""
    kinds = b";".join(value for name, value in scope["headers"] if name == b"content-type")
    boundaries = _BOUNDARY.findall(kinds)
    if len(boundaries) != 1 or not body.rstrip(b"\r\n").endswith(b"\r\n--%b--" % boundaries[0]):
        raise Refused(400, "The upload breaks off before its end; send it again.")


def make_room(uploaded: set[str], most: int) -> None:
    """Removes what was uploaded first while the rest has more than `most` bytes; a small file counts with
    `SMALL_FILE`, so that they are not too many."""
    known = {path: status for path in uploaded if (status := _status(path))}
    sizes = {path: max(SMALL_FILE, status.st_size) for path, status in known.items()}
    total = sum(sizes.values())
    for path in sorted(known, key=lambda path: known[path].st_mtime_ns):
        if total <= most:
            return
        total -= sizes[path]
        discard(path, uploaded)


def discard(path: str, uploaded: set[str]) -> None:
    """Removes a file that was uploaded here, and its folder, which has no other; no other file."""
    if path in uploaded:
        uploaded.discard(path)
        try:
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()
        except OSError:  # Gradio keeps what has the same content in one folder
            pass


def _status(path: str) -> Any:
    try:
        return Path(path).stat()
    except OSError:
        return None


def _is_home(address: str) -> bool:
    try:
        name = urlsplit(address).hostname or ""
    except ValueError:
        return False
    return name in _HOME or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return False
    return known.is_loopback or known.is_unspecified
