"""The stage: both answers, the pass, the timeline and the dial on one screen, while it happens."""

from __future__ import annotations

from itertools import combinations

import pytest
from fakes import scripted_pair
from pages import PROMPT, served

from dynamo.ui.components import ASSETS

LEFT = (".dm-clock-row", ".dm-player", "#pane-base .dm-pane", "#pane-dynamo .dm-pane", "#prompt", "#dial")
RIGHT = (".dm-inspector", ".dm-timeline")


def boxes(page, *parts):
    return {part: page.locator(part).bounding_box() for part in parts}


def overlap(one, other):
    apart_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
    apart_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
    return not (apart_x or apart_y)


@pytest.fixture(scope="module")
def shared_page(open_shared_page, recorded_url):
    page = open_shared_page(recorded_url)
    page.wait_for_selector(".dm-inspector[data-state=joint]")
    return page


@pytest.fixture(scope="module")
def smollm2_url():
    with served(scripted_pair(), recording=ASSETS / "models" / "smollm2" / "recording.ndjson") as url:
        yield url


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720), (1366, 640), (1920, 1080)])
def test_everything_that_explains_it_is_on_one_screen(shared_page, width, height):
    """The inspector began at 1180 of 900 pixels, and a click on a chunk scrolled the text away."""
    page = shared_page
    page.set_viewport_size({"width": width, "height": height})
    before = boxes(page, *LEFT, *RIGHT, ".dm-stages", ".dm-timeline-plot", "#threshold input[type=range]")
    for part, box in before.items():
        assert box["x"] >= 0 and box["y"] >= 0, part
        assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height, (part, box)
    for one, other in combinations((*LEFT, *RIGHT), 2):
        assert not overlap(before[one], before[other]), (one, other)
    used = max(box["x"] + box["width"] for box in before.values()) - min(box["x"] for box in before.values())
    assert used > 0.94 * width
    assert before["#pane-base .dm-pane"]["width"] < before["#pane-dynamo .dm-pane"]["width"]
    assert before["#pane-dynamo .dm-pane"]["height"] > (200 if height > 700 else 130)
    title = page.inner_text(".dm-title")
    page.locator("#pane-dynamo .dm-chunk:not(.selected)").nth(4).click()
    page.wait_for_function("(title) => document.querySelector('.dm-title').textContent !== title", arg=title)
    assert page.evaluate("scrollY") == 0
    assert boxes(page, *before) == before


def test_a_long_verdict_keeps_the_stage_on_the_screen(page_at, smollm2_url):
    """A rejected draft is told in up to three lines, which pushed the dial a few pixels off the screen."""
    page = page_at(smollm2_url)
    page.wait_for_selector(".dm-inspector[data-state=joint]")
    # The longest text among those that say two drafts were rejected.
    page.evaluate(
        """() => {
          const told = (step) => (step.rejected?.length > 1 ? step.rejected.join("").length : 0);
          const { passes } = dynamoBus.lanes.dynamo;
          const longest = passes.reduce((most, step) => (told(step) > told(most) ? step : most));
          document.querySelector(`#pane-dynamo .dm-chunk[data-index="${longest.pass}"]`).click();
        }"""
    )
    page.locator(".dm-verdict").get_by_text("fell with it").wait_for()
    for width, height in ((1440, 900), (1280, 720), (1536, 864)):
        page.set_viewport_size({"width": width, "height": height})
        for part, box in boxes(page, ".dm-verdict", ".dm-timeline", "#dial").items():
            assert box["y"] + box["height"] <= height, (part, width, height)


def test_on_a_tablet_the_lanes_stand_beside_each_other(shared_page):
    page = shared_page
    page.set_viewport_size({"width": 768, "height": 1024})
    base, dynamo = boxes(page, "#pane-base", "#pane-dynamo").values()
    assert base["y"] == dynamo["y"] and base["x"] + base["width"] <= dynamo["x"]
    assert dynamo["y"] + dynamo["height"] < 1024


def test_on_a_phone_dynamo_and_its_pass_come_first(page_at, recorded_url):
    page = page_at(recorded_url, viewport={"width": 375, "height": 667})
    page.wait_for_selector(".dm-inspector[data-state=joint]")
    page.locator("#prompt textarea").fill("May I ask a longer question than there is room for here? " * 3)
    page.locator("#prompt textarea").blur()
    for height in (667, 812):
        page.set_viewport_size({"width": 375, "height": height})
        dynamo, cells, base, box = boxes(
            page, "#pane-dynamo", ".dm-stage-mask tbody", "#pane-base", "#prompt textarea"
        ).values()
        assert dynamo["y"] < cells["y"] < base["y"]
        assert cells["y"] + cells["height"] < box["y"], "the heatmap ends above the message box"
        assert box["y"] + box["height"] <= height


