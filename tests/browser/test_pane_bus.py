"""What the panes hear from the rest of the page and tell it, and what a visitor takes away from them."""

from __future__ import annotations

from chats import (
    ANSWER,
    FIRST,
    KNOWN,
    LONG,
    NEXT,
    SECOND,
    both,
    dispatch,
    one_by_one,
    pane,
    run,
    settle,
    show,
    told,
)

# ---- what others are told, and tell


def test_the_playhead_hides_what_is_not_reached_yet(panes):
    show(panes, FIRST, SECOND)
    dispatch(panes, "playhead", {"milliseconds": 80.0})  # passes of 40, 20, 20, .. ms
    current, earlier = (pane(panes, "dynamo", f".dm-turn:nth-child({n}) .dm-chunk:visible") for n in (2, 1))
    assert (current.count(), earlier.count()) == (3, len(ANSWER))
    assert pane(panes, "dynamo", ".dm-bar:visible").count() == 3
    assert pane(panes, "dynamo", ".dm-tally").nth(1).is_hidden()
    lane = told(panes, "dynamo")
    assert (lane["count"], lane["passes"], lane["state"]) == (3, len(NEXT), "done")
    assert pane(panes, "dynamo", ".dm-footer").inner_text().startswith("6 tokens in 3 passes")
    dispatch(panes, "playhead", {"milliseconds": 39.9})
    assert current.count() == 0
    dispatch(panes, "playhead", {"milliseconds": None})
    assert current.count() == told(panes, "dynamo")["count"] == len(NEXT)
    assert pane(panes, "dynamo", ".dm-tally").nth(1).is_visible()


def test_the_playhead_takes_the_inspector_along(panes):
    show(panes, FIRST)
    for moment in (0, 40, 50, 60, 100, 40):
        dispatch(panes, "playhead", {"milliseconds": moment})
    shows = panes.evaluate("told.show.map(({ run, index, pinned }) => [run.slice(0, 2), index, pinned])")
    assert shows == [["1d", index, False] for index in (0, 0, 1, 3, 0)]


def test_passes_that_arrive_behind_the_playhead_stay_hidden(panes):
    half = tuple(part[: part.index('{"pass":4')] for part in SECOND)
    show(panes, FIRST, half, state="running")
    dispatch(panes, "playhead", {"milliseconds": 100.0})
    show(panes, FIRST, SECOND)
    assert pane(panes, "dynamo", ".dm-turn:nth-child(2) .dm-chunk:visible").count() == 4
    assert told(panes, "dynamo")["count"] == 4
    show(panes, FIRST, SECOND, LONG)  # what was current is history now, and whole
    assert pane(panes, "dynamo", ".dm-turn:nth-child(2) .dm-chunk:visible").count() == len(NEXT)
    assert pane(panes, "dynamo", ".dm-turn:nth-child(3) .dm-chunk:visible").count() == 4


def test_the_others_hear_at_once_of_what_the_playhead_shows(panes):
    """The pass, the counters and the timeline named three different passes in one frame."""
    show(panes, FIRST)
    settle(panes)
    panes.evaluate("told.lane.length = 0")
    counts = panes.evaluate(
        """() => [0, 50, 51, 1e9].map((milliseconds) => {
          dynamoBus.dispatchEvent(new CustomEvent("playhead", { detail: { milliseconds } }));
          return told.lane.at(-1).count;
        })"""
    )
    assert counts == [0, 1, 1, len(ANSWER)]
    panes.evaluate("told.lane.splice(0, told.lane.length - 2)")
    assert panes.evaluate("told.lane.map(({ kind }) => kind).toSorted()") == ["base", "dynamo"]
    lane = told(panes, "dynamo")
    assert {name: lane[name] for name in ("run", "state", "end", "count", "turns")} == {
        "run": "1d".ljust(32, "0"),
        "state": "done",
        "end": {"end": "eos"},
        "count": len(ANSWER),
        "turns": 1,
    }


