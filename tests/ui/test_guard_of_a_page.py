"""What stays shut, who may knock and how much at once, on a page that is served: see also `test_guard`."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from fakes import scripted_pair
from hostile import SHUT
from visitors import PATIENCE

from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.ui import build_demo, launch_options, serve
from dynamo.ui.server.limits import QUIET_BYTES, QUIET_CALL, Rates


@contextmanager
def served(limits: Limits):
    demo = build_demo(scripted_pair(), limits=limits)
    options = {**launch_options(limits), "inbrowser": False, "quiet": True, "prevent_thread_lock": True}
    _, url, _ = serve(demo, server_name="127.0.0.1", **options)
    try:
        with closing(httpx.Client(base_url=url, timeout=PATIENCE)) as client:
            yield demo, client
    finally:
        demo.close()


@pytest.fixture(scope="module")
def page():
    with served(UNLIMITED) as page:
        yield page


def test_the_page_goes_over_the_wire_compressed(page):
    """Its 550 kB of HTML came as they are."""
    with page[1].stream("GET", "/", headers={"Accept-Encoding": "gzip"}) as answer:
        answer.read()
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.num_bytes_downloaded < 200_000 < len(answer.content)


@pytest.fixture
def no_time_passes(monkeypatch):
    monkeypatch.setattr("dynamo.ui.server.limits.Rates", partial(Rates, clock=lambda: 0.0))


def loading(client: httpx.Client, path: str) -> httpx.Response:
    dependencies = client.get("config").json()["dependencies"]
    (load,) = [
        each
        for each in dependencies
        if any("upload" in target for target in each["targets"]) and len(each["outputs"]) == 4
    ]
    file = {"path": path, "orig_name": "run.ndjson", "meta": {"_type": "gradio.FileData"}}
    return client.post(
        "gradio_api/queue/join", json={"data": [file], "fn_index": load["id"], "session_hash": "loading"}
    )


def test_nothing_of_a_visitor_is_kept_on_the_disk_for_a_link(page):
    _, client = page
    for path in SHUT:
        for method in ("GET", "POST", "HEAD"):
            assert client.request(method, path).status_code == 404


def test_no_address_is_fetched_and_no_folder_told(page):
    _, client = page
    for path in ("http://127.0.0.1/x", "https://1.1.1.1/x", "run.ndjson", "/etc/passwd"):
        answer = loading(client, path)
        assert answer.status_code == 422 and os.getcwd() not in answer.text


def test_a_page_answers_no_other_name_and_no_other_site(page):
    """A page that another name points to or another site asks answers nothing."""
    _, client = page
    assert client.get("config", headers={"Host": "evil.example"}).status_code == 403
    for path in ("gradio_api/upload", "gradio_api/component_server", "gradio_api/queue/join"):
        answer = client.post(path, content=b"{}", headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403 and "other sites" in answer.json()["detail"]


def test_a_trace_that_was_loaded_is_not_kept(page):
    demo, client = page
    trace = (Path(__file__).parents[2] / "assets" / "recording.ndjson").read_bytes() + b"\n"
    (path,) = client.post("gradio_api/upload", files={"files": ("run.ndjson", trace)}).json()
    assert path in demo.upload_file_set and Path(path).exists()
    assert loading(client, path).status_code == 200
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": "loading"}) as answer:
        answered = "".join(answer.iter_lines())
    assert "loaded from a file" in answered or "recorded" in answered
    end = time.monotonic() + PATIENCE
    while Path(path).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(path).exists() and path not in demo.upload_file_set
    assert loading(client, path).status_code == 422


def test_a_full_disk_under_an_upload_is_told_in_a_sentence(page, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradio.route_utils.NamedTemporaryFile", full)
    answer = page[1].post("gradio_api/upload", files={"files": ("run.ndjson", b"x")})
    assert answer.status_code == 507 and answer.json()["detail"].startswith("There is no room for files")


def test_an_upload_is_one_file_in_size_and_a_request_in_number(no_time_passes):
    with served(Limits(requests_per_minute=3, upload_mb=1)) as (_, client):

        def uploaded(*sizes: int) -> int:
            files = [("files", (f"{number}.ndjson", b"x" * size)) for number, size in enumerate(sizes)]
            return client.post("gradio_api/upload", files=files).status_code

        assert uploaded(900_000) == 200
        assert uploaded(900_000, 900_000) == 413
        assert uploaded(10) == 200
        assert uploaded(10) == 429


def test_what_is_answered_without_the_queue_has_a_rate_by_what_it_sends(no_time_passes):
    def answered(client: httpx.Client, size: int) -> int:
        body = {"session_hash": "x" * size, "fn_index": 0, "event_id": "a"}
        return client.post("gradio_api/cancel", json=body).status_code

    with served(Limits(requests_per_minute=1)) as (_, client):
        assert [answered(client, QUIET_BYTES // 2 - 2 * QUIET_CALL) for _ in range(3)] == [200, 200, 429]
    with served(Limits(requests_per_minute=1)) as (_, client):
        assert all(answered(client, 10) == 200 for _ in range(QUIET_BYTES // QUIET_CALL // 2))
