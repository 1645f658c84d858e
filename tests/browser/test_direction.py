"""Commands of direction in the text of a model or a visitor turn nothing round: where each character stands
on the screen is measured."""

from __future__ import annotations

import json

import pytest
from fakes import COMMANDS, scripted_pair
from pages import generate, served

from dynamo.common.bidi import bidi_isolate

ANSWER = "Sure \u202ewhat time \u2067would you \u2066like to \u202beat , I found \u202da nice \u2069 place ."
PROMPT = "Book a \u202etable for \u2067two in San Jose"

# Characters that stand left of the one before them on the same line, of all that are seen in `root`.
TURNED = """(root) => {
  const found = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let before = null;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (let i = 0; i < node.length; i++) {
      const range = document.createRange();
      range.setStart(node, i);
      range.setEnd(node, i + 1);
      const box = range.getBoundingClientRect();
      if (box.width < 0.5 || !node.data[i].trim()) continue;
      const sameLine = before && Math.abs(box.top - before.top) < before.height / 2;
      if (sameLine && box.left < before.left - 0.5) found.push(node.data.slice(0, 30) + " @" + i);
      before = box;
    }
  }
  return { found, seen: before !== null };
}"""


def assert_in_order(page, selector: str) -> None:
    roots = page.locator(selector).filter(visible=True)
    assert roots.count() > 0, selector
    for i in range(roots.count()):
        told = roots.nth(i).evaluate(TURNED)
        assert told["seen"], selector
        assert not told["found"], f"{selector}: {told['found'][:5]}"


@pytest.fixture(scope="module")
def url():
    with served(scripted_pair(ANSWER)) as url:
        yield url


@pytest.fixture(scope="module")
def page(open_shared_page, url):
    page = open_shared_page(url)
    page.wait_for_selector("#stop[disabled]")
    generate(page, PROMPT)
    return page


def test_the_measure_sees_a_command_that_is_obeyed(page):
    header = page.locator(".dm-header p")
    before = header.inner_html()
    header.evaluate("(one) => { one.textContent = 'Sure \\u202ewhat time'; }")
    assert header.evaluate(TURNED)["found"]
    header.evaluate("(one, before) => { one.innerHTML = before; }", before)


def test_every_chunk_of_the_answers_stands_after_the_one_before_it(page):
    for lane in ("base", "dynamo"):
        assert_in_order(page, f"#pane-{lane} .dm-answer")
        assert_in_order(page, f"#pane-{lane} .dm-asked")
        shown = page.locator(f"#pane-{lane} .dm-answer").text_content()
        assert shown.replace(" ", "") == ANSWER.replace(" ", "")  # what is copied by hand is what was said
    marks = page.locator("#pane-base .dm-answer .dm-command").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one, '::before').content)"
    )
    assert len(marks) == 6 and marks[0] == '"⟨U+202E⟩"'


def test_nothing_that_is_said_of_a_pass_is_turned_round(page):
    every = page.locator("#pane-dynamo .dm-chunk")
    for i in range(every.count() - 1):
        every.nth(i).hover()
        page.wait_for_selector("#pane-dynamo .dm-tip:not([hidden])")
        assert_in_order(page, "#pane-dynamo .dm-tip")
        every.nth(i).click()
        page.get_by_text(f"Pass {i + 1} of ").first.wait_for()
        for part in (".dm-emitted", ".dm-stage-result", ".dm-stage tbody th", ".dm-timeline"):
            assert_in_order(page, part)
        cell = page.locator(".dm-stage-product td.dm-cell").first
        if cell.is_visible():
            cell.hover()
            assert_in_order(page, ".dm-readout")
            assert_in_order(page, ".dm-explanation")


def test_the_audit_and_the_strip_are_not_turned_round(page):
    page.locator("#audit").get_by_text("0.4 %").first.wait_for()
    assert_in_order(page, ".dm-audit-text")
    assert_in_order(page, ".dm-audit-odd")
    page.click("#strip-panel button")
    page.click("#strip-start")
    page.wait_for_function("document.querySelectorAll('#strip [data-threshold]').length === 7")
    assert_in_order(page, "#strip .dm-dial-text")


def test_page_and_program_set_the_same_texts_apart(arithmetic):
    texts = ["", "plain", "\u05d0\u05d1", "a\u0627", "\u200f", "\u0661", "\U00010840", *COMMANDS]
    texts += [f"x{command}y\u05d0" for command in COMMANDS]
    assert arithmetic("args[0].map(bidiIsolate)", texts) == [bidi_isolate(text) for text in texts]


@pytest.mark.parametrize("word", ["\u05d0\u05d1\u05d2", "\u202eabc", "abc\u2067"])
def test_a_number_after_a_word_stays_after_it(arithmetic, word):
    """A number beside Hebrew or Arabic belongs to it, and would go to its other side."""
    left = arithmetic(
        """((text) => {
          const line = document.createElement("p");
          line.textContent = text;
          document.body.append(line);
          const at = (index) => {
            const range = document.createRange();
            range.setStart(line.firstChild, index);
            range.setEnd(line.firstChild, index + 1);
            return range.getBoundingClientRect().left;
          };
          return [0, "pair ".length + 1, ...["1", "%", "k"].map((each) => text.indexOf(each))].map(at);
        })(`pair ${bidiIsolate(args[0])} 12 % is kept`.replace("is k", "k"))""",
        word,
    )
    assert left == sorted(left), json.dumps(left)
