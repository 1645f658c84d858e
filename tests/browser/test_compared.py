"""What an answer is compared with: another threshold, the other lane's answer, the base's opinion."""

from __future__ import annotations

import pytest
from fakes import scripted_pair
from pages import assert_accessible, generate, served, set_threshold
from races import lane

CLASSES = """chunks => chunks.map((chunk) =>
  [[...chunk.classList].sort().join(" "), ...[...chunk.children].map((token) => token.className)])"""
CLOCKS = ("race/clocks.js", "race/fork.js")


@pytest.fixture(scope="module")
def url():
    """Its base leaves out the answer's sixth token."""
    pair = scripted_pair()
    loop = pair.engines.by_name["loop"]
    loop.answer = [*loop.answer[:5], *loop.answer[6:]]
    with served(pair) as url:
        yield url


def look_of(page):
    return page.locator("#pane-dynamo .dm-chunk").evaluate_all(CLASSES)


def test_dragging_the_dial_recolours_the_answer_and_says_that_nothing_was_decoded(page_at, recorded_url):
    page = page_at(recorded_url, viewport={"width": 1280, "height": 720})
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=done]")
    page.locator("#pane-dynamo .dm-chunk").nth(2).click()
    head, text, before = (
        "#pane-dynamo .dm-pane-head",
        page.inner_text("#pane-dynamo .dm-answer"),
        look_of(page),
    )
    height = page.locator("#stage").bounding_box()["height"]
    set_threshold(page, "0.9")
    page.locator(head).get_by_text("ε 0.9: faded tokens would wait").wait_for()
    assert page.inner_text("#pane-dynamo .dm-badge") == "preview, not decoded"
    fewer = page.locator("#pane-dynamo .dm-chunk.fewer").count()
    assert f"{fewer} would emit fewer tokens" in page.inner_text(".dm-timeline-whatif")
    assert page.locator("#pane-dynamo .dm-chunk.fewer .dm-token.cut").count() >= fewer > 0
    assert page.inner_text("#pane-dynamo .dm-answer") == text
    assert page.locator("#stage").bounding_box()["height"] == height, (
        "the dial would move while it is dragged"
    )
    assert_accessible(page, "#pane-dynamo")
    set_threshold(page, "0.05")
    page.locator(head).get_by_text("ε 0.05: dashed passes would emit more").wait_for()
    assert page.locator("#pane-dynamo .dm-chunk.more").count() > 0
    set_threshold(page, "0.5")
    page.locator(head).get_by_text("one to three tokens per pass").wait_for()
    assert page.inner_text("#pane-dynamo .dm-badge") == "recording"
    assert look_of(page) == before


def test_where_the_answers_part_is_marked_in_both_and_opened_by_a_click(page_at, url):
    page = page_at(f"{url}?__theme=light")
    generate(page)
    for pane in ("base", "dynamo"):
        page.locator(f"#pane-{pane}").get_by_text("The answers part after 5 tokens").wait_for()
        assert page.locator(f"#pane-{pane} .dm-token.fork").count() == 1
    assert page.inner_text("#pane-dynamo .dm-token.fork").strip() == "you"
    page.locator("#pane-base .dm-fork-link").click()
    page.wait_for_selector("#pane-dynamo .dm-chunk.selected .dm-token.fork")
    for pane in ("base", "dynamo"):
        box, token = (page.locator(f"#pane-{pane} {part}").bounding_box() for part in (".dm-text", ".fork"))
        assert box["y"] <= token["y"] <= box["y"] + box["height"]
    # The scripted base is as surprised by either, and very much so by every fifth of a few tokens.
    page.locator(".dm-drift-note").get_by_text("too short to say").wait_for()
    assert page.inner_text(".dm-drift") == "–"
    assert_accessible(page, "#stage", dark=True)


def test_answers_part_at_their_first_different_token(arithmetic):
    def fork(left, right, **more):
        lanes = [lane("base", [5.0] * (len(left) - 1)), lane("dynamo", [5.0] * (len(right) - 1), **more)]
        for each, ids in zip(lanes, (left, right), strict=True):
            for step, chunk in zip(each["passes"], ids, strict=True):
                step["ids"] = chunk
        return arithmetic("forkOf({ base: args[0], dynamo: args[1] })", *lanes, files=CLOCKS)

    at = {"base": {"pass": 2, "token": 0}, "dynamo": {"pass": 1, "token": 1}}
    assert fork([[1], [2], [3], [4]], [[1], [2, 7, 8]]) == {"common": 2, "at": at}
    assert fork([[1], [2]], [[3, 2]])["common"] == 0
    assert fork([[1], [2], [3]], [[1], [2]]) is None, "one goes on where the other ends, or is not done"
    assert fork([[1], [2]], [[1], [2, 3]]) is None
    assert fork([[1], [2]], [[5], [6]], prompt="another") is None
    assert fork([[1], [2]], [[5], [6]], lane="blind") is None


def test_drift_is_what_the_base_finds_more_surprising_than_its_own(arithmetic):
    def drift(own, others, tokens=90, error=0.1):
        said = [{"tokens": tokens, "nats": nats, "error": error} for nats in (own, others)]
        audit = dict(zip(("dynamo", "base"), said, strict=True))
        return arithmetic("driftOf(args[0], 'soon')", audit, files=CLOCKS)

    def face(*given, **others):
        faces = drift(*given, **others)
        return faces["drift"], faces["driftNote"]

    assert face(1.5, 1.06) == ("+0.44", "± 0.28 nats: less usual")
    assert face(0.62, 1.06) == ("−0.44", "± 0.28 nats: more usual")
    assert face(1.0, 1.04) == ("−0.04", "± 0.28 nats: within chance")
    assert face(3.0, 1.0, error=0.3) == ("–", "too short to say"), "two errors of the difference are 0.85"
    assert "1.50 nats a token, its own by 1.06" in drift(1.5, 1.06)["driftTitle"]
    for nothing in (drift(1, 1, tokens=0), arithmetic("driftOf(null, 'soon')", files=CLOCKS)):
        assert (nothing["drift"], nothing["driftNote"]) == ("–", "soon")


def test_distinct_pairs_are_shown_of_answers_that_are_long_enough(arithmetic):
    def faces(tokens, different):
        words = [
            *range(different),
            *[0] * (tokens - different),
        ]  # pairs of words that are all other, then one
        variety = "varietyFaces(varietyOf(args[0]), varietyOf(args[0]))"
        said = arithmetic(variety, [{"ids": [word]} for word in words], files=CLOCKS)
        return said["variety"], said["varietyNote"]

    # 80 of 99 pairs, one new and one old added: the error of a share is .0397, of the difference twice that.
    assert faces(100, 79) == ("81 %", "against 81 %, ± 12 points")
    assert faces(20, 15) == ("–", "too short to say") == faces(1, 1)


def test_nothing_is_called_faster_that_may_be_so_by_chance(arithmetic):
    for speed, spread, words in (
        (1.2, 0.05, "faster than"),
        (1.04, 0.05, "the speed of"),
        (0.9, 0, "the speed of"),
    ):
        clocks = {"speedUp": speed, "spread": spread}
        assert arithmetic("leadInWords(args[0])", clocks, files=CLOCKS) == words
