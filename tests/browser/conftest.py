"""One Chromium for all tests of this folder, and pages that fail their test on what a page must not do.

Needs playwright and a Chromium, named by DYNAMO_CHROMIUM or found on the path; without them the tests are
skipped and say so. The shell without windows opens a page in half of the time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from cards import RUN, dispatch, four_runs, give, give_for_sure, lane, launch_cards, note_shown
from chats import emptied, launch_panes
from fakes import scripted_pair
from models_page import serve_models
from pages import served

from dynamo.charts.files import BROWSERS
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import SamplingOptions, Settings
from dynamo.ui.components import ASSETS

CHROMIUM = os.environ.get("DYNAMO_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
PATIENCE = 120_000  # milliseconds, for a machine that is busy with other things
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--renderer-process-limit=1",  # a page then finds the scripts compiled by the one before
]


@pytest.fixture(scope="package")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need `pip install playwright`"
    )
    if CHROMIUM is None:
        pytest.skip("browser tests need a Chromium: put it on the path or name it in DYNAMO_CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def window(browser):
    """What most pages are opened in: what they are made of is then fetched once for all tests. Pages share
    nothing else, as they store nothing in a browser."""
    window = browser.new_context()
    window.new_page()  # while there is one, their process stays
    return window


@pytest.fixture
def open_page(browser, window):
    with opening(browser, window) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def open_shared_page(browser, window):
    """For tests that only look at a page, and leave it as another may find it: opening one takes a second."""
    with opening(browser, window) as open_page:
        yield open_page


@contextmanager
def opening(browser, window) -> Iterator[Callable[..., Any]]:
    """Opens pages, and fails on a script error, a dialog or a request to another host.

    With reduced motion nothing plays by itself, which most tests would have to wait for. script: runs before
    the page's own; before: does what it wants with the empty page; options: of a window of its own.
    """
    opened, troubles = [], []

    def open_page(url, viewport=None, reduced_motion="reduce", script="", before=None, **options: Any):
        page = (browser.new_context(**options) if options else window).new_page()
        opened.append(page.context if options else page)
        page.set_viewport_size(viewport or {"width": 1280, "height": 900})
        page.emulate_media(reduced_motion=reduced_motion)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: note_stranger(request.url, url, troubles))
        page.add_init_script(script)
        if before:
            before(page)
        page.goto(url)
        return page

    yield open_page
    for each in opened:
        each.close()
    assert not troubles


def note_stranger(requested: str, home: str, troubles: list[str]) -> None:
    parts = urlsplit(requested)
    if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(home).netloc:
        troubles.append(f"request to another host: {requested}")


@pytest.fixture(scope="package")
def arithmetic(browser):
    """Calls pure functions of the page's scripts: `assets/common`, and further `files` below `assets`."""
    page = browser.new_page()

    def call(expression: str, *arguments, files: tuple[str, ...] = ()):
        paths = [*sorted((ASSETS / "common").glob("*.js")), *(ASSETS / file for file in files)]
        scripts = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        return page.evaluate(f"(args) => (() => {{ {scripts}; return {expression}; }})()", list(arguments))

    yield call
    page.close()


@pytest.fixture(scope="package")
def panes_url():
    page, url = launch_panes()
    yield url
    page.close()


@pytest.fixture
def open_panes(open_page, panes_url):
    """Opens two panes by themselves, and notes in `window.told` what they tell the others."""

    def open_panes(theme: str = "light", **options):
        return two_panes(open_page, f"{panes_url}?__theme={theme}", **options)

    return open_panes


@pytest.fixture(scope="module")
def shared_panes(open_shared_page, panes_url):
    return two_panes(open_shared_page, f"{panes_url}?__theme=light")


@pytest.fixture
def panes(shared_panes):
    """Two empty panes on a page that tests share; `announced`, the run that was spoken of last, is kept."""
    return emptied(shared_panes)


def two_panes(open_page, url: str, **options):
    page = open_page(url, **options)
    page.locator(".dm-pane").nth(1).wait_for()
    page.evaluate(
        """() => { window.told = { lane: [], show: [] };
        for (const name in told) dynamoBus.addEventListener(name, ({ detail }) =>
          told[name].push({ ...detail, passes: detail.passes?.length })); }"""
    )
    return page


# ---- the inspector by itself


@pytest.fixture(scope="package")
def runs():
    """A store of four runs, and what the page is told of each."""
    return four_runs()


@pytest.fixture(scope="package")
def cards_url(runs):
    page, url = launch_cards(runs[0])
    yield url
    page.close()


@pytest.fixture
def open_inspector(open_page, cards_url):
    def open_inspector(theme: str = "light", **options):
        page = open_page(f"{cards_url}?__theme={theme}", **{"reduced_motion": "no-preference", **options})
        note_shown(page)
        return page

    return open_inspector


@pytest.fixture(scope="module")
def shared_inspector(open_shared_page, cards_url):
    page = open_shared_page(f"{cards_url}?__theme=light", reduced_motion="no-preference")
    note_shown(page)
    return page


@pytest.fixture
def inspector(shared_inspector, runs):
    """The inspector after a run of three passes: it shows the last. Tests share its page, which a new chat
    brings back to rest before each."""
    page = shared_inspector
    dispatch(page, "lane", lane(None, [], "empty"))
    if page.input_value("#value-inspector textarea"):
        give_for_sure(page, "inspector", "")
    values, passes = runs[1][RUN]
    give(page, "inspector", values[2])
    page.get_by_text("Pass 3 of 3").wait_for()
    dispatch(page, "lane", lane(RUN, passes))
    return page


# ---- the whole page


@pytest.fixture(scope="package")
def page_url():
    with served(scripted_pair(seconds=0.01)) as url:
        yield url


@pytest.fixture(scope="package")
def recorded_url(tmp_path_factory):
    """The page with a recording: both lanes' traces of one run, as `python -m dynamo compare --trace` writes
    them."""
    service = PageService(scripted_pair(seconds=1.0))  # as it says: still playing when a busy machine looks
    *_, view = service.answer(Chat(), "hello there", Settings(SamplingOptions(), 96, 0))
    chat = Chat.read(view.base, view.dynamo)
    path = tmp_path_factory.mktemp("recording") / "recording.ndjson"
    traces = [service.store.get_trace(turns[-1].header.run) for turns in (chat.base, chat.dynamo)]
    path.write_text("".join(traces), encoding="utf-8")
    with served(scripted_pair(), recording=path) as url:
        yield url


@pytest.fixture(scope="package")
def models(tmp_path_factory, tokenizer):
    """The page with a Models tab; tests load its pairs, in any order."""
    with serve_models(tmp_path_factory.mktemp("models"), tokenizer) as models:
        yield models


@pytest.fixture
def page_at(open_page):
    def page_at(url: str, **options):
        page = open_page(url, **options)
        page.wait_for_selector("#pane-dynamo .dm-pane")
        page.wait_for_selector("#stop")
        return page

    return page_at
