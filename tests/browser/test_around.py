"""What stands around the texts: the page's title, its toasts, names of files; with hostile words in all."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from chats import NEXT, pane, send
from chats import run as wire_of
from fakes import HOSTILE, ScriptedEngine, Vocabulary, scripted_pair
from pages import generate, served

from dynamo.ui.layout import TITLE
from dynamo.ui.server.engines import LocalEngines

WORDS = (
    f"{HOSTILE} <style>body {{ display: none }}</style> </title><script>window.pwned = 1</script>"
    " [press](javascript:alert(1)) ![x](http://example.org/x.png) <a href=//example.org>here</a>"
)
NAMES = (
    "../../etc/x", "<img src=x>", "\u202egpj.exe", "..", "CON", "a/b\\c", "x" * 300, "\u05d0\u05d1"
)  # fmt: skip
MARKUP = ":is(img, script, style, b, a, code, strong, em)"


class Refusing(ScriptedEngine):
    """Says what it was asked by way of a reason."""

    def stream(self, *arguments, **keywords):
        raise ValueError(f"prompt: {WORDS}")


@pytest.fixture(scope="module")
def url():
    pair = scripted_pair("fine .")
    engines = LocalEngines({**pair.engines.by_name, "dynamo": Refusing(Vocabulary("x"), 3)})
    named = replace(pair, name=WORDS, description=WORDS, engines=engines)
    with served(named) as url:
        yield url


@pytest.fixture(scope="module")
def answering_url():
    with served(replace(scripted_pair(HOSTILE), name=WORDS, description=WORDS)) as url:
        yield url


def look(page) -> list[str]:
    """How the page looks as a whole: what a style sheet of somebody else's would change."""
    return page.evaluate(
        "['body', '.dm-header h1', '#prompt textarea', '#generate'].map((part) => {"
        " const style = getComputedStyle(document.querySelector(part));"
        " return [style.display, style.color, style.fontSize, style.visibility].join(); })"
    )


def assert_harmless(page, before: list[str]) -> None:
    assert page.title() == TITLE
    assert page.evaluate("window.pwned") is None
    assert look(page) == before


def test_the_title_is_the_pages_own_whatever_model_and_prompt_are_called(page_at, answering_url):
    page = page_at(answering_url)
    before = look(page)
    generate(page, WORDS)
    assert_harmless(page, before)
    page.get_by_role("tab", name="About").click()
    page.locator("[role=tabpanel]:visible").get_by_text("window.pwned = 1").wait_for()
    assert_harmless(page, before)


def test_a_failed_run_says_its_hostile_reason_as_text_and_leaves_nothing_to_stop(page_at, url):
    """Gradio's `then` is not called after a failure; Stop was left as if something went on."""
    page = page_at(url)
    before = look(page)
    page.fill("#prompt textarea", WORDS)
    page.click("#generate")
    toast = page.locator(".toast-body")
    toast.first.wait_for()
    assert WORDS in " ".join(toast.first.inner_text().split())
    assert toast.first.locator(MARKUP).count() == 0
    assert_harmless(page, before)
    page.wait_for_selector("#stop[disabled]")


def test_a_toast_shows_a_hostile_trace_as_text(page_at, answering_url, tmp_path):
    page = page_at(answering_url)
    before = look(page)
    header, *lines = wire_of("1", "dynamo", WORDS, NEXT).splitlines()
    traces = {
        "lane": [json.dumps({**json.loads(header), "lane": WORDS}), *lines],
        "reason": [header, json.dumps({**json.loads(lines[0]), "ms": WORDS})],
        "line": [header, WORDS],
    }
    for place, trace in traces.items():
        path = tmp_path / f"{place} <img src=x onerror=window.pwned=1>.ndjson"
        path.write_text("\n".join(trace) + "\n", encoding="utf-8")
        with page.expect_file_chooser() as chooser:
            page.click("#load-trace")
        chooser.value.set_files(path)
        toast = page.locator(".toast-body").first
        toast.wait_for()
        assert "trace: " in toast.inner_text()
        assert toast.locator(MARKUP).count() == 0
        badges = page.locator("[data-testid=status-tracker] > :is(.error, .clear-status)")
        # The toast says it all, and a badge covers what was there before.
        assert badges.filter(visible=True).count() == 0
        assert_harmless(page, before)
        closing = page.locator("[data-testid=toast-close]")
        closing.evaluate_all("(all) => all.forEach((one) => one.click())")
        toast.wait_for(state="detached")


def test_a_file_is_called_by_plain_letters_only(panes):
    """Whatever a trace calls its run and its lane: both stand in the name."""
    header, *lines = wire_of("1", "dynamo", WORDS, NEXT).splitlines()
    for name in NAMES:
        named = json.dumps({**json.loads(header), "run": name, "lane": name})
        send(panes, "", "\n".join([named, *lines]) + "\n")
        panes.wait_for_function("(run) => dynamoBus.lanes.dynamo?.run === run", arg=name)
        for action in ("text", "trace"):
            with panes.expect_download() as download:
                pane(panes, "dynamo", f"[data-action={action}]:enabled").click()
            called = download.value.suggested_filename
            assert re.fullmatch(r"dynamo-[\w-]*-[\w-]{0,8}\.(txt|ndjson)", called, re.ASCII), called
            assert len(called) < 100
