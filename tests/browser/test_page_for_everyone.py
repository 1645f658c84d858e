"""The whole page by keyboard, in the dark, on a phone, and read by axe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from chats import settle
from fakes import scripted_pair
from pages import DONE, assert_accessible, chunks, generate, served

from dynamo.sampling.options import SamplingOptions
from dynamo.ui.components import ASSETS

FOCUSED = """(() => { const one = document.activeElement;
  return [one.closest("[id]")?.id ?? "", one.className.split?.(" ")[0] ?? ""]; })()"""
TABS = ("Explore", "About", "Compare")


def test_the_whole_page_works_from_the_keyboard(page_at, page_url):
    page = page_at(page_url)
    page.focus("#prompt textarea")
    page.keyboard.press("Enter")
    for selector in DONE:
        page.wait_for_selector(selector)
    page.wait_for_selector("#stop[disabled]")
    settle(page)
    page.wait_for_selector(".dm-inspector[data-state=joint]")
    shown = "dynamoBus.addEventListener('lane', ({ detail }) => (window.lane = detail))"
    page.evaluate(f"() => {{ window.lane = null; {shown}; }}")
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.update(page.evaluate(FOCUSED))
    assert {"generate", "retry", "edit", "new-chat", "dm-chunk", "dm-cell", "threshold"} <= reached
    assert page.evaluate("window.lane") is None  # passing by a control asks for nothing
    page.locator("#pane-dynamo .dm-chunk").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("Pass 2 of ").first.wait_for()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 375)])
def test_axe_finds_nothing(page_at, recorded_url, theme, width):
    """Here; in the other tabs: `test_explore`, `test_models`."""
    page = page_at(f"{recorded_url}?__theme={theme}", viewport={"width": width, "height": 900})
    assert_accessible(page)
    generate(page)
    page.locator("#audit").get_by_text("0.4 %").first.wait_for()
    chunks(page).first.click()
    page.click("#settings button")
    assert_accessible(page)


def test_exact_mode_takes_the_dial_away_and_one_click_leaves_it(page_at):
    pair = replace(scripted_pair(), options=SamplingOptions(exact=True))
    with served(pair, recording=ASSETS / "models" / "smollm2" / "recording.ndjson") as url:
        page = page_at(f"{url}?__theme=light")
        page.wait_for_selector(".dm-timeline[data-exact]")
        assert page.locator("#threshold input[type=range]").is_disabled()
        assert page.is_hidden("#threshold input[type=number]")
        assert page.get_by_text("not used in exact mode").is_visible()
        assert_accessible(page, dark=True)
        generate(page)
        lanes = (
            "dynamoBus.addEventListener('lane', ({ detail }) => (lanes[detail.kind] = detail.header.options))"
        )
        page.evaluate(f"() => {{ window.lanes = {{}}; {lanes}; }}")
        page.uncheck("#exact input")
        page.locator("#dial").get_by_text("the quality dial").wait_for()
        page.wait_for_function("['base', 'dynamo'].every((kind) => lanes[kind]?.exact === false)")
        assert page.locator("#threshold input[type=range]").is_enabled()
        assert page.is_visible("#threshold input[type=number]")
        assert_accessible(page, "#dial")
        page.check("#exact input")
        page.wait_for_function("['base', 'dynamo'].every((kind) => lanes[kind].exact)")
        assert page.locator("#threshold input[type=range]").is_disabled()


def test_without_an_answer_the_words_follow_the_settings(page_at):
    """After "New chat" the page's head and its legend spoke of back-off, in exact mode too."""
    with served(replace(scripted_pair(), options=SamplingOptions(exact=True))) as url:
        page = page_at(url)
        for exact in (True, False):
            page.locator("#exact input").set_checked(exact)
            for name in (".dm-header", ".dm-legend"):
                said = f"/verifies|drafts/.test(document.querySelector('{name}').innerText)"
                page.wait_for_function(f"{said} === {json.dumps(exact)}")
            assert ("dotted" in page.inner_text(".dm-legend")) != exact
            assert ("backs off" in page.inner_text(".dm-header")) != exact
        assert page.inner_text(".dm-timeline-title") == "Timeline"


def test_dark_mode_is_dark_and_readable(page_at, page_url):
    page = page_at(f"{page_url}?__theme=dark")
    background, ink = page.evaluate(
        "[getComputedStyle(document.querySelector('#pane-dynamo .dm-pane')).backgroundColor,"
        " getComputedStyle(document.querySelector('#pane-dynamo .dm-text')).color]"
    )
    assert (background, ink) == ("rgb(24, 27, 32)", "rgb(242, 244, 247)")


def test_both_panes_are_as_tall_when_one_has_more_to_tell(page_at, recorded_url):
    page = page_at(recorded_url, viewport={"width": 1024, "height": 768})
    page.locator("#pane-dynamo .dm-footer").evaluate(
        "(foot) => foot.append(document.createElement('p'), 'x '.repeat(400))"
    )
    panes = [page.locator(f"#pane-{side} .dm-pane").bounding_box() for side in ("base", "dynamo")]
    assert panes[0]["height"] == panes[1]["height"] > 200


def test_no_row_of_a_phone_is_stretched_by_what_is_scrolled_away_in_it(page_at, tmp_path):
    """The blind duel's label once stood letter by letter, out of sight, and left a hole in the page."""
    with served(scripted_pair(), votes=tmp_path) as url:
        page = page_at(url, viewport={"width": 375, "height": 812})
        assert page.locator("#blind").count() == 1
        for row in (".dm-chat-row", "#examples > .gallery"):
            assert page.locator(row).bounding_box()["height"] < 60, row


def test_a_phone_shows_everything_without_scrolling_sideways(page_at, page_url):
    page = page_at(page_url, viewport={"width": 375, "height": 800})
    generate(page)
    page.click("#settings button")
    for width in (375, 320):
        page.set_viewport_size({"width": width, "height": 800})
        for tab in TABS:
            if not page.get_by_role("tab", name=tab).is_visible():
                continue
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") == width, tab
        too_wide = page.evaluate(
            "(width) => [...document.querySelectorAll('.dm-card, .dm-card *, .dm-race *')]"
            ".filter((part) => part.checkVisibility() && !part.closest('.dm-unseen, table')"
            " && part.getBoundingClientRect().right > width).map((part) => part.className)",
            width,
        )
        assert too_wide == []
