"""The whole page in a real browser, on scripted engines: what only a browser can show to hold.

Single parts have tests of their own beside this file; here they work together.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fakes import HOSTILE, scripted_pair
from pages import DONE, PROMPT, bubbles, chunks, generate, served, set_threshold
from visitors import PATIENCE, until

from dynamo.ui.server.engines import LocalEngines

# ---- the first visit


def test_the_first_visit_plays_a_recording_that_says_so(page_at, recorded_url):
    page = page_at(recorded_url, reduced_motion="no-preference")
    page.get_by_text("Recording of").first.wait_for()
    shown = page.locator("#pane-base .dm-chunk:visible").count()
    page.wait_for_function(
        "(before) => document.querySelectorAll('#pane-base .dm-chunk:not([hidden])').length > before",
        arg=shown,
    )
    assert page.locator("#pane-base .dm-badge").is_visible()
    page.get_by_role("button", name="Skip to the end").click()
    page.get_by_text("One at a time needs 45.").wait_for()
    generate(page)
    assert bubbles(page, "dynamo") == [PROMPT]  # the recording is no part of the chat
    assert page.locator("#pane-base .dm-badge").is_hidden()


def test_with_reduced_motion_nothing_plays_by_itself(page_at, recorded_url):
    page = page_at(recorded_url)
    page.wait_for_selector(DONE[1])
    assert page.locator("#pane-base .dm-chunk:visible").count() == 45
    page.wait_for_timeout(400)
    assert page.locator("#pane-base .dm-chunk:visible").count() == 45


# ---- a chat


def test_a_chat_of_three_turns_keeps_both_histories(page_at, page_url):
    page = page_at(page_url)
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
    page.evaluate(
        """() => { window.lanes = {};
          dynamoBus.addEventListener("lane", ({ detail }) => (lanes[detail.kind] = detail)); }"""
    )
    page.click("#retry")
    page.wait_for_function(
        """() => ["base", "dynamo"].every((kind) =>
          lanes[kind]?.state === "done" && lanes[kind].header.options.seed === 1)"""
    )
    page.wait_for_selector("#stop[disabled]")
    assert bubbles(page, "base") == [PROMPT, "For six please", "Goodbye"]
    page.click("#settings button")
    assert seed.input_value() == "1"
    page.click("#new-chat")
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=empty]")
    assert bubbles(page, "base") == []


def test_an_example_fills_and_an_empty_prompt_is_answered_at_the_box(page_at, page_url):
    page = page_at(page_url)
    page.get_by_role("button", name="Hotel").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('hotel')")
    page.fill("#prompt textarea", "   ")
    page.click("#generate")
    page.get_by_text("Type a message first, or pick an example below.").wait_for()
    assert page.locator(".toast-body").count() == 0
    assert page.is_disabled("#stop")


def test_stop_works_at_once_keeps_the_text_and_frees_the_engines(page_at):
    """At once: after 18 frames at the latest, which a machine that is not busy draws in 300 ms."""
    pair = scripted_pair(seconds=0.25, sleep=True, repeat=3)  # 24 s for both to be seen in
    with served(pair) as url:
        page = page_at(url)
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(3).wait_for()
        frames = page.evaluate("""async () => {
          document.querySelector("#stop").click();
          let frames = 0;
          for (; document.querySelector("#pane-base .dm-pane").dataset.state === "running"; frames++)
            await new Promise(requestAnimationFrame);
          return frames;
        }""")
        assert frames <= 18
        page.get_by_text("Stopped. What was generated so far stays on screen.").wait_for()
        count = page.locator("#pane-base .dm-chunk").count()
        engines = [pair.engines.by_name[name] for name in ("loop", "dynamo")]
        until(lambda: [engine.cut for engine in engines] == [1, 1], PATIENCE)
        page.wait_for_timeout(400)
        assert page.locator("#pane-base .dm-chunk").count() == count > 3
        page.fill("#prompt textarea", "again")
        page.click("#generate")  # the model is free: the next answer begins
        page.wait_for_function("document.querySelectorAll('#pane-base .dm-asked').length === 2")


def test_a_new_chat_ends_the_run_that_is_under_way(page_at):
    """Or what the run still sends would bring its answer back."""
    pair = scripted_pair(seconds=0.25, sleep=True, repeat=3)
    with served(pair) as url:
        page = page_at(url)
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(3).wait_for()
        page.click("#new-chat")
        page.wait_for_selector("#pane-base .dm-pane[data-state=empty]")
        engines = [pair.engines.by_name[name] for name in ("loop", "dynamo")]
        until(lambda: [engine.cut for engine in engines] == [1, 1], PATIENCE)
        page.wait_for_timeout(800)
        assert page.locator("#pane-base .dm-pane[data-state=empty]").count() == 1
        assert page.is_disabled("#stop")


def test_who_goes_on_ends_the_timing_of_the_last_race(page_at, monkeypatch):
    """Generate did nothing while both lanes decoded once more, unseen."""
    pair = scripted_pair(seconds=0.02, sleep=True)
    engines = [pair.engines.by_name[name] for name in ("loop", "dynamo")]
    passes = []
    for engine in engines:
        monkeypatch.setattr(engine, "_pass", partial(spread, engine._pass, passes))
    with served(pair) as url:
        page = page_at(url)
        generate(page)
        raced = len(passes)
        page.get_by_text("Both lanes decode the same once more").wait_for()
        until(lambda: len(passes) > raced, PATIENCE)
        page.click("#generate")  # on the empty box, which asks for nothing
        page.wait_for_timeout(400)
        assert not sum(engine.cut for engine in engines)
        page.fill("#prompt textarea", "again")
        page.click("#generate")
        page.wait_for_function("document.querySelectorAll('#pane-dynamo .dm-asked').length === 2")
        assert sum(engine.cut for engine in engines) == 1


def spread(one_pass, passes, *arguments, **named):
    """A pass of an engine that takes as long as another program lets it."""
    passes.append(one_pass(*arguments, **named))
    return replace(passes[-1], seconds=0.01 + 0.02 * (len(passes) % 2))


def test_stop_can_be_pressed_while_an_answer_is_replayed(page_at):
    """It was grey while text still appeared."""
    with served(scripted_pair(seconds=0.001, repeat=3)) as url:
        page = page_at(url, reduced_motion="no-preference")
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.wait_for_selector(".dm-race[data-phase=playing]")
        page.wait_for_function("dynamoBus.replaying")
        page.wait_for_selector("#stop:not([disabled])")
        page.click("#stop")
        page.wait_for_selector(".dm-race[data-phase=paused]")
        page.wait_for_selector("#stop[disabled]")


def test_a_closed_tab_frees_the_model(page_at):
    pair = scripted_pair(seconds=0.25, sleep=True, repeat=5)  # 24 s, and the other runs as long
    with served(pair) as url:
        page = page_at(url)
        page.click("#generate")
        page.locator("#pane-base .dm-chunk").nth(2).wait_for()
        page.close()
        other = page_at(url)
        other.click("#generate")
        other.locator("#pane-base .dm-chunk").nth(2).wait_for()
        assert pair.engines.by_name["dynamo"].cut == 1


def test_whoever_waits_for_the_model_reads_the_place_in_the_queue(page_at):
    """It was there, cut off by its box."""
    with served(scripted_pair(seconds=0.3, sleep=True)) as url:
        first, second = page_at(url), page_at(url)
        for page in (first, second):
            page.fill("#prompt textarea", PROMPT)
            page.click("#generate")
            page.wait_for_selector("#stop:not([disabled])")
        place = second.locator("#race .progress-text")
        place.filter(has_text="queue: 1/1").wait_for()
        seen = "(words) => { const { x, y, width, height } = words.getBoundingClientRect();"
        seen += " return words.contains(document.elementFromPoint(x + width / 2, y + height / 2)); }"
        place.evaluate(
            "(words) => { for (let e = words; e; e = e.parentElement) e.style.pointerEvents = 'auto'; }"
        )
        assert place.evaluate(seen)
        for page in (second, first):
            page.click("#stop")


def test_a_hidden_tab_loses_nothing(page_at, page_url):
    page = page_at(page_url)
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


def test_a_clicked_chunk_pins_the_inspector_and_every_pass_can_be_called(page_at, page_url):
    page = page_at(page_url)
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


def test_the_dial_shows_what_if_and_then_decodes_again(page_at, page_url):
    page = page_at(page_url)
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
    page.locator("#pane-dynamo .dm-chunk").nth(44).wait_for()
    page.wait_for_selector(DONE[1])
    assert page.locator("#pane-dynamo .dm-chunk").count() == 45 > before
    assert page.locator("#pane-base .dm-text").text_content() == base_before


def test_a_preset_of_the_ablation_is_one_click(page_at, page_url):
    page = page_at(page_url)
    generate(page)
    page.evaluate(
        """() => { window.unmasked = new Set();
        dynamoBus.addEventListener("lane", ({ detail: { kind, state, header } }) =>
          state === "done" && header.options.mask_strength === 0 && unmasked.add(kind)); }"""
    )
    page.get_by_role("radio", name="no mask").check(force=True)
    page.wait_for_function("unmasked.size === 2")
    page.click("#settings button")
    assert page.get_by_label("number input for Mask strength").input_value() == "0"


def test_the_strip_and_the_audit_fill(page_at, page_url):
    page = page_at(page_url)
    generate(page)
    page.locator("#audit").get_by_text("0.4 %").first.wait_for()
    page.click("#strip-panel button")
    page.click("#strip-start")
    page.wait_for_function("document.querySelectorAll('#strip [data-threshold]').length === 7")


def test_charts_open_on_demand_and_then_follow_the_answer(page_at, page_url):
    """They stayed those of the answer before until somebody closed and opened the panel."""
    drawn = """() => {
      const traces = document.querySelector("#charts .js-plotly-plot")?.data ?? [];
      const passes = traces.reduce((sum, { type, x }) => sum + (type === "bar" ? x.length : 0), 0);
      return passes > 0 && passes === document.querySelectorAll(".dm-column").length;
    }"""
    page = page_at(page_url)
    generate(page)
    chunks(page).first.click()
    assert page.locator(".js-plotly-plot").count() == 0
    page.click("#charts button")
    page.wait_for_function(drawn)
    page.get_by_role("button", name="Enlarge").click()
    page.wait_for_selector("#heatmap .js-plotly-plot")
    before = page.locator(".dm-column").count()
    set_threshold(page, "0.95")
    page.locator("#threshold input[type=range]").dispatch_event("pointerup")
    page.wait_for_function("(before) => document.querySelectorAll('.dm-column').length > before", arg=before)
    page.wait_for_function(drawn)
    page.wait_for_selector("#heatmap .js-plotly-plot", state="detached")
    page.click("#new-chat")
    page.wait_for_selector("#charts .js-plotly-plot", state="detached")


# ---- votes


def test_a_blind_duel_tells_nothing_before_the_vote(page_at, tmp_path):
    with served(scripted_pair(), votes=tmp_path / "votes") as url:
        page = page_at(url)
        page.check("#blind input")
        page.locator(".dm-status").get_by_text("You vote, then see which answer is DynaMo's.").wait_for()
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.wait_for_selector("#vote-left")
        assert page.locator("#pane-base .dm-pane-title").text_content() == "Left"
        assert page.locator(".dm-pane .dm-chunk.size-3").count() == 0
        assert not page.locator(".dm-speed").is_visible()
        page.click("#vote-tie")
        page.get_by_text("Your vote is kept.").wait_for()
        page.wait_for_selector("#vote-left", state="hidden")
        chunks(page).nth(3).wait_for()
        assert (tmp_path / "votes").is_dir()


# ---- what strangers and models say


def test_hostile_text_is_shown_as_text_everywhere(page_at):
    with served(scripted_pair(HOSTILE)) as url:
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
        page.wait_for_selector("#heatmap .js-plotly-plot")
        page.locator("#audit").get_by_text("0.4 %").first.wait_for()
        ours = "#pane-base, #pane-dynamo, #inspector, #timeline, #audit, #heatmap"
        marked = page.evaluate(
            "(ours) => [...document.querySelectorAll(ours)].flatMap((part) =>"
            " [...part.querySelectorAll('img, script, code b, svg b')]).length", ours
        )  # fmt: skip
        assert marked == 0
        assert page.evaluate("window.pwned") is None


class HeldUp:
    """An engine whose every second pass waited for another program."""

    def __init__(self, engine):
        self.engine = engine

    def stream(self, *arguments, **keywords):
        for number, record in enumerate(self.engine.stream(*arguments, **keywords)):
            yield replace(record, seconds=0.02 if number % 2 else 0.004)


def test_a_race_whose_times_spread_is_timed_again_in_sight(page_at):
    """And the chat goes on: a further turn is added to what stands there."""
    pair = scripted_pair()
    engines = LocalEngines({name: HeldUp(engine) for name, engine in pair.engines.by_name.items()})
    with served(replace(pair, engines=engines)) as url:
        page = page_at(url)
        generate(page)
        timed = "dynamoBus.lanes.base.end?.timed"
        page.wait_for_function(timed)  # Stop is greyed as soon as both answers are there
        page.locator("div[title*='decoded the same once more, unseen'] .dm-speed").wait_for()
        page.evaluate("document.querySelector('#pane-dynamo .dm-chunk').dataset.mark = 'first turn'")
        generate(page, "And another table, please")
        page.wait_for_function(timed)
        assert page.locator("#pane-dynamo .dm-chunk[data-mark='first turn']").count() == 1, (
            "nothing was redrawn"
        )
