"""Which pass the inspector shows: newest, played, pinned, of an earlier answer; what it has to ask for."""

from __future__ import annotations

import json

import pytest
from cards import (
    LONG_RUN,
    NEXT_RUN,
    RUN,
    dispatch,
    give,
    give_for_sure,
    lane,
    show,
)

# ---- which pass


def test_all_missing_passes_come_in_one_call_when_the_run_is_over(open_inspector, runs):
    page = open_inspector()
    calls = []
    page.on("request", lambda request: "component_server" in request.url and calls.append(request.url))
    values, passes = runs[1][LONG_RUN]
    give(page, "inspector", values[5])
    page.get_by_text("Pass 6 of 6").wait_for()
    for _ in range(3):  # a playhead makes the pane tell the same again and again
        dispatch(page, "lane", lane(LONG_RUN, passes))
    asked = "() => performance.getEntriesByType('resource').some(({ name }) => /component_server/.test(name))"
    page.wait_for_function(asked)
    page.wait_for_timeout(300)
    assert len(calls) == 1
    for index in (0, 26, 13):
        show(page, LONG_RUN, index, pinned=False)
        assert page.inner_text(".dm-title") == f"Pass {index + 1} of 27"
    assert len(calls) == 1


def test_while_the_player_holds_back_values_are_kept_and_the_panes_lead(open_inspector, runs):
    page = open_inspector()
    values, passes = runs[1][LONG_RUN]
    dispatch(page, "lane", lane(LONG_RUN, passes[:2], "running"))
    dispatch(page, "playhead", {"milliseconds": 1.0})
    give_for_sure(page, "inspector", values[20])
    page.wait_for_timeout(200)
    assert page.evaluate("shown") == []
    dispatch(page, "lane", lane(LONG_RUN, passes))
    show(page, LONG_RUN, 0, pinned=False)
    show(page, LONG_RUN, 1, pinned=False)
    assert page.inner_text(".dm-live") == "Following"
    dispatch(page, "playhead", {"milliseconds": None})
    page.get_by_text("Pass 21 of 27").wait_for()  # all is shown, so is the newest value
    assert page.is_hidden(".dm-live")


def test_a_value_that_comes_before_its_lane_is_shown_once_the_lane_is_done(open_inspector, runs):
    """Of every other quick answer nothing was taken apart: its last value came first."""
    page = open_inspector()
    values, passes = runs[1][RUN]
    dispatch(page, "lane", lane(RUN, [], "running"))
    give_for_sure(page, "inspector", values[2])
    page.wait_for_timeout(200)
    assert page.evaluate("shown") == []
    dispatch(page, "lane", lane(RUN, passes))
    page.get_by_text("Pass 3 of 3").wait_for()


def test_a_pinned_pass_stays_until_it_is_let_go(open_inspector, runs):
    page = open_inspector()
    values, passes = runs[1][RUN]
    dispatch(page, "lane", lane(RUN, passes, "running"))
    give(page, "inspector", values[0])
    page.get_by_text("Pass 1 of").wait_for()
    show(page, RUN, 0)
    give_for_sure(page, "inspector", values[1])
    page.wait_for_timeout(200)
    assert page.inner_text(".dm-title") == "Pass 1 of 3"
    page.get_by_role("button", name="Follow again").click()
    page.get_by_text("Pass 2 of 3").wait_for()
    page.get_by_role("button", name="Next pass").click()
    page.get_by_text("Pass 3 of 3").wait_for()
    assert page.is_disabled(".dm-next")
    assert page.inner_text(".dm-live") == "Follow again"


def test_an_earlier_answers_pass_can_be_looked_at_and_says_so(inspector, runs):
    values, passes = runs[1][NEXT_RUN]
    give(inspector, "inspector", values[0])
    dispatch(inspector, "lane", lane(NEXT_RUN, passes))
    show(inspector, RUN, 1)
    assert inspector.inner_text(".dm-subtitle") == "emitted 2 tokens · an earlier answer"
    assert inspector.inner_text(".dm-title") == "Pass 2 of 3"


def test_the_last_answers_pass_fades_until_the_new_ones_first_is_there(inspector, runs):
    values, passes = runs[1][NEXT_RUN]
    faded = inspector.locator(".dm-inspector[data-waiting]")
    opacity = "root => getComputedStyle(root.firstElementChild).opacity"
    assert faded.count() == 0
    dispatch(inspector, "lane", lane(NEXT_RUN, [], "running"))
    assert faded.evaluate(opacity) == "0.35"
    give(inspector, "inspector", values[0])
    dispatch(inspector, "lane", lane(NEXT_RUN, passes[:1], "running"))
    inspector.get_by_text("Pass 1 of").wait_for()
    assert faded.count() == 0


