"""The drift audit's card and the quality dial's rows by themselves, on values written by hand."""

from __future__ import annotations

import json
import re

import pytest
from cards import dispatch, give, give_for_sure, lane
from fakes import HOSTILE
from pages import assert_accessible

from dynamo.ui.components import script

RUN = "1" * 32
FIGURES = {"nats": 0.82, "below_1_percent": 0.25, "outside_top_k": 0.125, "repetition": 0.0, "tokens": 8}
AUDIT = {
    "run": RUN,
    "top_k": 50,
    "tokens": [
        {"text": "A", "p": 1.0, "rank": 0},
        {"text": " table", "p": 0.31, "rank": 0},
        {"text": " for", "p": 0.1, "rank": 1},
        {"text": " seven", "p": 0.004, "rank": 11},
        {"text": HOSTILE, "p": 0.00002, "rank": 73},
        {"text": "\n", "p": 0.2, "rank": 2},
        {"text": ".", "p": 0.9, "rank": 0},
        {"text": "", "p": 0.97, "rank": 0},
    ],
    "dynamo": FIGURES,
    "base": {**FIGURES, "nats": 1.47, "below_1_percent": 0.0},
}
ROWS = [
    {"threshold": 0.0, "text": [["What", " time", HOSTILE], [" you"]], "passes": 2, "tokens": 4,
     "ms": 30.0, "nats": 1.2, "below": 0.08},
    {"threshold": 0.5, "text": [["What", " time"], [" would"], [" you"]], "passes": 3, "tokens": 4,
     "ms": 40.0, "nats": 0.6, "below": 0.0},
    {"threshold": 1.0, "text": [["What"], [" time"]], "passes": 2, "tokens": 2, "ms": 30.0},
]  # fmt: skip


def ndjson(*lines: dict) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def at_rest(open_page, cards_url, **options):
    page = open_page(f"{cards_url}?__theme=light", **options)
    page.wait_for_selector(".dm-dial")
    return page


@pytest.fixture(scope="module")
def shared_cards(open_shared_page, cards_url):
    return at_rest(open_shared_page, cards_url)


@pytest.fixture
def cards(shared_cards):
    """Both cards without a value, on a page that tests share."""
    for name in ("audit", "strip"):
        if shared_cards.input_value(f"#value-{name} textarea"):
            give_for_sure(shared_cards, name, "")
    dispatch(shared_cards, "lane", lane(None, [], "empty"))
    return shared_cards


@pytest.fixture(scope="module")
def filled(open_shared_page, cards_url):
    """An audit, and a strip of three rows, all done: for tests that only look."""
    return fill(at_rest(open_shared_page, cards_url))


def fill(page):
    give(page, "audit", json.dumps(AUDIT))
    give(page, "strip", ndjson(*ROWS, {"done": True}))
    page.locator(".dm-audit-token").nth(7).wait_for()
    page.locator(".dm-dial tbody tr").nth(2).wait_for()
    return page


# ---- the audit


def test_before_an_answer_the_audit_says_in_one_sentence_what_will_come(cards):
    assert cards.inner_text(".dm-audit").split("\n")[-1].startswith("After each answer the base model reads")
    assert cards.locator(".dm-audit table:visible").count() == 0


def test_tokens_are_tinted_by_surprise_and_the_odd_ones_underlined(filled):
    tokens = filled.locator(".dm-audit-token")
    surprise = tokens.evaluate_all("(all) => all.map((one) => +one.style.getPropertyValue('--surprise'))")
    assert surprise == pytest.approx([0, 0.17, 0.33, 0.8, 1, 0.23, 0.02, 0], abs=0.006)
    underlined = tokens.evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one.querySelector('b')).textDecorationStyle === 'wavy')"
    )
    assert underlined == [False, False, False, True, True, False, False, False]
    assert filled.locator(".dm-audit-text").text_content() == "A table for seven" + HOSTILE + "\n.end"


def test_the_odd_tokens_are_told_in_words_the_oddest_first(filled):
    assert (
        filled.inner_text(".dm-audit-finding") == "2 of 8 tokens are below 1 % or outside the base's top 50:"
    )
    first, second = filled.locator(".dm-audit-odd li").all_text_contents()
    assert (
        first == f"“{HOSTILE}”: 0.002 %, its 74th choice, outside its top 50: it would never have sampled it"
    )
    assert second == "“seven”: 0.4 %, its 12th choice"
    assert filled.locator(".dm-audit img").count() == 0


