"""The inspector by itself: which pass it shows, what it says of it, and what it answers to the slider."""

from __future__ import annotations

import re

from cards import (
    NASTY_RUN,
    NEXT_RUN,
    RUN,
    WORDS,
    dispatch,
    fill,
    give,
    joint,
    lane,
    show,
    verdict,
)
from fakes import HOSTILE
from pages import assert_accessible

from dynamo.sampling.records import StepRecord


def grid(page, stage: str) -> list[bool]:
    """Which of the hundred cells of a stage are left."""
    return page.locator(f".dm-stage-{stage} .dm-cell:not(.dm-sketch *)").evaluate_all(
        "(cells) => cells.map((cell) => !cell.classList.contains('gone'))"
    )


# ---- what it says of a pass


def test_at_rest_it_teaches_the_three_stages_without_made_up_numbers(open_inspector):
    page = open_inspector()
    assert page.inner_text(".dm-title") == "Inside a forward pass"
    assert page.locator(".dm-sketch:visible").count() == 3
    assert page.locator(".dm-inspector table:visible, .dm-inspector button:visible").count() == 0
    captions = page.locator(".dm-stage figcaption").all_inner_texts()
    assert [caption.split("\n")[0] for caption in captions] == ["Product", "Mask", "Threshold"]
    assert not re.search(r"\d", page.inner_text(".dm-inspector"))


def test_three_stages_are_drawn_with_the_chunk_that_was_drawn(inspector):
    show(inspector, RUN, 0)
    assert verdict(inspector) == "This pass emitted 3 tokens."
    assert inspector.inner_text(".dm-verdict span") == "Its best chunk has 60 %, above 25 % = 0.5²."
    assert inspector.locator(".dm-emitted .dm-token").all_inner_texts() == ["·What", "·time", "·would"]
    kept = [[at for at, left in enumerate(grid(inspector, stage)) if left] for stage in ("mask", "threshold")]
    assert kept == [[0, 1, 21], [0, 1]]
    assert sum(grid(inspector, "product")) == 9
    assert (
        inspector.locator("td.dm-cell.picked").evaluate_all("(cells) => cells.map((c) => c.dataset.at)")
        == ["0"] * 3
    )
    assert inspector.locator(".dm-stage-result").all_inner_texts() == [
        "likeliest pair: “·What·time” 36 %",
        "20.7 % kept; likeliest pair: “·What·time” 60 %",
        "2 chunks left to draw from",
    ]
    assert inspector.locator(".dm-third li").all_inner_texts() == ["·would\n100 %"]


def test_a_newline_in_the_likeliest_pair_is_seen(arithmetic):
    """It was trimmed away, as if the pair were one token."""
    told = arithmetic(
        "likeliestInWords({ text: [['.', ' a'], [' b', '\\n']] }, [0.1, 0.6, 0.2, 0.1])",
        files=("inspector/words.js",),
    )
    assert told == "likeliest pair: “.⏎” 60 %"


def test_the_ladder_says_which_orders_were_given_up_and_why(inspector):
    show(inspector, RUN, 2)
    assert verdict(inspector) == "This pass backed off to 1 token."
    rungs = [rung.split("\n") for rung in inspector.locator(".dm-ladder li").all_inner_texts()]
    assert rungs == [
        ["3 tokens", "20 % ≤ 25 %", "backed off"],
        ["2 tokens", "40 % ≤ 50 %", "backed off"],
        ["1 token", "always possible", "emitted"],
    ]
    show(inspector, RUN, 1)
    assert verdict(inspector) == "This pass backed off from 3 tokens and emitted 2 tokens."


def test_a_cell_is_read_in_all_three_stages(inspector):
    show(inspector, RUN, 0)
    inspector.locator(".dm-stage-product td.dm-cell").first.focus()
    inspector.keyboard.press("ArrowRight")
    assert inspector.inner_text(".dm-readout") == (
        "·What + ·would → product 18 % → after the mask 30 % → 33.3 % of what is left"
    )
    inspector.keyboard.press("ArrowDown")
    assert inspector.inner_text(".dm-readout") == "·At + ·would → product 9 % → removed by the mask"
    assert inspector.locator(".dm-cell.read").count() == 3


