"""The page in a real browser, on scripted engines: what only a browser can show to hold.

One server and one browser serve most tests; each test opens its own page (`conftest.py`).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import HOSTILE, scripted_contenders

from dynamo.ndjson import JointLine, encode_line
from dynamo.trace import Joint, StepRecord
from dynamo.ui import build_demo, launch_options

DONE = "#pane-base .dm-pane[data-state=done]", "#pane-dynamo .dm-pane[data-state=done]"


def serve(contenders):
    demo = build_demo(contenders)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    return demo, url


@pytest.fixture(scope="module")
def url():
    demo, url = serve(scripted_contenders(seconds=0.01, sleep=True))
    yield url
    demo.close()


@pytest.fixture
def open_page(open_page):
    """A guarded page whose panes stand and wait."""

    def open_and_wait(url: str, **options):
        page = open_page(url, **options)
        page.wait_for_selector("#pane-dynamo .dm-pane[data-state=empty]")
        page.wait_for_selector("#stop[disabled]")
        return page

    return open_and_wait


def generate(page, prompt: str = "I want to book a table for two in San Jose") -> None:
    page.fill("#prompt textarea", prompt)
    page.click("#generate")
    for selector in DONE:
        page.wait_for_selector(selector)
    page.wait_for_selector("#stop[disabled]")


def pane_text(page, name: str) -> str:
    return page.locator(f"#pane-{name} .dm-text").text_content()


def test_both_panes_fill_and_both_clocks_show(open_page, url):
    page = open_page(url)
    generate(page)
    assert pane_text(page, "base") == pane_text(page, "dynamo")
    assert pane_text(page, "base").strip().startswith("Sure, what time would you like to eat?")
    assert page.locator("#pane-dynamo .dm-chunk.size-3").count() > 3
    tokens_per_pass, ratio = page.inner_text(".dm-passes"), page.inner_text(".dm-speed")
    assert float(tokens_per_pass) > 1.2
    assert float(ratio.removesuffix("×")) > 1.1
    footer = page.inner_text("#pane-base .dm-footer")
    for fact in ("45 tokens in 45 passes", "1.00 tokens/pass", "tok/s of model time", "first token 20 ms"):
        assert fact in footer
    assert (
        page.locator("#pane-dynamo .dm-announce").text_content().startswith("DynaMo finished: 45 tokens in")
    )


def test_enter_submits_and_an_example_fills(open_page, url):
    page = open_page(url)
    page.get_by_role("button", name="Hotel").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('hotel')")
    assert page.locator("#pane-base .dm-chunk").count() == 0
    page.press("#prompt textarea", "Enter")
    page.wait_for_selector(DONE[0])


def test_an_empty_prompt_is_answered_at_the_box(open_page, url):
    page = open_page(url)
    page.fill("#prompt textarea", "   ")
    page.click("#generate")
    page.get_by_text("Type a message first, or pick an example below.").wait_for()
    assert page.locator(".toast-body").count() == 0
    assert page.is_disabled("#stop")


def test_a_clicked_chunk_pins_the_inspector(open_page, url):
    page = open_page(url)
    generate(page)
    chunk = page.locator("#pane-dynamo .dm-chunk.size-3").nth(2)
    index = int(chunk.get_attribute("data-index"))
    chunk.click()
    page.get_by_text(f"Pass {index + 1} of ").wait_for()
    assert page.inner_text(".dm-subtitle") == "emitted 3 tokens"
    tokens = chunk.locator(".dm-token").all_text_contents()
    assert "was sampled" in page.inner_text(".dm-notes")
    assert page.locator(".dm-stage td.picked").count() == 3
    assert page.locator(".dm-third-list li.picked code").text_content() == tokens[2].replace(" ", "·")
    assert page.inner_text(".dm-tip-title").startswith(f"Pass {index + 1} · 3 tokens")
    assert page.is_visible(".dm-live") and page.inner_text(".dm-live") == "Unpin"


def test_a_pass_the_browser_never_saw_is_fetched(open_page, url):
    page = open_page(url)
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    generate(page)
    chunks = page.locator("#pane-dynamo .dm-chunk")
    for i in range(chunks.count()):
        chunks.nth(i).dispatch_event("click")
        page.get_by_text(f"Pass {i + 1} of {chunks.count()}").wait_for()
    # Views left the server for one pass in two or three, so some had to be asked for.
    assert any("component_server" in address for address in requested)


def test_the_threshold_slider_redraws_the_third_stage_here(open_page, url):
    page = open_page(url)
    generate(page)
    page.locator("#pane-dynamo .dm-chunk.size-3").first.click()
    page.get_by_text("was sampled").wait_for()
    page.locator("#settings input[type=range]").first.fill("0.99")
    page.get_by_text("by this rule alone the pass would back off from 3").wait_for()
    assert "98 % = 0.99²" in page.inner_text(".dm-threshold-caption")
    assert page.locator(".dm-stage-threshold .dm-cell:not(.gone)").count() == 0
    page.locator("#settings input[type=range]").first.fill("0.05")
    page.get_by_text("by this rule alone the pass would emit 3 tokens").wait_for()
    assert page.locator(".dm-stage-threshold .dm-cell:not(.gone)").count() > 1


def test_back_off_reasons_are_told_in_words(open_page, url):
    page = open_page(url)
    generate(page)
    page.locator("#pane-dynamo .dm-chunk.size-1.backed-off").first.hover()
    page.locator(".dm-tip-note").first.wait_for()
    reasons = page.locator("#pane-dynamo .dm-tip-note").all_text_contents()
    assert reasons[0].startswith("Backed off from 3: best joint ")
    assert reasons[0].endswith(" % is not above 25 % = 0.5²")
    assert reasons[1].endswith(" % is not above 50 % = ε")


def test_the_panes_work_from_the_keyboard(open_page, url):
    page = open_page(url)
    generate(page)
    page.locator("#pane-dynamo .dm-chunk").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    assert page.is_visible("#pane-dynamo .dm-tip")
    page.keyboard.press("Enter")
    page.get_by_text("Pass 3 of ").wait_for()
    page.keyboard.press("Escape")
    assert page.is_hidden("#pane-dynamo .dm-tip")


def test_a_replay_starts_over_and_can_be_skipped(open_page, url):
    page = open_page(url)
    generate(page)
    whole = page.locator("#pane-base .dm-chunk:visible").count()
    page.click(".dm-replay")
    page.get_by_text("× slower.").wait_for()
    assert page.locator("#pane-base .dm-chunk:visible").count() < whole
    page.click(".dm-replay")
    assert page.locator("#pane-base .dm-chunk:visible").count() == whole
    assert page.inner_text(".dm-replay") == "Replay in slow motion"


def test_the_first_race_is_replayed_unasked_and_only_the_first(open_page, url):
    page = open_page(url, reduced_motion="no-preference")
    page.click("#generate")
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=replay]")
    page.click(".dm-replay")
    for selector in DONE:
        page.wait_for_selector(selector)
    page.click("#generate")
    page.wait_for_selector("#pane-base .dm-pane[data-state=running]")
    page.wait_for_selector(DONE[0])
    page.wait_for_timeout(300)
    assert page.locator(".dm-pane[data-state=replay]").count() == 0


def test_stop_keeps_the_text_and_frees_the_engines(open_page):
    contenders = scripted_contenders(seconds=0.05, sleep=True, repeat=3)
    demo, url = serve(contenders)
    try:
        page = open_page(url)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(3).wait_for()
        page.click("#stop")
        page.get_by_text("Stopped. What was generated so far stays on screen.").wait_for()
        count = page.locator("#pane-base .dm-chunk").count()
        page.wait_for_timeout(400)
        assert page.locator("#pane-base .dm-chunk").count() == count > 3
        assert "stopped" in page.inner_text("#pane-base .dm-footer")
        assert page.is_disabled("#stop")
        assert contenders.base.closed == contenders.dynamo.closed == 1
    finally:
        demo.close()


def test_hostile_text_is_shown_as_text(open_page):
    demo, url = serve(scripted_contenders(HOSTILE))
    try:
        page = open_page(url)
        generate(page, HOSTILE)
        for name in ("base", "dynamo"):
            assert pane_text(page, name).replace(" ", "") == HOSTILE.replace(" ", "")
        chunks = page.locator("#pane-dynamo .dm-chunk")
        for i in range(chunks.count() - 1):  # into tooltips, axes and notes as well
            chunks.nth(i).click()
            page.get_by_text(f"Pass {i + 1} of ").wait_for()
        assert page.locator("#pane-base img, #pane-dynamo img, #inspector img, #inspector b b").count() == 0
        assert page.evaluate("window.pwned") is None
    finally:
        demo.close()


def test_dark_mode_is_dark_and_readable(open_page, url):
    page = open_page(f"{url}?__theme=dark")
    generate(page)
    background, ink = page.evaluate(
        "[getComputedStyle(document.querySelector('#pane-dynamo .dm-pane')).backgroundColor,"
        " getComputedStyle(document.querySelector('#pane-dynamo .dm-text')).color]"
    )
    assert (background, ink) == ("rgb(24, 27, 32)", "rgb(242, 244, 247)")


def test_a_phone_shows_everything_without_scrolling_sideways(open_page, url):
    page = open_page(url, viewport={"width": 375, "height": 800})
    generate(page)
    for tab in ("About", "Compare"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 375
    too_wide = page.evaluate(
        "[...document.querySelectorAll('.dm-card, .dm-card *, .dm-race *')]"
        ".filter((part) => part.getBoundingClientRect().right > 375).map((part) => part.className)"
    )
    assert too_wide == []


# ---- the scripts' arithmetic against the Python that wrote the trace


def joint_line() -> JointLine:
    rng = np.random.default_rng(4)
    candidates = np.arange(36).reshape(3, 12)
    probabilities = np.sort(rng.dirichlet(np.ones(12), 3))[:, ::-1]
    ranks = np.indices((12, 12, 12)).reshape(3, -1).T[::7]
    values = rng.random(len(ranks)) ** 30
    joint = Joint(candidates, probabilities, ranks, values / values.sum())
    return JointLine.of(0, StepRecord((0, 12, 24), 3, 0.01, joint=joint), 0.5, str)


def test_a_joint_is_unpacked_as_it_was_packed(arithmetic):
    line = joint_line()
    unpacked = arithmetic("unpackJoint(args[0])", json.loads(encode_line(line)))
    np.testing.assert_allclose(unpacked["masked"], line.grid.ravel(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(unpacked["product"], np.outer(*line.probabilities).ravel(), rtol=1e-2)
    assert [tuple(chunk["ranks"]) for chunk in unpacked["chunks"]] == [chunk.ranks for chunk in line.chunks]


@pytest.mark.parametrize("threshold", [0.2, 0.25, 0.3, 0.6])
def test_the_third_stage_agrees_with_thresholds_on_whole_chunks(arithmetic, threshold):
    line = joint_line()
    stage = arithmetic(
        "applyThreshold(unpackJoint(args[0]), args[0], args[1])", json.loads(encode_line(line)), threshold
    )
    above = [chunk for chunk in line.chunks if chunk.value > threshold**2]
    expected = np.zeros((10, 10))
    for (first, second, _), value in above:
        if first < 10 and second < 10:
            expected[first, second] += value / sum(chunk.value for chunk in above)
    assert stage["kept"] == len(above)
    assert stage["outside"] == sum(max(chunk.ranks[:2]) >= 10 for chunk in above)
    assert stage["exact"] is (line.floor <= threshold**2)
    np.testing.assert_allclose(stage["grid"], expected.ravel(), rtol=1e-3)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 %"), (1, "100 %"), (0.0912, "9.1 %"), (0.25, "25 %"), (0.00034, "0.034 %"), (1e-7, "< 0.001 %")],
)
def test_percentages_read_well(arithmetic, value, words):
    assert arithmetic("percent(args[0])", value) == words


@pytest.mark.parametrize(
    ("backoff", "words"),
    [
        ([3, "threshold", 0.091, 0.25], "Backed off from 3: best joint 9.1 % is not above 25 % = 0.5²"),
        ([2, "threshold", 0.3, 0.5], "Backed off from 2: best joint 30 % is not above 50 % = ε"),
        ([2, "mask", 0, 0.5], "Backed off from 2: none of the candidate pairs occurs in the training text"),
        ([3, "kept_mass", 0.2, 0.25], "Backed off from 3: too little of the product survived the mask"),
        (
            [3, "penalty", 0.3, 0.25],
            "Backed off from 3: after the repetition penalty no chunk is above 25 % = 0.5²",
        ),
    ],
)
def test_every_back_off_has_a_sentence(arithmetic, backoff, words):
    assert arithmetic("backOffInWords(args[0])", backoff) == words


def test_prompt_reading_is_left_out_of_tokens_per_second(arithmetic):
    passes = [
        {"ids": [1, 2, 3], "ms": 100, "prefill": True},
        {"ids": [4, 5, 6], "ms": 20},
        {"ids": [7], "ms": 20},
    ]
    clocks = arithmetic("laneClocks(args[0])", passes)
    assert clocks["tokensPerPass"] == pytest.approx(7 / 3)
    assert clocks["tokensPerSecond"] == pytest.approx(4 / 0.040)
    assert clocks["firstToken"] == 100
