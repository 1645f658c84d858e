"""How fast the page draws: `make bench-page`. Its last line is one JSON object.

A run of the embedded pair is recorded once and played to a real Chromium at 30 passes a second, both lanes
together, for ten seconds, so that the model's own speed plays no part. Counted in the browser: frames in
which something visible changed (in either pane or the inspector, and in each alone), bytes received per pass,
and milliseconds from a click on a chunk to the frame after its joint is drawn.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from shutil import which

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from browser.conftest import CHROMIUM, QUIET

import dynamo
from dynamo.evaluation.machine import describe
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.ui import ModelPair, build_demo, launch_options
from dynamo.ui.server.engines import LocalEngines

# With windows, as visitors have, where there is one.
BROWSER = os.environ.get("DYNAMO_CHROMIUM") or which("chromium") or CHROMIUM
PASSES_PER_SECOND = 30
SECONDS = 10
BASE_PASSES, DYNAMO_PASSES = 200, 100
CLICKS = 30
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
    pair = dynamo.load()
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


def main() -> None:
    if CHROMIUM is None:
        sys.exit("error: no Chromium on the path; name one in DYNAMO_CHROMIUM")
    model_pair, machine = replayed_pair()
    demo = build_demo(model_pair)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
            page = chromium.new_page(viewport={"width": 1280, "height": 1600}, reduced_motion="no-preference")
            result = measure(page, url)
            browser = chromium.version
            chromium.close()
    finally:
        demo.close()
    keys = ("device", "threads", "system", "date")
    result |= {"chromium": browser, "machine": {key: machine[key] for key in keys}}
    for name, value in result.items():
        print(f"{name:28} {value}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