def test_stop_settles_a_running_answer_and_says_so(panes):
    running = both("7", "Go on.", NEXT, end="")
    show(panes, running, state="running")
    box = pane(panes, "dynamo", ".dm-text")
    assert box.get_attribute("aria-busy") == "true"
    dispatch(panes, "stop")
    assert told(panes, "dynamo")["end"] == {"end": "cancelled"}
    assert box.get_attribute("aria-busy") == "false"
    assert pane(panes, "dynamo", ".dm-tally").inner_text() == "16 tokens in 9 passes, stopped"
    spoken = pane(panes, "dynamo", ".dm-announce").text_content()
    assert spoken == "DynaMo stopped: 16 tokens in 9 forward passes."
    show(panes, running, SECOND)  # the server closes nothing: the next header does
    assert pane(panes, "dynamo", ".dm-tally").all_text_contents()[0].endswith(", stopped")


def test_a_recording_says_that_it_is_one_and_is_not_announced(open_panes):
    page = open_panes()
    show(page, both("8", "Hello", ANSWER, recorded="an H200, November 2026"))
    assert pane(page, "base", ".dm-badge").inner_text() == "recording"
    assert pane(page, "base", ".dm-announce").text_content() == ""
    show(page, FIRST)
    assert pane(page, "base", ".dm-badge").is_hidden()
    assert pane(page, "base", ".dm-announce").text_content().startswith("Base model finished: 11 tokens")


def test_a_blind_answer_gives_nothing_away(panes):
    answers = ["Sure, what time?", "I found a nice place."]
    show(panes, tuple(run(f"9{i}", "blind", "Which?", [answer]) for i, answer in enumerate(answers)))
    titles = panes.locator(".dm-pane-title").all_inner_texts()
    assert titles == ["Left", "Right"]
    assert panes.locator(".dm-answer").all_inner_texts() == answers
    assert panes.locator(".dm-pane :is(.dm-chunk, .dm-bar, .dm-tally:visible)").count() == 0
    assert panes.locator(".dm-footer").all_inner_texts() == ["", ""]
    assert panes.locator("[data-action=trace]:visible").count() == 0
    panes.locator(".dm-answer").nth(1).click()
    assert panes.evaluate("told.show") == []


# ---- taking it away


def test_an_answer_is_copied_with_and_without_the_clipboard_at_hand(open_panes):
    page = open_panes(permissions=["clipboard-read", "clipboard-write"])
    show(page, FIRST, SECOND)
    page.evaluate(
        """() => { window.said = [];  // the word stands for a moment only
        for (const label of document.querySelectorAll("[data-action=copy] span"))
          new MutationObserver(() => said.push(label.textContent)).observe(label, { childList: true }); }"""
    )
    for count, side in enumerate(("base", "dynamo"), 1):
        if side == "dynamo":  # as where the page is served over plain http
            page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
        copy = pane(page, side, "[data-action=copy]")
        copy.click()
        page.wait_for_function(
            "(count) => said.filter((word) => word === 'Copied').length === count", arg=count
        )
        assert pane(page, side, ".dm-announce").text_content() == "Copied"
        assert page.evaluate("navigator.clipboard.readText()") == "".join(one_by_one(NEXT)).strip()
        copy.get_by_text("Copy", exact=True).wait_for()
    assert page.evaluate("document.activeElement.dataset.action") == "copy"


def test_text_and_trace_are_saved_whole(panes, tmp_path):
    show(panes, FIRST, SECOND)

    def saved(side: str, action: str) -> tuple[str, str]:
        with panes.expect_download() as download:
            pane(panes, side, f"[data-action={action}]").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path.name, path.read_text(encoding="utf-8")

    assert saved("dynamo", "text") == ("dynamo-dynamo-2d000000.txt", "".join(one_by_one(NEXT)).strip() + "\n")
    assert saved("dynamo", "trace") == ("dynamo-dynamo-2d000000.ndjson", *KNOWN.values())
    assert saved("base", "trace") == ("dynamo-base-2b000000.ndjson", SECOND[0])  # forgotten by the server


def test_there_is_nothing_to_take_away_before_the_end(panes):
    buttons = panes.locator(".dm-quiet-button:enabled")
    assert buttons.count() == 0
    show(panes, both("7", "Go on.", NEXT, end=""), state="running")
    assert buttons.count() == 0
    show(panes, FIRST)
    assert buttons.count() == 6
    assert all(buttons.nth(i).bounding_box()["height"] >= 24 for i in range(6))
