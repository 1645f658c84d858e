"""The race bar in a real browser, told of made-up lanes: what it says, plays and hides."""

from __future__ import annotations

import pytest
from fakes import HOSTILE
from pages import assert_accessible
from races import (
    SPLIT,
    Splits,
    answered,
    lane,
    listen,
    long_race,
    nothing,
    send,
    serve_race,
    short_race,
    tell,
)

TRUTH = "Real time: 0.16 s (base), 0.10 s (DynaMo)."
MOVING = {"reduced_motion": "no-preference"}


@pytest.fixture(scope="module")
def splits():
    return Splits()


@pytest.fixture(scope="module")
def url(splits):
    demo, url = serve_race(splits)
    yield url
    demo.close()


def opened(open_page, url, **options):
    page = open_page(url, **options)
    page.wait_for_selector(".dm-race")
    page.wait_for_selector(".dm-timeline")
    listen(page, "playhead", "player", "widest")
    return page


@pytest.fixture
def race(open_page, url):
    """Opens the race bar and tells it of lanes."""

    def race(*lanes, **options):
        page = opened(open_page, url, **options)
        send(page, lanes)
        return page

    return race


@pytest.fixture(scope="module")
def shared_page(open_shared_page, url):
    return opened(open_shared_page, url)


@pytest.fixture
def bar(shared_page):
    """The race bar without a race, on a page that tests share."""
    send(shared_page, nothing())
    shared_page.locator(".dm-modes input[value=auto]").evaluate("(mode) => mode.click()")
    shared_page.evaluate("window.heard.length = 0")
    return shared_page


def heard(page, name):
    return [detail for each, detail in page.evaluate("window.heard") if each == name]


def test_both_clocks_and_both_first_tokens_show_together_or_not_at_all(bar):
    base, dynamo = short_race()
    send(bar, [base])
    faces = [".dm-passes", ".dm-speed", ".dm-first"]
    assert [bar.inner_text(face) for face in faces] == ["–"] * 3
    send(bar, [dynamo])
    assert [bar.inner_text(face) for face in faces] == ["3.00", "2.14×", "19 ms"]
    assert bar.inner_text(".dm-passes-note") == "against 1.00"
    assert bar.inner_text(".dm-speed-note") == "429 against 200 tok/s"
    assert bar.inner_text(".dm-first-note") == "against 12 ms"
    assert bar.inner_text(".dm-tally") == "DynaMo wrote 39 tokens in 13 passes. One at a time needs 39."
    assert bar.inner_text(".dm-variety") == "3 %"  # its one word, again and again
    assert bar.inner_text(".dm-variety-note") == "against 3 %, ± 11 points"
    laps = [bar.inner_text(f".dm-lap-{lane} span:last-child") for lane in ("base", "dynamo")]
    assert laps == ["31 tokens in 0.16 s", "39 tokens in 0.10 s"] and bar.inner_text(".dm-pace") == ""
    assert bar.inner_text(".dm-status") == "Both answer."


def test_the_wall_clock_says_against_whom(bar):
    for engine, name in (
        ("loop", "the base model"),
        ("generate", "transformers generate"),
        ("threshold-1", "DynaMo at threshold 1"),
    ):
        send(bar, short_race(engine=engine, run=engine))
        assert bar.inner_text(".dm-speed-name") == f"faster than {name}"


def test_a_short_race_is_shown_slowed_and_says_so_with_the_truth_beside(race):
    page = race(**MOVING)
    page.evaluate(
        """() => { window.paces = [];
          const pace = document.querySelector(".dm-pace");
          const note = new MutationObserver(() => window.paces.push(pace.textContent));
          note.observe(pace, { childList: true, characterData: true, subtree: true }); }"""
    )
    send(page, short_race())
    page.wait_for_selector(".dm-race[data-phase=settled]")
    assert f"Slow motion, 20×. {TRUTH}" in page.evaluate("window.paces")
    moments = [detail["milliseconds"] for detail in heard(page, "playhead")]
    moments = moments[len(moments) - moments[::-1].index(0) :]  # since both lanes were there
    assert moments[-1] is None and moments[:-1] == sorted(moments[:-1])
    assert len(moments) > 5
    slowed = [detail for detail in heard(page, "player") if detail["playing"]]
    assert slowed == [{"playing": True, "mode": "auto", "slowdown": 20}]
    assert page.inner_text(".dm-toggle") == "Play again"