def test_exact_mode_tells_of_drafts_and_strikes_the_rejected_ones_through(inspector, runs):
    drafts = joint({(0, 0, 0): 0.5, (0, 1, 0): 0.1, (0, 1, 2): 0.2, (2, 1, 1): 0.2})
    values, _ = fill(
        runs[0],
        "5" * 32,
        [
            StepRecord((0,), 1, 0.02, prefill=True, drafted=(11, 22), joint=drafts, exact=True),
            StepRecord((11, 1), 2, 0.01, rejected=(22,), joint=drafts, exact=True),
            StepRecord((0,), 1, 0.01, rejected=(11, 22), refused=(0.04, 0.5), joint=drafts, exact=True),
        ],
        words=[WORDS[0], WORDS[1], [" do", " so", " <b>at"]],
    )
    give(inspector, "inspector", values[0])
    inspector.get_by_text("It drafts 2 tokens for the next pass to verify.").wait_for()
    assert verdict(inspector) == "This pass had no drafts to verify and drew 1 token itself."
    assert inspector.inner_text(".dm-about") == "Drafts for the next pass, after “·What”:"
    assert inspector.locator(".dm-stage figcaption b").last.inner_text() == "Drafts"
    assert inspector.inner_text(".dm-scale").split()[-2:] == ["out", "drafted"]
    assert [at for at, left in enumerate(grid(inspector, "threshold")) if left] == [0, 1]
    assert inspector.locator("td.dm-cell.picked").first.get_attribute("data-at") == "1"
    assert inspector.locator(".dm-stage-result").last.inner_text() == "2 tokens drafted"
    assert inspector.locator(".dm-third h3").inner_text() == "Third token, given “·What·would”"
    dispatch(inspector, "threshold", 0.9)  # exact mode's drafts do not depend on it
    assert verdict(inspector).startswith("This pass had no drafts")
    assert inspector.locator(".dm-drafts, .dm-tries").filter(visible=True).count() == 0

    give(inspector, "inspector", values[1])
    inspector.get_by_text("A draft is kept with chance p / q").wait_for()
    assert verdict(inspector) == "This pass had 2 drafts to verify, kept 1 and drew 1 token itself."
    assert inspector.locator(".dm-drafts s").all_inner_texts() == ["·<b>at"]
    assert not any(grid(inspector, "threshold"))

    give(inspector, "inspector", values[2])
    reason = (
        "had 50 % as a draft, 4 % under the base: kept with a chance of 8 %, and the draw went against it"
    )
    inspector.get_by_text(f"{reason}. “·<b>at” fell with it.").wait_for()


def test_columns_of_one_beginning_have_different_names(arithmetic):
    names = [" absorb", " absorbs", " air", " absor"]
    script = "args[0].map((name) => distinctName(name, args[0]))"
    assert arithmetic(script, names, files=("inspector/grids.js",)) == [" a…rb", " a…bs", " air", " a…or"]


def test_without_the_mask_no_cell_is_called_removed(arithmetic):
    """Nor the ones that are too small to be recorded."""
    files = ("inspector/words.js",)
    joint = {"product": [0.9, 1e-9], "masked": [0.9, 0]}
    assert arithmetic("isUnmasked({ kept: 1 }, args[0])", joint, files=files)
    assert not arithmetic("isUnmasked({ kept: 0.4 }, args[0])", joint, files=files)
    assert not arithmetic("isUnmasked({ kept: 1 }, args[0])", {**joint, "product": [0.9, 0.1]}, files=files)
    captions = "stageCaptions({}, { order: 2 }, 0.5, args[0])[1]"
    assert arithmetic(captions, True, files=files) == "off: drops nothing"
    assert arithmetic(captions, False, files=files).startswith("drops pairs never seen")


def test_a_correlators_stage_is_no_mask_and_a_grown_chunk_has_no_threshold(arithmetic):
    files = ("inspector/grids.js", "inspector/words.js")
    assert arithmetic("correctionTitle('correlator')", files=files) == "Given the first"
    assert arithmetic("correctionTitle()", files=files) == "Mask"
    caption = "stageCaptions({}, { order: 3, correction: args[0] }, 0.5, false)[1]"
    assert arithmetic(caption, "correlator", files=files).startswith("each row: what follows")
    assert arithmetic(caption, "smoothed", files=files).startswith("weighted by")
    cell = "correctedInWords(0, { correction: 'correlator' }, { masked: [0.1], given: [0.25] }, 'a')"
    assert arithmetic(cell, files=files) == ["25 % given “a”", "together 10 %"]
    grown = {"anchored": True, "ids": [1, 2], "text": ["a", "b"], "backoffs": [[3, "threshold", 0.2, 0.25]]}
    assert arithmetic("triesOf(args[0])", grown, files=files) == []
    phrase, reason = arithmetic("verdictInWords(args[0], {})", grown, files=files)
    assert phrase == "This pass drew its first token alone and grew to 2 tokens."
    assert reason.startswith("Backed off from 3")


def test_a_pair_drawn_from_beyond_the_tables_is_told(arithmetic):
    after = {"kept": 2, "outside": 1, "exact": True}
    line = {"order": 2, "picked": [0, 12], "text": [["a"] * 10, ["b"] * 10]}
    message = arithmetic("leftInWords(args[0], args[1])", line, after, files=("inspector/words.js",))
    assert message.endswith("1 beyond the candidates shown; the one drawn is there")
    inside = {**line, "picked": [0, 1]}
    assert "drawn is" not in arithmetic(
        "leftInWords(args[0], args[1])", inside, after, files=("inspector/words.js",)
    )