def test_at_rest_the_pass_that_is_looked_at_is_in_sight(page_at, smollm2_url):
    """Its chunk is the answer's seventh, and the text showed its end, and the heatmap is a line lower."""
    page = page_at(smollm2_url, viewport={"width": 375, "height": 667})
    for width, height in ((375, 667), (1280, 720)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function(
            """() => {
              const text = document.querySelector("#pane-dynamo .dm-text").getBoundingClientRect();
              const chunk = document.querySelector("#pane-dynamo .dm-chunk.selected");
              const box = chunk?.getBoundingClientRect();
              return box && text.top <= box.top && box.bottom <= text.bottom;
            }"""
        )
        message, cells = boxes(page, "#prompt textarea", ".dm-stage-mask tbody").values()
        lines = page.locator("#prompt textarea").evaluate(
            "(box) => box.clientHeight / parseFloat(getComputedStyle(box).lineHeight)"
        )
        assert abs(lines - round(lines)) < 0.2, "no half of a line"
        assert width > 375 or cells["y"] + cells["height"] < message["y"]


def test_the_heatmap_follows_the_decoding(page_at):
    """The charts were a replay of what was over: of its passes, none was seen while it ran."""
    with served(scripted_pair(seconds=0.1, sleep=True)) as url:  # a base of ten passes a second: shown live
        page = page_at(url, reduced_motion="no-preference")
        page.evaluate(
            """() => {
              window.passes = new Set(), window.paces = new Set();
              let running = false;
              dynamoBus.addEventListener("lane", ({ detail }) => {
                if (detail.kind === "dynamo") running = detail.state === "running";
              });
              const watch = (name, note) => {
                const part = document.querySelector(name);
                new MutationObserver(() => note(part.textContent)).observe(
                  part, { childList: true, characterData: true, subtree: true });
              };
              watch(".dm-title", (text) => running && passes.add(text.split(" of ")[0]));
              watch(".dm-pace", (text) => paces.add(text.split(".")[0]));
            }"""
        )
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        page.wait_for_function("passes.size > 1")  # of some 20; a busy machine draws few
        page.wait_for_selector(".dm-race[data-phase=settled]")
        assert "Live" in page.evaluate("[...paces]")


# The panel's grids, as one looks at them: "" where the pass has none.
GRIDS = """window.gridsNow = () => {
  const isGone = ({ classList }) => classList.contains("gone");
  const heatOf = (part) => isGone(part) || part.style.getPropertyValue("--heat");
  const parts = [...document.querySelectorAll(".dm-stage th, .dm-stage td.dm-cell, .dm-stage-result")];
  return document.querySelector(".dm-inspector").dataset.state === "joint"
    ? parts.map((one) => `${one.textContent} ${heatOf(one)} ${one.classList.contains("picked")}`).join("|")
    : "";
}"""


def test_all_that_speaks_of_a_pass_speaks_of_the_same_one(page_at, smollm2_url):
    """The panel's title, its sentence, its grids and the timeline were of different passes in one frame. The
    text and the counters may be further on: a grid takes more time."""
    page = page_at(smollm2_url, reduced_motion="no-preference", script=GRIDS)
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=done]")
    seen = page.evaluate(
        r"""async () => {
          const textOf = (part) => document.querySelector(part).textContent;
          const number = (part, pattern) => Number(textOf(part).match(pattern)?.[1]);
          const tokens = /(\d+) token/;
          if (document.querySelector(".dm-race").dataset.phase === "settled")
            document.querySelector(".dm-toggle").click();
          const seen = [];
          while (seen.length < 20 && document.querySelector(".dm-race").dataset.phase === "playing") {
            await new Promise(requestAnimationFrame);
            const chunks = document.querySelectorAll("#pane-dynamo .dm-piece:not([hidden]) > .dm-chunk");
            const title = number(".dm-title", /Pass (\d+)/);
            // What was shown at rest stays until the first pass is back from a busy server.
            if (!chunks.length || (!seen.length && title > chunks.length)) continue;
            const shown = chunks[title - 1];
            seen.push({
              pass: [
                title,
                number(".dm-timeline-readout", /Pass (\d+)/),
                Number(document.querySelector(".dm-column[aria-current]").dataset.index) + 1,
              ],
              tokens: [shown.children.length, number(".dm-subtitle", tokens)],
              count: [
                chunks.length,
                number(".dm-tally", /in (\d+) pass/),
                number("#pane-dynamo .dm-footer", /in (\d+) pass/),
              ],
              written: [number(".dm-tally", tokens), number(".dm-lap-dynamo", tokens)],
              grids: gridsNow(),
            });
            await new Promise((done) => setTimeout(done, 40));
          }
          return seen;
        }"""
    )
    names = ("pass", "tokens", "count", "written")
    assert all(len(set(one[name])) == 1 for one in seen for name in names), seen
    assert all(one["pass"][0] <= one["count"][0] for one in seen)
    grids = {one["pass"][0]: one["grids"] for one in seen}
    assert len(grids) > 3 and len(set(grids.values())) > 3
    page.locator(".dm-skip").click()
    page.wait_for_selector(".dm-race[data-phase=settled]")
    for one in seen:
        page.locator("#pane-dynamo .dm-chunk").nth(one["pass"][0] - 1).click()
        page.wait_for_function(
            "(title) => document.querySelector('.dm-title').textContent.startsWith(title)",
            arg=f"Pass {one['pass'][0]} of",
        )
        assert page.evaluate("gridsNow()") == one["grids"], one["pass"]
