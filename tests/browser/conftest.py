"""One Chromium for all tests of this folder, and pages that fail their test on what a page must not do.

Needs playwright and a Chromium, named by DYNAMO_CHROMIUM or found on the path; without them the tests are
skipped and say so.
"""

from __future__ import annotations

import os
import shutil
from urllib.parse import urlsplit

import pytest

from browser.chats import launch_panes
from dynamo.ui.components import ASSETS

CHROMIUM = os.environ.get("DYNAMO_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="package")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need `pip install playwright`"
    )
    if CHROMIUM is None:
        pytest.skip("browser tests need a Chromium: put it on the path or name it in DYNAMO_CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a page, and fails the test on a script error, a dialog or a request to another host."""
    contexts, troubles = [], []

    def open_page(url: str, **options):
        # With reduced motion nothing plays by itself, which most tests would have to wait for.
        defaults = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**{**defaults, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: note_stranger(request.url, url, troubles))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
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
        page = open_page(f"{panes_url}?__theme={theme}", **options)
        page.locator(".dm-pane").nth(1).wait_for()
        page.evaluate(
            """() => { window.told = { lane: [], show: [] };
            for (const name in told) dynamoBus.addEventListener(name, ({ detail }) =>
              told[name].push({ ...detail, passes: detail.passes?.length })); }"""
        )
        return page

    return open_panes
