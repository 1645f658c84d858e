"""The panes by themselves, on chats written by hand: what they draw, keep and point at."""

from __future__ import annotations

from chats import (
    ANSWER,
    FIRST,
    LONG,
    NEXT,
    SECOND,
    both,
    dispatch,
    one_by_one,
    pane,
    run,
    send,
    settle,
    show,
)
from fakes import HOSTILE
from pages import assert_accessible

# ---- a chat


def test_each_turn_shows_its_question_its_answer_and_what_it_took(panes):
    show(panes, FIRST, SECOND)
    for side, tallies in {
        "base": ["11 tokens in 11 passes", "16 tokens in 16 passes"],
        "dynamo": ["11 tokens in 6 passes", "16 tokens in 9 passes"],
    }.items():
        asked = pane(panes, side, ".dm-asked").all_text_contents()
        assert asked == ["I want to book a table for two in San Jose", "Chinese, at seven."]
        answers = pane(panes, side, ".dm-answer").all_text_contents()
        assert answers == ["".join(one_by_one(chunks)) for chunks in (ANSWER, NEXT)]
        assert pane(panes, side, ".dm-tally").all_text_contents() == tallies
    assert pane(panes, "dynamo", ".dm-bar").count() == len(NEXT)
    assert "16 tokens in 9 passes" in pane(panes, "dynamo", ".dm-footer").inner_text()


def test_a_growing_chat_is_never_drawn_twice(panes):
    show(panes, FIRST)
    panes.evaluate(
        """() => { window.drawn = { added: 0, removed: 0 };
        new MutationObserver((records) => { for (const { addedNodes, removedNodes } of records) {
          drawn.added += [...addedNodes].filter((node) => node.classList?.contains("dm-piece")).length;
          drawn.removed += [...removedNodes].filter((node) => node.nodeType === 1).length; } })
        .observe(document.querySelector("#pane-dynamo .dm-text"), { childList: true, subtree: true }); }"""
    )
    show(panes, FIRST, LONG, lines=7, pause=0.01, after=[len(part) for part in FIRST])
    assert panes.evaluate("drawn") == {"added": len(NEXT) * 20, "removed": 0}


def test_another_chat_replaces_the_one_on_screen(panes):
    show(panes, FIRST, SECOND)
    show(panes, FIRST, LONG)
    assert pane(panes, "base", ".dm-asked").all_text_contents()[1] == "Tell me everything."
    send(panes)
    panes.wait_for_selector("#pane-dynamo .dm-pane[data-state=empty]")
    assert pane(panes, "dynamo", ".dm-turn").count() == pane(panes, "dynamo", ".dm-bar").count() == 0
    assert pane(panes, "dynamo", ".dm-footer").inner_text() == ""


def test_a_hidden_tab_loses_nothing(open_panes):
    page = open_panes()
    page.evaluate(
        "() => { Object.defineProperty(document, 'visibilityState', { value: 'hidden', configurable: true });"
        " window.requestAnimationFrame = () => 1; }"
    )
    show(page, FIRST, SECOND, lines=3, pause=0.02, after=[0, 0])
    assert pane(page, "dynamo", ".dm-answer").all_text_contents()[1] == "".join(one_by_one(NEXT))
    assert pane(page, "base", ".dm-footer").text_content().startswith("16 tokens in 16 passes")


def test_the_text_keeps_its_end_in_sight_unless_one_reads_further_up(panes):
    distance = "(t) => t.scrollHeight - t.scrollTop - t.clientHeight"
    box = pane(panes, "dynamo", ".dm-text")
    show(panes, FIRST, LONG)
    assert box.evaluate(distance) < 2
    half = [part[: part.index('{"pass":100')] for part in LONG]
    show(panes, FIRST, tuple(half), state="running")
    box.evaluate("(t) => { t.scrollTop = t.scrollHeight - t.clientHeight - 20; }")
    settle(panes)
    show(panes, FIRST, tuple(part[: part.index('{"pass":150')] for part in LONG), state="running")
    assert box.evaluate(distance) < 2
    box.evaluate("(t) => { t.scrollTop = 40; }")
    settle(panes)
    show(panes, FIRST, LONG)
    assert box.evaluate("(t) => t.scrollTop") == 40


def test_an_answer_that_is_played_again_keeps_its_end_in_sight(panes):
    """It stayed where the inspector's pass had been brought into sight, while the other lane ran on."""
    show(panes, LONG)
    box = pane(panes, "dynamo", ".dm-text")
    dispatch(panes, "show", {"run": "3d".ljust(32, "0"), "index": 0, "pinned": True})
    assert box.evaluate("(t) => t.scrollHeight - t.scrollTop - t.clientHeight") > 50
    for milliseconds in (20, 2500):
        dispatch(panes, "playhead", {"milliseconds": milliseconds})
        settle(panes)
    assert pane(panes, "dynamo", ".dm-turn:last-child .dm-chunk:visible").count() > 100
    assert box.evaluate("(t) => t.scrollHeight - t.scrollTop - t.clientHeight") < 2
    dispatch(panes, "playhead", {"milliseconds": None})


