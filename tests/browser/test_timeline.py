"""The back-off timeline: its columns' arithmetic, and the component told of made-up passes."""

from __future__ import annotations

import json
import math

import pytest
from fakes import HOSTILE
from races import Splits, answered, lane, listen, nothing, send, serve_race, tell

COLUMNS = ("timeline/columns.js",)


@pytest.fixture(scope="module")
def url():
    demo, url = serve_race(Splits())
    yield url
    demo.close()


def at_rest(open_page, url, **options):
    page = open_page(url, **options)
    page.wait_for_selector(".dm-timeline")
    listen(page, "show")
    return page


@pytest.fixture(scope="module")
def shared_page(open_shared_page, url):
    return at_rest(open_shared_page, url)


@pytest.fixture
def timeline(open_page, shared_page, url):
    """Tells the timeline of DynaMo's lane, on a page of its own where there are options for it."""

    def timeline(dynamo=None, **options):
        page = at_rest(open_page, url, **options) if options else shared_page
        if not options:
            page.mouse.move(0, 0)
            page.evaluate("window.heard.length = 0")
            send(page, nothing())
        send(page, [dynamo] if dynamo else [])
        return page

    return timeline


@pytest.fixture
def passes():
    return answered()["passes"]


def test_a_column_is_about_the_last_joint_that_was_tried(arithmetic, passes):
    columns = [arithmetic("columnOf(args[0], 0.5)", step, files=COLUMNS) for step in passes]
    assert [(c["order"], c["best"], c["bar"]) for c in columns] == [
        (3, 0.6, 0.25),
        (2, 0.7, 0.5),
        (2, 0.4, 0.5),
        (3, 0.9, 0.25),
    ]
    assert [c["givenUp"] for c in columns] == [0, 1, 2, 0]


def test_a_pass_without_a_joint_has_nothing_to_compare(arithmetic):
    (step, *_) = lane("dynamo", [])["passes"]
    column = arithmetic("columnOf(args[0], 1)", step, files=COLUMNS)
    assert (column["order"], column["best"], column["bar"]) == (None, None, None)
    assert arithmetic("passInWords(args[0], 1)", step, files=COLUMNS).endswith("No joint was built.")


def test_heights_keep_the_order_of_values_and_their_bars(arithmetic):
    values = [0, 0.0001, 0.01, 0.09, 0.25, 0.3, 0.5, 1]
    heights = arithmetic("args[0].map(heightOf)", values, files=COLUMNS)
    assert heights == sorted(set(heights)) and heights[0] == 0 and heights[-1] == 1


@pytest.mark.parametrize(
    ("threshold", "fewer", "more"), [(0.5, 0, 0), (0.8, 2, 0), (1, 3, 0), (0.44, 0, 2), (0.3, 0, 2)]
)
def test_another_threshold_counts_the_passes_that_it_would_change(arithmetic, passes, threshold, fewer, more):
    other = arithmetic("whatIf(args[0], args[1])", passes, threshold, files=COLUMNS)
    assert (other["fewer"], other["more"]) == (fewer, more)
    assert sum(change < 0 for change in other["changes"]) == fewer


def test_passes_are_told_in_words(arithmetic, passes):
    told = [arithmetic("passInWords(args[0], 0.5)", step, files=COLUMNS) for step in passes]
    assert told[0] == "Pass 1: 3 tokens, “word word word”. Best joint 60 % is above 25 % = 0.5²."
    assert told[2].endswith("Backed off from 3 and 2: best joint 40 %, not above 50 % = ε.")
    cut = {**passes[0], "order": 3, "ids": [7, 7], "text": [" word", ""]}
    words = arithmetic("passInWords(args[0], 0.5)", cut, files=COLUMNS)
    assert words.startswith("Pass 1: 2 tokens of 3, as the answer ended, “word”.")


