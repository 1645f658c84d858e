"""A race as a link: copied from one page, it sets up the same race on another."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib

from fakes import HOSTILE
from pages import DONE, PROMPT, assert_accessible, generate, set_threshold
from races import short_race

LINK = ("race/link.js",)

# What the clipboard gets, where it has no permission.
NOTE_COPIES = "() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }"


def copied_link(page) -> str:
    page.evaluate(NOTE_COPIES)
    page.click(".dm-share")
    page.wait_for_function("window.copied")
    return page.evaluate("window.copied")


def texts(page) -> list[str]:
    return page.locator(".dm-answer").all_inner_texts()


def test_a_link_brings_the_answer_its_message_and_its_settings(page_at, page_url):
    page = page_at(page_url)
    set_threshold(page, "0.23")
    generate(page)
    link = copied_link(page)
    assert page.inner_text(".dm-status") == "Link copied: message, settings and every pass."
    answers = texts(page)
    other = page_at(link)
    other.get_by_text("The link's message and settings are set up.").wait_for()
    for pane in DONE:
        other.wait_for_selector(pane)
    assert texts(other) == answers
    assert other.input_value("#prompt textarea") == PROMPT
    assert other.input_value("#threshold input[type=number]") == "0.23"
    assert other.inner_text(".dm-remark") == (
        "Recording of scripted: from a link, nobody checked it. Press Generate for a live race."
    )
    assert_accessible(other, "#stage")


def test_a_long_answer_is_left_out_of_its_link_and_lines_come_back_as_they_were(arithmetic):
    lanes = [{**each, "end": {"end": "eos", "text": HOSTILE}} for each in short_race(prompt=HOSTILE)]
    for text, whole in ((HOSTILE, True), (None, False)):
        for at, step in enumerate(lanes[0]["passes"]):  # noise is as long as it is when it is compressed
            step["text"] = [text or hashlib.shake_256(bytes([at])).hexdigest(400)]
        made = arithmetic("linkOf(args[0])", lanes, files=LINK)
        assert made["whole"] == whole
        assert len(made["fragment"]) < 12_000
        lines = arithmetic("linkedLines(args[0])", made["fragment"], files=LINK).split("\n")
        assert len(lines) == (31 + 13 + 4 if whole else 2)
        assert json.loads(lines[0]) == {**lanes[0]["header"], "run": ""}


def test_what_unpacks_to_too_much_is_no_link(arithmetic):
    bomb = zlib.compressobj(9, wbits=-15)
    data = bomb.compress(b"a" * 10_000_000) + bomb.flush()
    fragment = "#race=" + base64.urlsafe_b64encode(data).decode().rstrip("=")
    call = "linkedLines(args[0]).then(() => '', (error) => error.message)"
    for damaged in (fragment, "#race=%%%", "#race=AAAA", "#race="):
        assert "damaged" in arithmetic(call, damaged, files=LINK)
    assert arithmetic("linkedLines(args[0])", "#else", files=LINK) == ""


def test_a_damaged_link_says_so_and_a_new_one_may_be_pasted_over_it(page_at, page_url):
    page = page_at(f"{page_url}#race=AAAA")
    page.get_by_text("The link is damaged").wait_for()
    lines = "\n".join(
        json.dumps({"format": 1, "run": "", "lane": lane, "model": HOSTILE, "options": {}, "prompt": HOSTILE})
        for lane in ("base", "dynamo")
    )
    packed = zlib.compress(lines.encode(), wbits=-15)
    fragment = "race=" + base64.urlsafe_b64encode(packed).decode()
    page.evaluate("(fragment) => { location.hash = fragment; }", fragment)
    page.get_by_text("The answer was").wait_for()
    assert page.input_value("#prompt textarea") == HOSTILE
    assert HOSTILE[:40] in page.inner_text(".dm-status")
    assert page.evaluate("window.pwned") is None