def test_a_pass_that_nobody_has_is_told_and_the_rest_stays(inspector):
    dispatch(inspector, "show", {"run": "7" * 32, "index": 3, "pinned": True})
    inspector.get_by_text("This pass is no longer stored. Generate again to look inside it.").wait_for()
    assert inspector.inner_text(".dm-title") == "Pass 3 of 3"


def test_a_new_chat_brings_it_back_to_rest(inspector):
    dispatch(inspector, "lane", lane(None, [], "empty"))
    inspector.get_by_text("Inside a forward pass").wait_for()
    assert inspector.locator(".dm-sketch:visible").count() == 3


def test_enlarge_tells_python_run_and_pass(inspector):
    show(inspector, RUN, 1)
    inspector.get_by_role("button", name="Enlarge").click()
    inspector.wait_for_function("document.querySelector('#told textarea, #told input').value")
    assert inspector.input_value("#told textarea, #told input") == f'{{"run": "{RUN}", "index": 1}}'


@pytest.mark.parametrize(("motion", "interval"), [("reduce", 500), ("no-preference", 33)])
def test_it_draws_as_often_as_the_visitor_likes_motion(open_inspector, runs, motion, interval):
    page = open_inspector(reduced_motion=motion)
    values, passes = runs[1][LONG_RUN]
    give(page, "inspector", values[0])
    page.get_by_text("Pass 1 of 1").wait_for()
    dispatch(page, "lane", lane(LONG_RUN, passes))
    show(page, LONG_RUN, 1, pinned=False)
    draws, elapsed = page.evaluate(
        """async (run) => {
          const start = performance.now();
          let draws = 0;
          const grids = document.querySelector(".dm-stages");
          new MutationObserver(() => draws++).observe(grids, { subtree: true, attributes: true });
          for (let i = 0; i < 100; i++) {
            const detail = { run, index: (i + 2) % 27, pinned: false }; // ends at another grid than before
            dynamoBus.dispatchEvent(new CustomEvent("show", { detail }));
            await new Promise((done) => setTimeout(done, 10));
          }
          while (!draws) await new Promise(requestAnimationFrame); // a slow draw puts off the next
          return [draws, performance.now() - start];
        }""",
        LONG_RUN,
    )
    assert draws <= 1 + elapsed / interval


def test_an_inspector_that_begins_late_shows_the_pass_that_the_panes_are_at(open_page, cards_url, runs):
    values, passes = runs[1][RUN]
    said = {
        "lanes": {"dynamo": {**lane(RUN, passes), "count": 1}},
        "player": {"playing": True, "mode": "auto", "slowdown": 1},
        "playhead": {"milliseconds": 1.0},
        "asked": {"run": RUN, "index": 0, "pinned": False},
    }
    page = open_page(
        cards_url, script=f"window.dynamoBus = Object.assign(new EventTarget(), {json.dumps(said)})"
    )
    page.get_by_text("Pass 1 of 3").wait_for()
    give_for_sure(page, "inspector", values[2])
    assert page.inner_text(".dm-title") == "Pass 1 of 3"


def test_the_cache_asks_once_in_pieces_and_forgets_the_oldest_run(arithmetic):
    outcome = arithmetic(
        """(async () => {
          const calls = [];
          const cache = new PassCache(async ([run, indices]) => {
            calls.push([run, indices.length]);
            if (calls.length === 3) throw new Error("the line is down");
            const answer = (index) => JSON.stringify({ run, pass: { pass: index } });
            return indices.map((index) => (index === 7 ? null : answer(index)));
          });
          cache.put({ run: "a", pass: { pass: 599 } });
          const found = await Promise.all([cache.find("a", 3), cache.find("a", 4), cache.find("a", 7)]);
          const again = await cache.find("a", 7);
          const [lost, later] = [await cache.find("b", 0), await cache.find("b", 0)];
          for (const run of "cdefghij") cache.of(run);
          const numbers = found.map((value) => value?.pass.pass ?? null);
          const kept = [...cache.runs.keys()].join("");
          return { calls, found: numbers, again, lost, later: later.pass.pass, kept };
        })()""",
        files=("inspector/passes.js",),
    )
    assert outcome == {
        "calls": [["a", 512], ["a", 87], ["b", 1], ["b", 1]],
        "found": [3, 4, None],
        "again": None,
        "lost": None,
        "later": 0,
        "kept": "cdefghij",
    }