def drafting():
    """DynaMo's lane in exact mode: a token alone, two drafts kept, of two drafts one, of two drafts none."""
    dynamo = lane("dynamo", [7.0] * 3, options={"threshold": 0.5, "exact": True})
    for step, kept, rejected in zip(dynamo["passes"], (0, 2, 1, 0), (0, 0, 1, 2), strict=True):
        step |= {"exact": True, "ids": [7] * (kept + 1), "text": [" word"] * (kept + 1)}
        step |= {"drafted": [7, 7]} | ({"rejected": [HOSTILE] * rejected} if rejected else {})
    return dynamo


def test_a_timeline_that_begins_late_shows_the_lane_and_the_pass(open_page, url):
    lane = {**answered(), "count": 2}
    said = {"lanes": {"dynamo": lane}, "shown": {"run": lane["run"], "index": 1}}
    page = open_page(url, script=f"window.dynamoBus = Object.assign(new EventTarget(), {json.dumps(said)})")
    page.wait_for_selector(".dm-column[data-index='1'][aria-current]")
    assert page.locator(".dm-column:visible").count() == 2


def test_exact_mode_is_told_by_drafts_and_by_no_threshold(timeline, arithmetic):
    """It once said that a best joint of 0 % was above 200 % = 0.5undefined."""
    told = [arithmetic("passInWords(args[0], 0.5)", step, files=COLUMNS) for step in drafting()["passes"]]
    assert told == [
        "Pass 1: 1 token, “word”. It drew 1 token itself.",
        "Pass 2: 3 tokens, “word word word”. It kept 2 of 2 drafts and drew 1 token itself.",
        "Pass 3: 2 tokens, “word word”. It kept 1 of 2 drafts and drew 1 token itself.",
        "Pass 4: 1 token, “word”. It kept 0 of 2 drafts and drew 1 token itself.",
    ]
    page = timeline(drafting())
    assert page.inner_text(".dm-timeline-count") == "4 passes, 3 of 6 drafts kept"
    assert page.inner_text(".dm-timeline-lead").startswith("Exact mode")
    assert page.is_hidden(".dm-timeline-scale") and page.get_by_text("a draft rejected").is_visible()
    low, high, middle, last = page.eval_on_selector_all(
        ".dm-column .dm-tl-mark", "all => all.map((mark) => mark.getBoundingClientRect().top)"
    )
    assert high < middle < low == last
    rejected = page.eval_on_selector_all(
        ".dm-column", "all => all.map((one) => one.querySelectorAll('.dm-tl-given-up').length)"
    )
    assert rejected == [0, 0, 1, 2]
    tell(page, "threshold", 0.9)
    assert page.inner_text(".dm-timeline-whatif") == ""
    send(page, [answered(run="another")])
    assert page.is_visible(".dm-timeline-scale") and page.get_by_text("length rejected").is_visible()


def test_every_pass_has_its_column_with_its_back_offs(timeline):
    page = timeline()
    assert "will appear here" in page.inner_text(".dm-timeline-lead")
    assert page.locator(".dm-column").count() == 0
    send(page, [answered()])
    assert page.get_by_role("toolbar", name="DynaMo: 2 of 4 passes backed off").is_visible()
    assert page.inner_text(".dm-timeline-count") == "2 of 4 passes backed off"
    sizes = page.eval_on_selector_all(
        ".dm-column", "all => all.map((one) => one.className.match(/size-(.)/)[1])"
    )
    assert sizes == ["3", "2", "1", "3"]
    given_up = page.eval_on_selector_all(
        ".dm-column", "all => all.map((one) => one.querySelectorAll('.dm-tl-given-up').length)"
    )
    assert given_up == [0, 1, 2, 0]


def test_a_mark_is_above_its_bar_where_the_chunk_came(timeline):
    """A mark is above its bar where the chunk came and below where it did not."""
    page = timeline(answered())
    above = page.eval_on_selector_all(
        ".dm-column",
        """all => all.map((one) => {
          const box = (part) => one.querySelector(part).getBoundingClientRect();
          const middle = (part) => box(part).y + box(part).height / 2;
          return middle(".dm-tl-mark") < middle(".dm-tl-bar"); })""",
    )
    assert above == [True, True, False, True]