def test_hostile_text_is_text_in_grids_notes_and_titles(inspector, runs):
    values, passes = runs[1][NASTY_RUN]
    give(inspector, "inspector", values[0])
    dispatch(inspector, "lane", lane(NASTY_RUN, passes))
    show(inspector, NASTY_RUN, 0)
    assert HOSTILE.replace(" ", "·") in inspector.locator(".dm-stage-mask tbody th").first.text_content()
    assert HOSTILE.replace(" ", "·") in inspector.locator(".dm-stage-mask .dm-stage-result").text_content()
    assert inspector.locator(".dm-inspector img, .dm-inspector b b").count() == 0
    assert inspector.evaluate("window.pwned") is None


def test_a_single_token_run_has_no_stages(inspector, runs):
    alone = StepRecord((1,), 1, 0.01, probabilities=(0.3,))
    values, _ = fill(runs[0], "6" * 32, [alone], threshold=1.0)
    give(inspector, "inspector", values[0])
    inspector.get_by_text("It built no joint distribution: single tokens were asked for").wait_for()
    assert verdict(inspector) == "This pass emitted 1 token."
    assert inspector.locator(".dm-stage table").filter(visible=True).count() == 0


# ---- the threshold slider


def test_the_slider_asks_what_if_and_its_return_ends_it(inspector):
    show(inspector, RUN, 0)
    before = inspector.locator(".dm-inspector").bounding_box()
    dispatch(inspector, "threshold", 0.8)
    assert verdict(inspector) == "At threshold 0.8 this pass would have backed off from 3 tokens."
    assert "not above 64 % = 0.8²" in inspector.inner_text(".dm-verdict span")
    assert not any(grid(inspector, "threshold"))
    assert inspector.locator(".dm-stage-result").last.inner_text() == "no chunk is left: back off"
    assert inspector.locator(".dm-inspector").bounding_box() == before, "nothing may move under the slider"
    dispatch(inspector, "threshold", 0.3)
    assert verdict(inspector) == "At threshold 0.3 this pass would still have emitted 3 tokens."
    assert sum(grid(inspector, "threshold")) == 3
    dispatch(inspector, "threshold", 0.5)
    assert verdict(inspector) == "This pass emitted 3 tokens."
    assert inspector.locator(".dm-asking").count() == 0


def test_what_if_counts_the_orders_that_were_given_up(inspector):
    for index, threshold, words in (
        (1, 0.4, "At threshold 0.4 this pass would have emitted 3 tokens instead of 2."),
        (1, 0.75, "At threshold 0.75 this pass would have backed off to 1 token."),
        (2, 0.9, "At threshold 0.9 this pass would still have backed off to 1 token."),
        (2, 0.46, "At threshold 0.46 this pass would still have backed off to 1 token."),
        (2, 0.39, "At threshold 0.39 this pass would have emitted 3 tokens instead of 1."),
    ):
        show(inspector, RUN, index)
        dispatch(inspector, "threshold", threshold)
        assert verdict(inspector) == words


def test_what_if_is_asked_of_one_run_only(inspector, runs):
    show(inspector, RUN, 0)
    dispatch(inspector, "threshold", 0.8)
    assert inspector.locator(".dm-asking").count() or verdict(inspector)
    show(inspector, NEXT_RUN, 0)
    assert verdict(inspector) == "This pass backed off to 1 token."


def test_the_slider_leaves_the_first_two_stages_alone(inspector):
    show(inspector, RUN, 0)
    inspector.evaluate(
        """() => { window.touched = []; new MutationObserver((all) => touched.push(...all.map((one) =>
        one.target.closest?.('.dm-stage')?.className))).observe(document.querySelector('.dm-stages'),
        { subtree: true, attributes: true }) }"""
    )
    dispatch(inspector, "threshold", 0.8)
    verdict(inspector)
    assert set(inspector.evaluate("touched")) == {"dm-stage dm-stage-threshold"}
    assert len(inspector.evaluate("touched")) == 2  # both cells that were left


# ---- for everyone


def test_axe_finds_nothing_to_complain_about(inspector, runs):
    values, passes = runs[1][RUN]
    dispatch(inspector, "lane", lane(None, [], "empty"))
    inspector.get_by_text("Inside a forward pass").wait_for()
    assert_accessible(inspector, ".dm-inspector")
    give(inspector, "inspector", values[0])
    inspector.get_by_text("Pass 1 of ").wait_for()
    dispatch(inspector, "lane", lane(RUN, passes, "running"))
    show(inspector, RUN, 0)
    dispatch(inspector, "threshold", 0.8)
    verdict(inspector)
    assert_accessible(inspector, ".dm-inspector", dark=True)


def test_a_phone_shows_it_without_scrolling_sideways(open_inspector, runs):
    page = open_inspector(viewport={"width": 375, "height": 800})
    give(page, "inspector", runs[1][RUN][0][0])
    page.get_by_text("Pass 1 of 1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.locator(".dm-stage table:visible").count() == 1  # one stage at a time
    page.get_by_role("button", name="Threshold").click()
    assert page.locator(".dm-stage-threshold table").is_visible()
    small = page.locator(".dm-inspector button:visible").evaluate_all(
        "(all) => all.filter((one) => Math.min(one.offsetHeight, one.offsetWidth) < 24).length"
    )
    assert small == 0
