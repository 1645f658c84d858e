"""What goes wrong between a visitor and the page: cut lines, closed windows, hasty Stops, an absent hub.

Afterwards the model is free again, the next visitor is answered, and nothing runs on for nobody.
"""

from __future__ import annotations

import functools
import threading
import time

import httpx
import pytest
from gradio.queueing import Queue
from hub import Repo
from huggingface_hub import HfApi
from visitors import PATIENCE, until
from watched import Browser, Page, close, read_until, reset

from dynamo import loading
from dynamo.loading import downloads
from dynamo.training.trainer import save_model

FEW_SESSIONS = 12  # instead of some hundreds


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo.ui.layout.MOST_SESSIONS", FEW_SESSIONS)
        page = Page()
    yield page
    page.demo.close()


@pytest.fixture
def page(served):
    served.dynamo.slow = False
    served.dynamo.reading.clear()
    yield served
    served.dynamo.slow = False
    served.dynamo.go.set()
    until(served.at_rest, PATIENCE)


# ---- visitors who go


@pytest.mark.parametrize("cut", [close, reset])
def test_a_window_that_is_gone_in_mid_stream_ends_its_run(page, cut):
    browser = Browser(page)
    with page.endless_answers():
        browser.send()
        line = browser.listen()
        until(page.runs, PATIENCE)
    cut(line)
    until(page.at_rest, PATIENCE)
    assert page.answers()


def test_a_program_that_is_gone_in_mid_stream_ends_its_run(page):
    with page.endless_answers():
        joined = httpx.post(
            f"{page.api}/call/v2/generate", json={"prompt": "hello", "lane": "base"}, timeout=PATIENCE
        )
        address = f"{page.api}/call/generate/{joined.json()['event_id']}"
        with httpx.stream("GET", address, timeout=PATIENCE) as stream:
            next(stream.iter_lines())
            until(lambda: page.base.opened > page.base.closed, PATIENCE)
    until(page.at_rest, PATIENCE)
    assert page.answers()


def test_a_window_that_is_gone_while_it_waits_gives_its_place_up(page):
    first, second = Browser(page), Browser(page)
    page.dynamo.go.clear()  # the first goes on for as long as this takes
    event = first.send()
    first_line = first.listen()
    until(page.runs, PATIENCE)
    second.send()
    read_until(second_line := second.listen(), b'"estimation"')
    opened = page.dynamo.opened
    reset(second_line)
    until(lambda: len(page.demo._queue) == 0, PATIENCE)
    page.dynamo.go.set()
    first.stop(event)
    close(first_line)
    until(page.at_rest, PATIENCE)
    assert page.dynamo.opened == opened  # nothing was run for the second
    assert page.answers()


# ---- Stop


def test_stop_while_the_prompt_is_read_frees_the_model(page):
    page.dynamo.slow = True
    browser = Browser(page)
    with page.endless_answers():
        event = browser.send()
        line = browser.listen()
        assert page.dynamo.reading.wait(PATIENCE)
    browser.stop(event)
    page.dynamo.slow = False
    until(page.at_rest, PATIENCE)
    assert page.answers()
    close(line)


def test_two_stops_at_once_are_one(page):
    browser = Browser(page)
    with page.endless_answers():
        event = browser.send()
        line = browser.listen()
        until(page.runs, PATIENCE)
    stops = [threading.Thread(target=browser.stop, args=(event,)) for _ in range(2)]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join(PATIENCE)
    until(page.at_rest, PATIENCE)
    browser.stop(event)  # and one more, of a run that is over
    assert page.answers()
    close(line)


def test_a_stop_of_another_window_stops_nothing(page):
    browser, stranger = Browser(page), Browser(page)
    event = browser.send()
    line = browser.listen()
    read_until(line, b"process_generating")
    stranger.stop("0" * len(event))
    assert read_until(line, b'"success":true')
    close(line)


# ---- visitors who come and go


def test_visitors_who_came_and_went_are_forgotten(page):
    """Gradio copies the configuration of all components for each visitor, and would keep 10,000."""
    edit = next(each for each in page.demo.get_config_file()["dependencies"] if each["api_name"] == "edit")
    with httpx.Client(timeout=PATIENCE) as client:
        for number in range(3 * FEW_SESSIONS):
            body = {"data": ["", ""], "fn_index": edit["id"], "session_hash": f"visitor{number}"}
            client.post(f"{page.api}/run/predict", json=body).raise_for_status()
    assert len(page.demo.app.state_holder.session_data) <= FEW_SESSIONS
    assert page.answers()


def test_events_are_not_summed_up_after_each_of_them(page, monkeypatch):
    """Gradio would group its last 10,000 events by pandas after every single one."""
    grouped = []
    frame = Queue._get_df
    monkeypatch.setattr(Queue, "_get_df", staticmethod(lambda events: grouped.append(1) or frame(events)))
    queue = page.demo._queue
    before, earlier = queue.events_recorded, set(queue.event_analytics)  # some of these were cut off
    for _ in range(6):
        assert page.answers()
    assert queue.events_recorded >= before + 6
    ours = [event for number, event in queue.event_analytics.items() if number not in earlier]
    assert len(ours) >= 6
    until(lambda: not any(event["status"] == "processing" for event in ours), PATIENCE)
    assert len(grouped) <= 1 and queue.ANALYTICS_MAX_EVENTS == 1000


# ---- the hub goes away


@pytest.fixture
def at_hub(hub, monkeypatch):
    monkeypatch.setattr(downloads, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(downloads, "_away", {})
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    return hub


def test_a_hub_that_goes_down_in_a_download_is_reported(
    at_hub, hub, tmp_path, tokenizer, dynamo_model, monkeypatch
):
    """A hub that goes down in a download is reported, and the next try succeeds."""
    save_model(dynamo_model, tokenizer, tmp_path / "model")
    files = {str(path.name): path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repos[("model", "someone/tiny")] = Repo(files)
    hub.cut["model.safetensors"] = 20_000
    with pytest.raises(OSError, match="someone/tiny is not in the cache and cannot be fetched") as refused:
        loading.load("someone/tiny", device="cpu")
    assert "\n" not in str(refused.value)
    pair, notice = loading.load_or_embedded("someone/tiny", device="cpu")
    assert pair.name == "embedded" and "someone/tiny" in notice
    hub.cut.clear()
    monkeypatch.setattr(downloads, "_away", {})  # as after five minutes
    assert loading.load("someone/tiny", device="cpu").dynamo.config.num_token_heads == 3