def test_columns_follow_what_the_pane_shows(timeline):
    dynamo = answered()
    page = timeline({**dynamo, "count": 2})
    assert page.locator(".dm-column:visible").count() == 2
    assert page.inner_text(".dm-timeline-count") == "1 of 2 passes backed off"
    send(page, [dynamo])
    assert page.locator(".dm-column:visible").count() == 4
    send(page, [{**answered(run="next"), "count": 0, "passes": []}])
    assert page.locator(".dm-column").count() == 0


def test_a_click_pins_the_pass_and_the_shown_pass_is_marked(timeline):
    page = timeline(answered())
    page.locator(".dm-column").nth(2).click()
    shown = {"run": "dynamo-run", "index": 2}
    assert page.evaluate("window.heard") == [["show", {**shown, "pinned": True}]]
    tell(page, "shown", shown)
    page.mouse.move(0, 0)
    assert page.locator(".dm-column[aria-current]").get_attribute("data-index") == "2"
    page.keyboard.press("Tab")
    assert page.inner_text(".dm-timeline-readout").startswith("Pass 3: 1 token")
    tell(page, "shown", {"run": "an earlier one", "index": 1})
    assert page.locator(".dm-column[aria-current]").count() == 0


def test_arrows_walk_through_the_columns_and_the_readout_follows(timeline):
    page = timeline(answered())
    page.locator(".dm-column").first.focus()
    assert page.inner_text(".dm-timeline-readout").startswith("Pass 1: ")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".dm-timeline-readout").startswith("Pass 2: 2 tokens")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "3"
    assert page.locator(".dm-column[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("window.heard.at(-1)[1].index") == 3


def test_the_slider_draws_what_another_threshold_would_ask_for(timeline):
    page = timeline(answered())
    tell(page, "threshold", 0.8)
    assert page.inner_text(".dm-timeline-whatif") == (
        "At threshold 0.8: of these 4 passes, 2 would emit fewer tokens, each after the same text."
    )
    assert page.locator(".dm-column.fewer").count() == 2
    wanted = page.eval_on_selector_all(
        ".dm-column", "all => all.map((one) => +one.style.getPropertyValue('--if'))"
    )
    assert wanted == pytest.approx([math.sqrt(bar) for bar in (0.64, 0.8, 0.8, 0.64)], abs=1e-3)
    tell(page, "threshold", 0.5)
    assert page.is_hidden(".dm-timeline-whatif") and page.locator(".dm-tl-if:visible").count() == 0


@pytest.mark.parametrize("width", [375, 1200])
def test_two_hundred_and_fifty_passes_do_not_widen_the_page(timeline, width):
    long = lane("dynamo", [7.0] * 249, 2)
    for step in long["passes"]:
        step["best"] = 0.8
    page = timeline(long, viewport={"width": width, "height": 800})
    assert page.locator(".dm-column").count() == 250
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".dm-column").last.evaluate("(one) => one.getBoundingClientRect().right") <= width


def test_fingers_get_columns_wide_enough_to_hit(timeline):
    page = timeline(
        lane("dynamo", [7.0] * 99, 2), has_touch=True, is_mobile=True, viewport={"width": 375, "height": 800}
    )
    assert page.locator(".dm-column").first.evaluate("(one) => one.getBoundingClientRect().width") >= 24


def test_a_blind_duel_has_no_timeline(timeline):
    page = timeline(lane("dynamo", [], 3, lane="blind", options={}))
    assert page.is_hidden(".dm-timeline")
    send(page, [answered(run="revealed")])
    assert page.is_visible(".dm-timeline")


def test_model_text_stays_text(timeline):
    dynamo = answered()
    dynamo["passes"][0]["text"] = [HOSTILE]
    page = timeline(dynamo)
    page.locator(".dm-column").first.hover()
    assert HOSTILE in page.inner_text(".dm-timeline-readout")
    assert HOSTILE in page.locator(".dm-column").first.get_attribute("aria-label")
    assert page.locator(".dm-timeline img").count() == 0