def test_the_clocks_are_those_of_what_is_shown(bar):
    page = bar
    send(page, short_race())
    page.locator(".dm-modes input[value=step]").check()
    assert page.inner_text(".dm-pace").startswith("Press Next pass.")
    page.locator(".dm-step-on").click()
    assert page.inner_text(".dm-pace").startswith("After the left lane's pass 1, 1 token. Real time:")
    assert page.inner_text(".dm-speed") == "–"
    page.locator(".dm-step-on").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.inner_text(".dm-lap-base") != page.inner_text(".dm-lap-dynamo")
    assert page.inner_text(".dm-tally").startswith("DynaMo has written 6 tokens in 2 passes so far.")
    assert page.inner_text(".dm-passes") == "3.00"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".dm-tally").startswith("DynaMo has written 3 tokens in 1 pass so far.")


def test_pause_play_and_skip_do_what_they_say(race):
    page = race(*long_race(recorded="on a laptop, in spring"), **MOVING)
    page.click(".dm-toggle")
    assert page.inner_text(".dm-toggle") == "Play"
    still = heard(page, "playhead")[-1]
    page.wait_for_timeout(150)
    assert heard(page, "playhead")[-1] == still
    page.click(".dm-toggle")
    page.wait_for_function("count => window.heard.length > count", arg=len(page.evaluate("window.heard")) + 3)
    page.click(".dm-skip")
    assert heard(page, "playhead")[-1] == {"milliseconds": None}
    assert page.inner_text(".dm-toggle") == "Play again"
    assert page.evaluate("document.activeElement.className").endswith("dm-toggle")


def test_stop_stops_the_replay_of_a_run_that_is_over(race):
    page = race(*long_race(recorded="on a laptop, in spring"), **MOVING)
    tell(page, "stop", None)
    assert page.inner_text(".dm-toggle") == "Play"
    still = heard(page, "playhead")[-1]
    page.wait_for_timeout(150)
    assert heard(page, "playhead")[-1] == still
    page.click(".dm-skip")
    assert heard(page, "playhead")[-1] == {"milliseconds": None}


def test_modes_are_a_radio_group_that_arrows_move_in(bar):
    page = bar
    send(page, short_race())
    page.locator(".dm-modes input[value=auto]").focus()
    page.keyboard.press("ArrowRight")
    assert heard(page, "player")[-1]["mode"] == "live"
    page.keyboard.press("ArrowRight")
    assert heard(page, "player")[-1] == {"playing": False, "mode": "teach", "slowdown": 1}
    assert page.get_by_role("radiogroup", name="Pace").get_by_role("radio").count() == 4


def test_a_recording_is_labelled_and_plays_by_itself(race):
    """A recording is labelled and plays by itself unless motion is unwelcome."""
    said = "Recording of tiny: a laptop, spring."
    moving = race(*long_race(recorded="a laptop, spring", model="tiny"), **MOVING)
    assert moving.get_attribute(".dm-race", "data-phase") == "playing"
    assert moving.inner_text(".dm-remark") == said
    still = race(*short_race(recorded="a laptop, spring", model="tiny"))
    assert still.get_attribute(".dm-race", "data-phase") == "settled"
    assert still.inner_text(".dm-remark") == f"{said} Press Generate for a live race."
    assert heard(still, "playhead") == []


def test_an_answer_decoded_again_is_shown_as_it_comes(race):
    """Both lanes have new runs of the same question: they are not played once more."""
    page = race(*short_race(), **MOVING)
    page.wait_for_selector(".dm-race[data-phase=settled]")
    again = {"run": "another", "options": {"threshold": 0.8}}
    base, dynamo = lane("base", [5.0] * 30, **again), lane("dynamo", [7.0] * 18, 2, **again)
    for lanes in ([{**base, "state": "running", "end": None}], [{**dynamo, "state": "running", "end": None}]):
        send(page, lanes)
        assert page.get_attribute(".dm-race", "data-phase") in ("following", "settled")
    send(page, [base, dynamo])
    assert page.get_attribute(".dm-race", "data-phase") == "settled"
    assert page.inner_text(".dm-passes") == "2.00"
    assert heard(page, "playhead")[-1] == {"milliseconds": None}


def test_no_ratio_stands_over_a_few_tokens_and_none_above_tokens_per_pass(bar):
    send(bar, [lane("base", [5.0] * 8), lane("dynamo", [7.0] * 12, 3)])
    assert bar.inner_text(".dm-speed") == "–"
    assert bar.inner_text(".dm-speed-note") == "too few tokens to compare"
    assert bar.is_hidden(".dm-why")
    send(bar, [lane("base", [50.0] * 30, run="slow"), lane("dynamo", [7.0] * 12, 3, run="slow")])
    assert bar.inner_text(".dm-passes") == "3.00" and bar.inner_text(".dm-speed") == "–"
    assert bar.inner_text(".dm-speed-note") == "disturbed clocks; try again"


def test_a_lane_that_is_not_there_has_no_bar(bar):
    """A loaded trace of DynaMo alone kept the base's last "39 tokens in 46 ms"."""
    base, dynamo = short_race()
    send(bar, [base, dynamo])
    send(bar, [nothing()[0], {**dynamo, "run": "loaded"}])
    assert bar.is_hidden(".dm-lap-base span:last-child")
    assert bar.inner_text(".dm-lap-dynamo span:last-child") == "39 tokens in 0.10 s"