def test_many_odd_tokens_are_folded_away(cards):
    odd = [{"text": f" w{i}", "p": 0.001 + i / 10000, "rank": 20} for i in range(9)]
    give(cards, "audit", json.dumps({**AUDIT, "tokens": odd}))
    cards.get_by_text("3 more").click()
    assert cards.locator(".dm-audit li:visible").count() == 9


def test_the_lanes_figures_stand_side_by_side_with_their_caution(filled):
    rows = [row.split("\t") for row in filled.locator(".dm-audit tbody tr").all_inner_texts()]
    assert [(row[0].split(" ")[0], *row[1:]) for row in rows] == [
        ("Nats", "0.82", "1.47"),
        ("Below", "25 %", "0 %"),
        ("Outside", "12.5 %", "12.5 %"),
        ("Repetition", "0 %", "0 %"),
        ("Tokens", "8", "8"),
    ]
    assert "Lower is not automatically better" in filled.inner_text(".dm-audit-caution")


def test_a_token_tells_its_probability_on_hover_and_on_focus(filled):
    filled.locator(".dm-audit-token").nth(1).hover()
    assert filled.inner_text(".dm-audit .dm-tip") == "“table”\nthe base gives it 31 %, its 1st choice"
    filled.keyboard.press("Escape")
    assert filled.is_hidden(".dm-audit .dm-tip")
    filled.locator(".dm-audit-token").first.focus()
    filled.keyboard.press("End")
    assert filled.inner_text(".dm-audit .dm-tip").startswith("the end of the turn\n")
    filled.keyboard.press("ArrowLeft")
    assert filled.inner_text(".dm-audit .dm-tip").startswith("“.”\n")


def test_an_audit_says_that_it_is_of_the_answer_before(cards):
    """While the next answer runs the audit says that it is of the one before."""
    fill(cards)
    dispatch(cards, "lane", lane(RUN, []))
    assert cards.is_hidden(".dm-audit-stale")
    dispatch(cards, "lane", lane("2" * 32, [], "running"))
    assert cards.is_visible(".dm-audit-stale")
    give(cards, "audit", "")
    cards.locator(".dm-audit[data-state=empty]").wait_for()


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (22, "22nd"),
        (113, "113th"),
    ],
)
def test_ordinals_are_english(arithmetic, number, word):
    assert arithmetic("ordinal(args[0])", number, files=("audit/words.js",)) == word


def test_an_answer_without_tokens_is_no_finding(arithmetic):
    files = ("audit/words.js",)
    assert arithmetic("findingInWords(0, 0, 50)", files=files) == "There is no text to read."
    assert arithmetic("findingInWords(0, 9, 50)", files=files).startswith("No token is below 1 % or outside")
    assert arithmetic("figureRows(args[0])[0].slice(2)", {"top_k": 5, "dynamo": FIGURES}, files=files) == [
        "0.82",
        "–",
    ]


# ---- the dial


def test_before_the_click_the_dial_says_what_it_will_do(cards):
    assert cards.inner_text(".dm-dial").startswith("One click decodes this prompt at seven thresholds")
    assert cards.locator(".dm-dial table:visible, .dm-dial progress:visible").count() == 0


def test_rows_come_one_by_one_under_a_progress_bar(cards):
    give(cards, "strip", ndjson({"thresholds": [0, 0.5, 1]}))
    cards.get_by_text("0 of 3 thresholds done; decoding at 0 …").wait_for()
    give(cards, "strip", ndjson({"thresholds": [0, 0.5, 1]}, ROWS[0]))
    cards.get_by_text("1 of 3 thresholds done; decoding at 0.5 …").wait_for()
    cards.evaluate("document.querySelector('.dm-dial tbody tr').dataset.kept = 'yes'")
    give(cards, "strip", ndjson({"thresholds": [0, 0.5, 1]}, *ROWS, {"done": True}))
    cards.locator(".dm-dial tbody tr").nth(2).wait_for()
    assert cards.locator(".dm-dial tbody tr[data-kept]").count() == 1, "a row that stands is not drawn again"
    assert cards.is_hidden(".dm-dial-progress")
    give(cards, "strip", ndjson(ROWS[2]))
    cards.get_by_text("1 of 7 thresholds done; decoding …").wait_for()
    assert cards.locator(".dm-dial tbody tr").count() == 1