def test_a_pass_that_is_chosen_elsewhere_comes_into_sight(panes):
    show(panes, FIRST, LONG)
    text = pane(panes, "dynamo", ".dm-text")
    for index in (0, 149):
        dispatch(panes, "show", {"run": "3d".ljust(32, "0"), "index": index, "pinned": True})
        chunk = pane(panes, "dynamo", f".dm-turn:last-child .dm-chunk[data-index='{index}']").bounding_box()
        box = text.bounding_box()
        assert box["y"] <= chunk["y"] and chunk["y"] + chunk["height"] <= box["y"] + box["height"]


# ---- chunks, tips, keys


def test_a_chunk_of_any_turn_can_be_looked_at_in_the_dynamo_lane_only(panes):
    show(panes, FIRST, SECOND)
    pane(panes, "dynamo", ".dm-turn").nth(0).locator(".dm-chunk").nth(1).click()
    pane(panes, "dynamo", ".dm-turn").nth(1).locator(".dm-chunk").nth(2).click()
    pane(panes, "base", ".dm-chunk").nth(1).click()
    shows = panes.evaluate("told.show.map(({ run, index, pinned }) => [run.slice(0, 2), index, pinned])")
    assert shows == [["1d", 1, True], ["2d", 2, True]]
    dispatch(panes, "shown", {"run": "1d".ljust(32, "0"), "index": 3})
    selected = pane(panes, "dynamo", ".dm-turn:first-child .dm-chunk.selected")
    assert selected.get_attribute("data-index") == "3"
    assert pane(panes, "dynamo", ".selected").count() == 1
    dispatch(panes, "shown", {"run": "2d".ljust(32, "0"), "index": 4})
    assert pane(panes, "dynamo", ".dm-bar.selected").get_attribute("data-index") == "4"


def test_keys_go_from_chunk_to_chunk_across_the_turns(panes):
    show(panes, FIRST, SECOND)
    tab_stops = pane(panes, "dynamo", ".dm-chunk[tabindex='0']")
    assert tab_stops.count() == 1
    tab_stops.focus()
    place = "[document.activeElement.closest('.dm-turn').dataset.turn, document.activeElement.dataset.index]"
    steps = {"ArrowLeft": ["0", "5"], "Home": ["0", "0"], "End": ["0", "5"], "ArrowRight": ["1", "0"]}
    for key, expected in steps.items():
        panes.keyboard.press(key)
        assert panes.evaluate(place) == expected
    assert tab_stops.count() == 1
    panes.keyboard.press("Enter")
    assert panes.evaluate("[told.show.at(-1).run.slice(0, 2), told.show.at(-1).index]") == ["2d", 0]


def test_the_pointer_may_rest_on_a_tip_and_escape_closes_it(panes):
    show(panes, FIRST)
    chunk, tip = pane(panes, "dynamo", ".dm-chunk.backed-off").first, pane(panes, "dynamo", ".dm-tip")
    chunk.hover()
    tip.hover()
    panes.wait_for_timeout(400)
    assert tip.is_visible()
    assert "Backed off from 2: best joint 31 %, not above 50 % = ε" in tip.inner_text()
    assert chunk.get_attribute("aria-describedby") == tip.get_attribute("id")
    panes.keyboard.press("Escape")
    assert tip.is_hidden()
    chunk.hover()
    assert tip.is_visible()
    panes.mouse.move(2, 2)
    tip.wait_for(state="hidden")


def test_no_tip_leaves_the_screen_of_a_phone(open_panes):
    page = open_panes(viewport={"width": 375, "height": 640})
    show(page, FIRST, SECOND)
    chunks = pane(page, "dynamo", ".dm-chunk")
    for i in range(chunks.count()):
        chunks.nth(i).hover()
        box = pane(page, "dynamo", ".dm-tip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375
        assert box["y"] >= 0 and box["y"] + box["height"] <= 640
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_hostile_text_is_text_in_questions_answers_and_tips(panes):
    show(
        panes,
        (run("6b", "base", HOSTILE, [HOSTILE]), run("6d", "dynamo", HOSTILE, [HOSTILE, "|".join(HOSTILE)])),
    )
    assert pane(panes, "dynamo", ".dm-asked").text_content() == HOSTILE
    assert pane(panes, "dynamo", ".dm-answer").text_content() == HOSTILE * 2
    pane(panes, "dynamo", ".dm-chunk").first.hover()
    assert "<b>bold</b>" in pane(panes, "dynamo", ".dm-tip").text_content()
    assert panes.locator(".dm-pane :is(img, b, code code)").count() == 0
    assert panes.evaluate("window.pwned") is None


# ---- for everyone


def test_axe_finds_nothing_to_complain_about(panes):
    assert_accessible(panes, ".dm-pane")
    show(
        panes,
        FIRST,
        both("2", "Chinese.", NEXT, recorded="an H200"),
        both("3", "And?", NEXT, end=""),
        state="running",
    )
    pane(panes, "dynamo", ".dm-chunk").last.hover()
    assert_accessible(panes, ".dm-pane", dark=True)
