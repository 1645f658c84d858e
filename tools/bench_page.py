"""How fast the page opens and draws: `make bench-page`. Its last line is one JSON object.

A run of the embedded pair is recorded once and played to a real Chromium at 30 passes a second, both lanes
together, for ten seconds, so that the model's own speed plays no part. Counted in the browser: frames in
which something visible changed (in either pane or the inspector, and in each alone), bytes received per pass,
and milliseconds from a click on a chunk to the frame after its joint is drawn; of a first visit, without any
cache: bytes of all that was asked for before the first paint, when that came, and when both lanes were drawn.

Then the pair itself decodes one answer again and again, at thresholds drawn at random, while a process keeps
one core busy: which speed-ups the page shows, how many it refuses to show, and how far they are from those of
the very same answers (prompt, seed and threshold) timed as `bench` does, before that process started.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from shutil import which
from typing import Any

import torch
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from browser.conftest import CHROMIUM, QUIET
from pages import launched, set_threshold

import dynamo
from app import staged
from dynamo.evaluation.bench import interleave
from dynamo.evaluation.for_page import THRESHOLDS
from dynamo.evaluation.machine import describe
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.trace.recorder import RunCounts
from dynamo.ui import ModelPair, build_demo
from dynamo.ui.compare.pair import OWN_LOOP
from dynamo.ui.server.engines import DYNAMO, LocalEngines

# With windows, as visitors have, where there is one.
BROWSER = os.environ.get("DYNAMO_CHROMIUM") or which("chromium") or CHROMIUM
PASSES_PER_SECOND = 30
SECONDS = 10
BASE_PASSES, DYNAMO_PASSES = 200, 100
CLICKS = 30
OPENINGS = 5
REDECODES = 20
QUIET_RUNS = 20
MAX_NEW_TOKENS, SEED = 128, 0  # as the page begins with
NEAR = 0.15  # of bench's speed-up
PROMPT = "I'm looking for an apartment with two bedrooms in San Jose."

# Frames in which a part changed, and when the last change was.
WATCH = """() => {
  const parts = { base: "#pane-base", dynamo: "#pane-dynamo", inspector: "#inspector" };
  const seen = (window.benchSeen = { any: 0, base: 0, dynamo: 0, inspector: 0, first: 0, last: 0 });
  const changed = new Set();
  for (const [name, selector] of Object.entries(parts)) {
    const options = { subtree: true, childList: true, characterData: true, attributes: true };
    new MutationObserver(() => changed.add(name)).observe(document.querySelector(selector), options);
  }
  const frame = (now) => {
    if (changed.size) {
      seen.any += 1;
      seen.first = seen.first || now;
      seen.last = now;
      for (const name of changed) seen[name] += 1;
      changed.clear();
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""

# From a click to the frame in which the inspector shows that pass.
CLICK = """(index) => new Promise((resolve) => {
  const wanted = `Pass ${index + 1} of `;
  const title = document.querySelector("#inspector .dm-title");
  const started = performance.now();
  const check = () => {
    if (!title.textContent.startsWith(wanted)) return requestAnimationFrame(check);
    requestAnimationFrame(() => resolve(performance.now() - started));
  };
  document.querySelector(`#pane-dynamo .dm-chunk[data-index="${index}"]`).click();
  requestAnimationFrame(check);
})"""


# When both lanes have something to read.
DRAWN = """(() => {
  const drawn = (lane) => document.querySelector(`#pane-${lane} .dm-chunk`)?.getClientRects().length;
  const frame = (now) => {
    if (!drawn("base") || !drawn("dynamo")) return requestAnimationFrame(frame);
    window.benchDrawn = now;
  };
  requestAnimationFrame(frame);
})()"""
OPENED = """() => {
  const painted = performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  if (!window.benchDrawn || !painted) return null;
  const asked = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const before = asked.filter((each) => each.startTime < painted);
  return { bytes: before.reduce((sum, each) => sum + each.transferSize, 0), painted, drawn: benchDrawn };
}"""
LANES = """() => {
  window.benchLanes = {};
  dynamoBus.addEventListener("lane", ({ detail }) => (benchLanes[detail.kind] = detail));
}"""
REDECODED = """(threshold) => ["base", "dynamo"].every((kind) => {
  const lane = benchLanes[kind];
  return lane?.state === "done" && lane.header.options.threshold === threshold;
}) && document.querySelector(".dm-race").dataset.phase === "settled" """

# Both lanes have been timed, again where their times spread.
TIMED = "/^(Same prompt|Exact mode)/.test(document.querySelector('.dm-status').textContent)"


class Pace:
    """Both lanes share it: the n-th pass of the race is due n / 30 seconds after the first."""

    def __init__(self):
        self._due = 0.0

    def wait(self) -> None:
        self._due = max(self._due, time.perf_counter() - 0.1) + 1 / PASSES_PER_SECOND
        time.sleep(max(0.0, self._due - time.perf_counter()))


class Replay:
    """Plays recorded passes again; `seconds` share ten seconds among them, so that the lanes take turns."""

    def __init__(self, records: list[StepRecord], count: int, pace: Pace):
        self._records = records
        self._count = count
        self._pace = pace

    def stream(self, *_: object, **__: object) -> Iterator[StepRecord]:
        for number, record in enumerate(islice(cycle(self._records), self._count)):
            self._pace.wait()
            yield replace(record, seconds=SECONDS / self._count, prefill=number == 0)


def replayed_pair() -> tuple[ModelPair, dict]:
    pair = dynamo.load("embedded")
    real = ModelPair.from_pair(pair)
    ids = real.encode([{"role": "user", "content": PROMPT}], real.max_length)

    def record(engine) -> list[StepRecord]:
        # Without the end token, as the text goes on from its beginning.
        return [
            step
            for step in engine.stream(ids, SamplingOptions(), 96)
            if step.tokens[-1] not in real.end_tokens
        ]

    pace = Pace()
    base = Replay(record(real.engines.by_name["loop"]), BASE_PASSES, pace)
    fast = Replay(record(real.engines.by_name["dynamo"]), DYNAMO_PASSES, pace)
    return replace(real, engines=LocalEngines({"loop": base, "dynamo": fast})), describe(pair.base)


def measure(page: Page, url: str) -> dict[str, float]:
    page.goto(url)
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=empty]")
    page.wait_for_selector("#stop[disabled]")
    page.get_by_role("radio", name="Live").check(force=True)
    page.fill("#prompt textarea", PROMPT)
    received = {"bytes": 0}
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.on(
        "Network.dataReceived", lambda event: received.update(bytes=received["bytes"] + event["dataLength"])
    )
    page.evaluate(WATCH)
    page.click("#generate")
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=done]", timeout=60_000)
    page.wait_for_timeout(500)
    seen = page.evaluate("window.benchSeen")
    seconds = (seen["last"] - seen["first"]) / 1000
    passes = BASE_PASSES + DYNAMO_PASSES
    sample = range(0, DYNAMO_PASSES, max(1, DYNAMO_PASSES // CLICKS))
    clicks = sorted(page.evaluate(CLICK, index) for index in sample)
    return {
        "updates_per_second": round(seen["any"] / seconds, 2),
        "updates_per_second_by_part": {
            name: round(seen[name] / seconds, 2) for name in ("base", "dynamo", "inspector")
        },
        "seconds": round(seconds, 2),
        "passes": passes,
        "bytes_per_pass": round(received["bytes"] / passes),
        "click_ms": round(statistics.median(clicks), 1),
        "click_ms_largest": round(clicks[-1], 1),
    }


def opening(browser: Browser, url: str) -> dict[str, float]:
    """Medians of first visits, after one that fills the server's own caches."""
    seen = []
    for _ in range(OPENINGS + 1):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        page = context.new_page()
        page.add_init_script(DRAWN)
        page.goto(url)
        seen.append(page.wait_for_function(OPENED, timeout=60_000).json_value())
        context.close()
    median = {name: statistics.median(each[name] for each in seen[1:]) for name in seen[0]}
    return {
        "bytes_before_first_paint": round(median["bytes"]),
        "first_paint_ms": round(median["painted"]),
        "both_panes_ms": round(median["drawn"]),
    }


def redecodes(browser: Browser, pair: Any, count: int) -> dict[str, Any]:
    """What the page shows of `count` decodings that another process disturbs."""
    shown, refused, short = [], 0, 0
    model_pair = staged(pair, threads=torch.get_num_threads())
    quiet = {threshold: quiet_speed_up(model_pair, threshold) for threshold in THRESHOLDS if threshold < 1}
    with launched(build_demo(model_pair)) as url, busy_core():
        page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#stop[disabled]")
        page.evaluate(LANES)
        page.get_by_role("radio", name="Live").check(force=True)
        page.fill("#prompt textarea", PROMPT)
        page.click("#generate")
        draw, threshold = random.Random(0), pair.options.threshold
        page.wait_for_function(REDECODED, arg=threshold)
        for _ in range(count):
            threshold = draw.choice([each for each in quiet if each != threshold])
            set_threshold(page, str(threshold))
            page.locator("#threshold input[type=range]").dispatch_event("pointerup")
            page.wait_for_function(REDECODED, arg=threshold)
            page.wait_for_function(TIMED)
            page.wait_for_timeout(200)  # drawn with the next frame
            speed, passes, note = (
                page.inner_text(f".dm-{part}") for part in ("speed", "passes", "speed-note")
            )
            if speed != "–":
                shown.append((float(speed.rstrip("×")), float(passes), threshold))
            short += "too few" in note
            refused += "disturbed" in note
        page.close()
    off = [speed / quiet[threshold] - 1 for speed, _, threshold in shown]
    return {
        "redecodes": count,
        "shown": len(shown),
        "too_short": short,
        "refused_as_disturbed": refused,
        "above_tokens_per_pass": sum(speed > passes for speed, passes, _ in shown),
        "within_15_percent_of_bench": sum(abs(each) <= NEAR for each in off),
        "off_median": round(statistics.median(off), 3) if off else None,
        "off_worst": round(max(off, key=abs), 3) if off else None,
    }


def quiet_speed_up(pair: ModelPair, threshold: float) -> float:
    """Of the answer that the page gives at a threshold: whole replies in turn, as `bench` times them."""
    ids = pair.encode([{"role": "user", "content": PROMPT}], pair.max_length)
    options = replace(pair.options, threshold=threshold)

    def reply(engine: str, prompt: list[int], _: int) -> RunCounts:
        stream = pair.engines.by_name[engine].stream(prompt, options, MAX_NEW_TOKENS, seed=SEED)
        return RunCounts.fold(stream)

    times = interleave({engine: partial(reply, engine) for engine in (OWN_LOOP, DYNAMO)}, [ids], QUIET_RUNS)
    return times[DYNAMO].over(times[OWN_LOOP]).value


@contextmanager
def busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--redecodes", type=int, default=REDECODES, help="0 for none (default: 20)")
    parser.add_argument("--output", type=Path, help="write the JSON there, for docs/performance.md")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("error: no Chromium on the path; name one in DYNAMO_CHROMIUM")
    load = os.getloadavg()[0]  # of others
    model_pair, machine = replayed_pair()
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        with launched(build_demo(model_pair, recording=ROOT / "assets" / "recording.ndjson")) as url:
            result = opening(chromium, url)
        with launched(build_demo(model_pair)) as url:
            page = chromium.new_page(viewport={"width": 1280, "height": 1600}, reduced_motion="no-preference")
            result |= measure(page, url)
            page.close()
        if arguments.redecodes:
            result["disturbed"] = redecodes(chromium, dynamo.load("embedded"), arguments.redecodes)
        browser = chromium.version
        chromium.close()
    keys = ("device", "threads", "system", "date")
    result |= {"chromium": browser, "load": round(load, 1), "machine": {key: machine[key] for key in keys}}
    for name, value in result.items():
        print(f"{name:28} {value}", file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