def test_a_row_holds_tokens_per_pass_quality_and_the_text_in_chunks(filled):
    cells = filled.locator(".dm-dial tbody tr").first.locator("th, td.dm-dial-measure > span:nth-child(2)")
    assert cells.all_inner_texts() == ["0", "2.00", "1.20", "8 %"]
    unmeasured = filled.locator(".dm-dial tbody tr").last.locator("td.dm-dial-measure > span:nth-child(2)")
    assert unmeasured.all_inner_texts() == ["1.00", "–", "–"]
    chunks = filled.locator(".dm-dial tbody tr").first.locator(".dm-chunk")
    assert chunks.first.text_content() == "What time" + HOSTILE
    assert chunks.evaluate_all("(all) => all.map((one) => one.className)") == [
        "dm-chunk size-3",
        "dm-chunk size-1",
    ]
    assert filled.locator(".dm-dial img").count() == 0


def test_bars_share_a_scale_down_each_column(filled):
    shares = filled.locator(".dm-dial tbody tr").evaluate_all(
        """(all) => all.map((row) => [...row.querySelectorAll("i")].map((bar) =>
        +bar.style.getPropertyValue("--share")))"""
    )
    assert shares[0] == pytest.approx([2 / 3, 1, 1])
    assert shares[1] == pytest.approx([4 / 9, 0.5, 0])
    assert shares[2] == pytest.approx([1 / 3, 0, 0])


def test_stop_ends_the_dial_where_it_is(cards):
    give(cards, "strip", ndjson(*ROWS[:2]))
    cards.get_by_text("2 of 7 thresholds done; decoding …").wait_for()
    dispatch(cards, "stop", None)
    cards.get_by_text("Stopped: 2 of 7 thresholds done.").wait_for()
    assert cards.locator(".dm-dial progress:visible").count() == 0


def test_a_threshold_is_chosen_by_its_button_and_then_in_use(cards):
    dispatch(cards, "lane", lane(RUN, [], threshold=0.3))
    fill(cards)
    cards.get_by_role("button", name="Use threshold 0.5").click()
    cards.wait_for_function("document.querySelector('#told textarea, #told input').value")
    assert cards.input_value("#told textarea, #told input") == '{"threshold": 0.5}'
    dispatch(cards, "lane", lane(RUN, [], threshold=0.5))
    assert cards.locator(".dm-dial tr.in-use th").inner_text() == "0.5"
    assert cards.locator(".dm-dial button:disabled").inner_text() == "In use"


def test_a_phone_gets_cards_and_keeps_the_table_for_readers_that_speak(open_page, cards_url):
    page = at_rest(open_page, cards_url, viewport={"width": 375, "height": 800})
    give(page, "strip", ndjson(*ROWS, {"done": True}))
    give(page, "audit", json.dumps(AUDIT))
    page.locator(".dm-dial tbody tr").nth(2).wait_for()
    page.locator(".dm-audit-token").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    too_wide = page.locator(".dm-card *:visible").evaluate_all(
        """(all) => all.filter((one) => one.getBoundingClientRect().right > 375)
        .map((one) => `${one.tagName} ${one.className}`)"""
    )
    assert too_wide == []
    assert page.locator(".dm-dial-label:visible").count() == 9
    assert page.get_by_role("row").count() >= 4
    buttons = page.locator(".dm-dial button, .dm-audit summary:visible")
    assert min(buttons.evaluate_all("(all) => all.map((one) => one.offsetHeight)")) >= 24


def test_axe_finds_nothing_to_complain_about(cards):
    assert_accessible(cards, ".dm-audit", ".dm-dial")
    give(cards, "audit", json.dumps(AUDIT))
    give(cards, "strip", ndjson(*ROWS))
    cards.locator(".dm-dial tbody tr").nth(2).wait_for()
    cards.locator(".dm-audit-token").nth(3).hover()
    assert_accessible(cards, ".dm-audit", ".dm-dial", dark=True)


@pytest.mark.parametrize("name", ["audit", "strip"])
def test_no_function_of_a_card_hides_another(name):
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script(name), re.MULTILINE)
    assert len(names) == len(set(names)) > 20