def test_a_blind_duel_shows_no_clock_and_no_player_until_the_vote(race):
    blind = short_race(lane="blind", options={})
    page = race(*blind, **MOVING)
    assert page.is_hidden(".dm-clocks") and page.is_hidden(".dm-player")
    assert page.inner_text(".dm-hidden-note") == "Clocks and playback are hidden until you vote."
    assert page.inner_text(".dm-pace") == "" and page.inner_text(".dm-tally") == ""
    base, dynamo = short_race()
    base["run"] = dynamo["run"] = "revealed"
    send(page, [base, dynamo])
    assert page.is_visible(".dm-clocks") and page.is_visible(".dm-player")
    assert page.get_attribute(".dm-race", "data-phase") == "settled"


def test_the_strips_have_room_for_the_longer_lane_of_both(bar):
    base, dynamo = short_race()
    longer = max(sum(step["ms"] for step in each["passes"]) for each in (base, dynamo))
    send(bar, [base, dynamo])
    assert heard(bar, "widest")[-1] == {"milliseconds": pytest.approx(longer), "passes": 31}


def test_the_time_split_is_asked_for_once_and_does_the_arithmetic(race, splits):
    page = race(*short_race())
    splits.asked = 0
    assert page.inner_text(".dm-why") == "why not 3.00×?"
    page.hover(".dm-why")
    page.wait_for_selector(".dm-split-table")
    said = page.inner_text(".dm-split-sum")
    assert said == (
        "DynaMo's pass takes 1.40 times the base's (5.60 against 4.00 ms): "
        "3.00 tokens per pass / 1.40 = 2.14×. This race measured 2.14×."
    )
    rows = page.locator(".dm-split-table tr").all_inner_texts()
    assert rows[1].split() == ["stem", "3.00", "3.00"]
    assert rows[-1].split() == ["whole", "pass", "4.00", "5.60"]
    widths = page.eval_on_selector_all(
        ".dm-split-bar",
        "bars => bars.map((bar) => [...bar.children].map((part) => parseFloat(part.style.width)))",
    )
    whole = SPLIT["dynamo"]["pass_ms"]
    assert [sum(bar) for bar in widths] == pytest.approx([100 * 4.0 / whole, 100], abs=0.1)
    assert "separate profiled run on this machine" in page.inner_text(".dm-split-note")
    page.keyboard.press("Escape")
    assert page.is_hidden(".dm-split")
    page.locator(".dm-why").focus()
    page.keyboard.press("Enter")
    assert page.is_visible(".dm-split")
    assert page.get_attribute(".dm-why", "aria-expanded") == "true"
    page.mouse.move(0, 0)
    page.keyboard.press("Escape")
    assert page.is_hidden(".dm-split")
    assert splits.asked == 1


def test_a_server_without_a_time_split_says_so(race, splits, monkeypatch):
    monkeypatch.setattr(splits, "answer", None)
    page = race(*short_race())
    page.click(".dm-why")
    page.get_by_text("The time split is not available here.").wait_for()


def test_the_models_are_not_profiled_while_they_race(race, splits):
    base, dynamo = long_race(state="running")
    page = race(base, dynamo)
    splits.asked = 0
    page.click(".dm-why")
    page.get_by_text("The time split is taken when this answer is done.").wait_for()
    assert splits.asked == 0
    send(page, long_race())
    page.wait_for_selector(".dm-split-table")
    assert splits.asked == 1


def test_what_models_and_files_say_is_shown_as_text(bar):
    send(bar, short_race(recorded=HOSTILE, prompt=HOSTILE, engine=HOSTILE))
    assert HOSTILE in bar.inner_text(".dm-remark")
    assert bar.locator(".dm-race img").count() == 0
    assert bar.evaluate("window.pwned") is None


def test_axe_finds_nothing_to_complain_about(race):
    page = race()
    assert_accessible(page, "#race", "#timeline")
    send(page, [short_race()[0], answered()])
    page.locator(".dm-modes input[value=step]").check()
    tell(page, "threshold", 0.9)
    assert_accessible(page, "#race", "#timeline", dark=True)
    send(page, short_race(run="long enough"))
    page.click(".dm-why")
    page.wait_for_selector(".dm-split-table")
    assert_accessible(page, "#race", "#timeline", dark=True)


def test_a_phone_scrolls_down_only(race):
    page = race(
        *short_race(recorded="a laptop with quite a long name, in spring"),
        viewport={"width": 375, "height": 800},
    )
    page.click(".dm-why")
    page.wait_for_selector(".dm-split-table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
