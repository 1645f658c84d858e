"""What stays shut, who may knock, which files a request may name: by the rules alone."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from hostile import SHUT

from dynamo.ui.server.bodies import MOST_HELD, SMALL, RequestBodies
from dynamo.ui.server.guard import (
    SMALL_FILE,
    Refused,
    check_files,
    check_route,
    check_sender,
    check_upload,
    discard,
    make_room,
)

OPEN = (
    "/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/file=/tmp/gradio/ab/monitoring", "/gradio_api/file=C:/Users/x/run.ndjson",
    "/gradio_api/upload", "/gradio_api/mcp/", "/gradio_api/call/generate", "/gradio_api/heartbeat/abc",
)  # fmt: skip


def refused(check, *arguments) -> Refused | None:
    try:
        check(*arguments)
    except Refused as refusal:
        assert str(refusal) and "\n" not in str(refusal)
        return refusal
    return None


# ---- which routes, for whom


@pytest.mark.parametrize("path", SHUT)
def test_what_does_harm_and_is_not_needed_is_shut(path):
    assert refused(check_route, {"path": path, "root_path": ""}).status == 404


@pytest.mark.parametrize("path", OPEN)
def test_what_the_page_needs_is_open(path):
    assert refused(check_route, {"path": path, "root_path": ""}) is None


def knocking(host: str, origin: str = "", server: str = "127.0.0.1", method: str = "POST") -> dict:
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    return {"server": (server, 7860), "method": method, "headers": headers}


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "dynamo.localhost", ""])
def test_a_machine_of_ones_own_is_asked_by_its_own_names(host):
    assert refused(check_sender, knocking(host)) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "[::1", "1.2.3.4"]
)
def test_no_other_name_may_be_pointed_to_a_machine_of_ones_own(host):
    assert refused(check_sender, knocking(host, method="GET")).status == 403
    assert refused(check_sender, knocking(host, server="10.0.0.7")) is None  # a network asked for it


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://[::1"]
)
def test_no_other_sites_page_may_send_requests_to_it(origin):
    assert refused(check_sender, knocking("localhost:7860", origin)).status == 403
    assert refused(check_sender, knocking("localhost:7860", "http://127.0.0.1:9999")) is None


# ---- which files


def test_a_file_is_named_by_where_it_was_uploaded_to_and_by_nothing_else():
    def naming(path) -> bytes:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return json.dumps({"data": ["hello", [{"a": [file]}]]}).encode()

    assert refused(check_files, naming("/tmp/a"), {"/tmp/a"}) is None
    for path in (
        "/etc/passwd",
        "http://127.0.0.1/",
        "https://1.1.1.1/",
        "",
        None,
        ["/tmp/a"],
        "/tmp/../tmp/a",
    ):
        assert refused(check_files, naming(path), {"/tmp/a"}).status == 422
    for encoding in ("utf-16", "utf-32-le", "utf-8-sig"):  # all of them are JSON to Python
        disguised = naming("/etc/passwd").decode().encode(encoding)
        assert refused(check_files, disguised, {"/tmp/a"}) is not None
    escaped = naming("/etc/passwd").replace(b"meta", rb"\u006deta")
    assert refused(check_files, escaped, {"/tmp/a"}).status == 422


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1'])
def test_what_is_no_json_goes_no_further(body):
    assert refused(check_files, body, set()).status == 400


def test_the_longest_numbers_are_no_files_and_take_no_time():
    body = b'{"data": [' + b"9" * 3_000_000 + b", 1e999999, NaN]}"
    assert refused(check_files, body, set()) is None


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (b"multipart/form-data; boundary=ab", b"--ab\r\nx: y\r\n\r\nhello\r\n--ab--\r\n", None),
        (b'multipart/form-data; boundary="ab"', b"--ab\r\nx: y\r\n\r\nhello\r\n--ab--", None),
        (b"multipart/form-data; boundary=ab", b"--ab\r\nx: y\r\n\r\nhello", 400),
        (b"multipart/form-data; boundary=ab", b"--ab\r\nx: y\r\n\r\nhello--ab--", 400),
        (b"multipart/form-data; boundary=a; boundary=ab", b"--a\r\nx: y\r\n\r\nhello\r\n--ab--", 400),
        (b"multipart/form-data", b"", 400),
        (b"application/json", b"{}", 400),
    ],
)
def test_an_upload_that_breaks_off_leaves_nothing_behind(kind, body, status):
    refusal = refused(check_upload, {"headers": [(b"content-type", kind)]}, body)
    assert (refusal and refusal.status) == status


def test_what_was_uploaded_first_makes_room_and_nothing_else_is_removed(tmp_path):
    uploaded = set()
    for number in range(6):
        path = tmp_path / str(number) / "run.ndjson"
        path.parent.mkdir()
        path.write_bytes(b"x" * (2 * SMALL_FILE if number % 2 else 1))
        os.utime(path, (number, number))
        uploaded.add(str(path))
    stranger = tmp_path / "of-another-program"
    stranger.write_bytes(b"x")
    make_room(uploaded, 5 * SMALL_FILE)  # they count as 1, 2, 1, 2, 1, 2
    assert sorted(Path(path).parent.name for path in uploaded) == ["3", "4", "5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5", stranger.name]
    discard(str(stranger), uploaded)
    assert stranger.exists()


# ---- how much at once


def receiving(*parts: bytes):
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.request", "body": b"", "more_body": False}

    return receive


def test_large_bodies_together_have_a_bound():
    """Large bodies together have a bound and small ones are let in beside them."""

    async def crowd():
        bodies, large = RequestBodies(), MOST_HELD // 2 - 1
        hold = [bodies.read(receiving(b"x" * large), MOST_HELD, 9) for _ in range(2)]
        for each in hold:
            await each.__aenter__()
        with pytest.raises(Refused, match="Too much is being sent") as refusal:
            await bodies.read(receiving(b"x" * large), MOST_HELD, 9).__aenter__()
        assert refusal.value.status == 503 and refusal.value.seconds > 0
        async with bodies.read(receiving(b"x" * SMALL), MOST_HELD, 9) as message:
            assert len(message["body"]) == SMALL
        await hold.pop().__aexit__(None, None, None)
        async with bodies.read(receiving(b"x" * 1000, b"y" * (large - 1000)), MOST_HELD, 9) as message:
            assert len(message["body"]) == large
        with pytest.raises(Refused, match="larger than 5 bytes"):
            await bodies.read(receiving(b"x" * 4, b"y" * 4), 5, 9).__aenter__()
        await hold.pop().__aexit__(None, None, None)
        assert bodies._held == 0

    asyncio.run(crowd())
