"""The whole page in a real browser, on scripted engines: what only a browser can show to hold.

Single parts have tests of their own beside this file; here they work together.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from fakes import HOSTILE, scripted_contenders

from dynamo.ui import Analyses, Offer, build_demo, launch_options
from dynamo.ui.chat import Chat
from dynamo.ui.host import Host
from dynamo.ui.settings import SamplingOptions, Settings

DONE = "#pane-base .dm-pane[data-state=done]", "#pane-dynamo .dm-pane[data-state=done]"
PROMPT = "I want to book a table for two in San Jose"
TABS = ("Explore", "About", "Compare")


def opinion(prompt, reply):
    """An audit for which every fifth token is unlikely."""
    shares = [0.004 if index % 5 == 4 else 0.6 for index in range(len(reply))]
    return SimpleNamespace(
        log_probabilities=tuple(map(math.log, shares)), ranks=tuple(60 if s < 0.01 else 0 for s in shares),
        nats_per_token=1.1, unlikely_share=0.2, repetition=0.05,
    )  # fmt: skip


def serve(contenders, offer: Offer | None = None):
    demo = build_demo(contenders, Analyses(audit=opinion), offer)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    return demo, url


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Both lanes' traces of one run, as `python -m dynamo compare --trace` writes them."""
    host = Host(scripted_contenders(seconds=0.01))
    *_, view = host.answer(Chat(), "hello there", Settings(SamplingOptions(), 96, 0))
    path = tmp_path_factory.mktemp("recording") / "recording.ndjson"
    runs = [chat[-1].trace.header.run for chat in (Chat.read(view.base, view.dynamo).base,
                                                   Chat.read(view.base, view.dynamo).dynamo)]  # fmt: skip
    path.write_text("".join(host.store.get_trace(run) for run in runs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def url():
    demo, url = serve(scripted_contenders(seconds=0.01, sleep=True))
    yield url
    demo.close()


@pytest.fixture
def page_at(open_page):
    def page_at(url: str, **options):
        page = open_page(url, **options)
        page.wait_for_selector("#pane-dynamo .dm-pane")
        page.wait_for_selector("#stop[disabled]")
        return page

    return page_at


def generate(page, prompt: str = PROMPT, key: str = "") -> None:
    """Asks, and waits until both lanes have answered. A run may be too quick for Stop to be seen."""
    page.fill("#prompt textarea", prompt)
    if key:
        page.press("#prompt textarea", key)
    else:
        page.click("#generate")
    page.wait_for_function(
        """(prompt) => ["base", "dynamo"].every((lane) => {
          const asked = [...document.querySelectorAll(`#pane-${lane} .dm-asked`)].at(-1);
          const pane = document.querySelector(`#pane-${lane} .dm-pane`);
          return asked?.textContent === prompt && pane.dataset.state === "done";
        })""",
        arg=prompt,
    )
    page.wait_for_selector("#stop[disabled]")


def bubbles(page, name: str) -> list[str]:
    return page.locator(f"#pane-{name} .dm-asked").all_text_contents()


def chunks(page, size: int = 3):
    return page.locator(f"#pane-dynamo .dm-chunk.size-{size}")


def set_threshold(page, value: str) -> None:
    """As a pointer does: drags to the value, and lets go."""
    slider = page.locator("#threshold input[type=range]")
    slider.evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


# ---- the first visit


def test_the_first_visit_plays_a_recording_that_says_so(page_at, recording):
    demo, url = serve(scripted_contenders(), Offer(recording=recording))
    try:
        page = page_at(url, reduced_motion="no-preference")
        page.get_by_text("Recording:").first.wait_for()
        shown = page.locator("#pane-base .dm-chunk:visible").count()
        page.wait_for_function(
            "(before) => document.querySelectorAll('#pane-base .dm-chunk:not([hidden])').length > before",
            arg=shown,
        )
        assert page.locator("#pane-base .dm-badge").is_visible()
        page.get_by_role("button", name="Skip to the end").click()
        page.get_by_text("The same 45 tokens one by one: 45 passes.").wait_for()
        generate(page)
        assert bubbles(page, "dynamo") == [PROMPT]  # the recording is no part of the chat
        assert page.locator("#pane-base .dm-badge").is_hidden()
    finally:
        demo.close()


def test_with_reduced_motion_nothing_plays_by_itself(page_at, recording):
    demo, url = serve(scripted_contenders(), Offer(recording=recording))
    try:
        page = page_at(url)
        page.wait_for_selector(DONE[1])
        assert page.locator("#pane-base .dm-chunk:visible").count() == 45
        page.wait_for_timeout(400)
        assert page.locator("#pane-base .dm-chunk:visible").count() == 45
    finally:
        demo.close()


# ---- a chat


def test_a_chat_of_three_turns_keeps_both_histories(page_at, url):
    page = page_at(url)
    for prompt, key in ((PROMPT, ""), ("For six please", "Enter"), ("Thank you", "Enter")):
        generate(page, prompt, key)
        assert page.input_value("#prompt textarea") == ""
    for name in ("base", "dynamo"):
        assert bubbles(page, name) == [PROMPT, "For six please", "Thank you"]
    assert float(page.inner_text(".dm-passes")) > 1.2
    assert float(page.inner_text(".dm-speed").removesuffix("×")) > 1.1
    page.click("#edit")
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'Thank you'")
    generate(page, "Goodbye")
    assert bubbles(page, "base") == [PROMPT, "For six please", "Goodbye"]
    seed = page.locator("#settings input[type=number]").last
    page.click("#retry")
    page.wait_for_selector("#stop:not([disabled])")
    page.wait_for_selector("#stop[disabled]")
    assert bubbles(page, "base") == [PROMPT, "For six please", "Goodbye"]
    page.click("#settings button")
    assert seed.input_value() == "1"
    page.click("#new-chat")
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=empty]")
    assert bubbles(page, "base") == []


def test_an_example_fills_and_an_empty_prompt_is_answered_at_the_box(page_at, url):
    page = page_at(url)
    page.get_by_role("button", name="Hotel").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('hotel')")
    page.fill("#prompt textarea", "   ")
    page.click("#generate")
    page.get_by_text("Type a message first, or pick an example below.").wait_for()
    assert page.locator(".toast-body").count() == 0
    assert page.is_disabled("#stop")


def test_stop_works_within_300_ms_keeps_the_text_and_frees_the_engines(page_at):
    contenders = scripted_contenders(seconds=0.05, sleep=True, repeat=3)
    demo, url = serve(contenders)
    try:
        page = page_at(url)
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(3).wait_for()
        took = page.evaluate("""() => new Promise((resolve) => {
          const started = performance.now();
          document.querySelector("#stop").click();
          const check = () => document.querySelector("#pane-base .dm-pane").dataset.state === "running"
            ? requestAnimationFrame(check) : resolve(performance.now() - started);
          check();
        })""")
        assert took < 300
        page.get_by_text("Stopped. What was generated so far stays on screen.").wait_for()
        count = page.locator("#pane-base .dm-chunk").count()
        page.wait_for_timeout(400)
        assert page.locator("#pane-base .dm-chunk").count() == count > 3
        assert contenders.opponents["loop"].closed == contenders.dynamo.closed == 1
        generate_and_wait(page)
    finally:
        demo.close()


def generate_and_wait(page) -> None:
    """After a stop the model is free at once: the next answer begins."""
    page.fill("#prompt textarea", "again")
    page.click("#generate")
    page.wait_for_function("document.querySelectorAll('#pane-base .dm-asked').length === 2")


def test_a_closed_tab_frees_the_model(page_at):
    contenders = scripted_contenders(seconds=0.05, sleep=True, repeat=5)
    demo, url = serve(contenders)
    try:
        page = page_at(url)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(2).wait_for()
        page.context.close()
        other = page_at(url)
        other.click("#generate")
        other.locator("#pane-base .dm-chunk").nth(2).wait_for()
        assert contenders.dynamo.closed == 1
    finally:
        demo.close()


def test_a_hidden_tab_loses_nothing(page_at, url):
    page = page_at(url)
    page.evaluate("""() => {
      Object.defineProperty(document, "visibilityState", { get: () => "hidden", configurable: true });
      window.requestAnimationFrame = () => 0;  // as in a tab that nobody sees
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    page.fill("#prompt textarea", PROMPT)
    page.click("#generate")
    for selector in DONE:
        page.wait_for_selector(selector, state="attached")
    assert page.locator("#pane-base .dm-chunk").count() == 45
    text = page.locator("#pane-base .dm-answer").text_content()
    assert text == page.locator("#pane-dynamo .dm-answer").text_content()


# ---- looking inside


def test_a_clicked_chunk_pins_the_inspector_and_every_pass_can_be_called(page_at, url):
    page = page_at(url)
    generate(page)
    chunk = chunks(page).nth(2)
    index = int(chunk.get_attribute("data-index"))
    chunk.click()
    page.get_by_text(f"Pass {index + 1} of ").first.wait_for()
    assert page.locator(".dm-stage td.picked").count() == 3
    every = page.locator("#pane-dynamo .dm-chunk")
    for i in range(every.count()):
        every.nth(i).dispatch_event("click")
        page.get_by_text(f"Pass {i + 1} of {every.count()}").first.wait_for()


def test_the_dial_shows_what_if_and_then_decodes_again(page_at, url):
    page = page_at(url)
    generate(page)
    before = page.locator("#pane-dynamo .dm-chunk").count()
    base_before = page.locator("#pane-base .dm-text").text_content()
    chunks(page).first.click()
    set_threshold(page, "0.99")
    page.wait_for_function(
        "document.querySelector('#inspector').textContent.includes('would have backed off')"
    )
    assert page.locator(".dm-stage-threshold td.dm-cell:not(.gone)").count() == 0
    slider = page.locator("#threshold input[type=range]")
    slider.focus()
    page.keyboard.press("End")  # to 1, as from the keyboard
    slider.dispatch_event("pointerup")
    page.get_by_text("DynaMo re-decoded at threshold 1; base lane unchanged.").wait_for()
    page.wait_for_selector(DONE[1])
    assert page.locator("#pane-dynamo .dm-chunk").count() == 45 > before
    assert page.locator("#pane-base .dm-text").text_content() == base_before


def test_a_preset_of_the_ablation_is_one_click(page_at, url):
    page = page_at(url)
    generate(page)
    page.get_by_role("radio", name="no mask").check(force=True)
    page.get_by_text("DynaMo re-decoded at threshold 0.5").wait_for()
    page.click("#settings button")
    assert page.get_by_label("number input for Mask strength").input_value() == "0"


def test_the_strip_and_the_audit_fill(page_at, url):
    page = page_at(url)
    generate(page)
    page.locator("#audit").get_by_text("0.4 %").first.wait_for()
    page.click("#strip-panel button")
    page.click("#strip-start")
    page.wait_for_function(
        "document.querySelectorAll('#strip [data-threshold]').length === 7", timeout=30_000
    )


def test_charts_open_on_demand(page_at, url):
    page = page_at(url)
    generate(page)
    chunks(page).first.click()
    assert page.locator(".js-plotly-plot").count() == 0
    page.get_by_role("button", name="Enlarge").click()
    page.wait_for_selector("#heatmap .js-plotly-plot", timeout=20_000)


# ---- votes


def test_a_blind_duel_tells_nothing_before_the_vote(page_at, tmp_path):
    demo, url = serve(scripted_contenders(), Offer(votes=tmp_path / "votes"))
    try:
        page = page_at(url)
        page.check("#blind input")
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.wait_for_selector("#vote-left")
        assert page.locator("#pane-base .dm-pane-title").text_content() == "Left"
        assert page.locator(".dm-pane .dm-chunk.size-3").count() == 0
        assert not page.locator(".dm-speed").is_visible()
        page.click("#vote-tie")
        page.get_by_text("Your vote is kept.").wait_for()
        page.wait_for_selector("#vote-left", state="hidden")
        assert page.locator("#pane-dynamo .dm-chunk.size-3").count() > 3
        assert (tmp_path / "votes").is_dir()
    finally:
        demo.close()


# ---- for everyone


def test_the_whole_page_works_from_the_keyboard(page_at, url):
    page = page_at(url)
    page.focus("#prompt textarea")
    page.keyboard.press("Enter")
    for selector in DONE:
        page.wait_for_selector(selector)
    page.wait_for_selector("#stop[disabled]")
    shown = "dynamoBus.addEventListener('lane', ({ detail }) => (window.lane = detail))"
    page.evaluate(f"() => {{ window.lane = null; {shown}; }}")
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]')?.id ?? ''"))
        reached.add(page.evaluate("document.activeElement.className.split?.(' ')[0] ?? ''"))
    assert {"generate", "retry", "edit", "new-chat", "dm-chunk", "dm-cell", "threshold"} <= reached
    assert page.evaluate("window.lane") is None  # passing by a control asks for nothing
    page.locator("#pane-dynamo .dm-chunk").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("Pass 2 of ").first.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_finds_nothing(page_at, recording, theme, width):
    demo, url = serve(scripted_contenders(), Offer(recording=recording))
    try:
        page = page_at(f"{url}?__theme={theme}", viewport={"width": width, "height": 900})
        assert_accessible(page)
        generate(page)
        page.locator("#audit").get_by_text("0.4 %").first.wait_for()
        chunks(page).first.click()
        page.click("#settings button")
        assert_accessible(page)
        for tab in ("Explore", "About"):
            page.get_by_role("tab", name=tab).click()
            assert_accessible(page)
    finally:
        demo.close()


def assert_accessible(page) -> None:
    page.wait_for_timeout(300)  # transitions of Gradio's own
    found = Axe().run(page).response["violations"]
    told = [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]
    assert told == []


def test_dark_mode_is_dark_and_readable(page_at, url):
    page = page_at(f"{url}?__theme=dark")
    background, ink = page.evaluate(
        "[getComputedStyle(document.querySelector('#pane-dynamo .dm-pane')).backgroundColor,"
        " getComputedStyle(document.querySelector('#pane-dynamo .dm-text')).color]"
    )
    assert (background, ink) == ("rgb(24, 27, 32)", "rgb(242, 244, 247)")


@pytest.mark.parametrize("width", [375, 320])
def test_a_phone_shows_everything_without_scrolling_sideways(page_at, url, width):
    page = page_at(url, viewport={"width": width, "height": 800})
    generate(page)
    page.click("#settings button")
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


# ---- what strangers and models say


def test_hostile_text_is_shown_as_text_everywhere(page_at):
    demo, url = serve(scripted_contenders(HOSTILE))
    try:
        page = page_at(url)
        generate(page, HOSTILE)
        assert bubbles(page, "base") == [HOSTILE]
        for name in ("base", "dynamo"):
            shown = page.locator(f"#pane-{name} .dm-answer").text_content()
            assert shown.replace(" ", "") == HOSTILE.replace(" ", "")
        every = page.locator("#pane-dynamo .dm-chunk")
        for i in range(every.count() - 1):  # into tooltips, axes and notes as well
            every.nth(i).click()
            page.get_by_text(f"Pass {i + 1} of ").first.wait_for()
        page.get_by_role("button", name="Enlarge").click()
        page.wait_for_selector("#heatmap .js-plotly-plot", timeout=20_000)
        page.locator("#audit").get_by_text("0.4 %").first.wait_for()
        ours = "#pane-base, #pane-dynamo, #inspector, #timeline, #audit, #heatmap"
        marked = page.evaluate(
            "(ours) => [...document.querySelectorAll(ours)].flatMap((part) =>"
            " [...part.querySelectorAll('img, script, code b, svg b')]).length", ours
        )  # fmt: skip
        assert marked == 0
        assert page.evaluate("window.pwned") is None
    finally:
        demo.close()
