"""The whole page on scripted engines: how it is served, asked and read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
from axe_playwright_python.base import AXE_SCRIPT

from dynamo.ui import ModelPair, build_demo, launch_options

DONE = "#pane-base .dm-pane[data-state=done]", "#pane-dynamo .dm-pane[data-state=done]"
PROMPT = "I want to book a table for two in San Jose"


# Light becomes dark, and dark light; what the cards' colour then is.
TURN_OVER = """() => {
  document.body.classList.toggle("dark");
  return getComputedStyle(document.body).getPropertyValue("--dm-card");
}"""


def opinion(prompt, reply):
    """An audit for which every fifth token is unlikely."""
    shares = [0.004 if index % 5 == 4 else 0.6 for index in range(len(reply))]
    return SimpleNamespace(
        log_probabilities=tuple(map(math.log, shares)), ranks=tuple(60 if s < 0.01 else 0 for s in shares),
        nats_per_token=1.1, unlikely_share=0.2, repetition=0.05,
    )  # fmt: skip


@contextmanager
def served(pair: ModelPair, **options: Any) -> Iterator[str]:
    """The page's address. options: of `build_demo`."""
    with launched(build_demo(replace(pair, audit=opinion), **options)) as url:
        yield url


@contextmanager
def launched(demo: gr.Blocks) -> Iterator[str]:
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        yield url
    finally:
        demo.close()


def generate(page, prompt: str = PROMPT, key: str = "") -> None:
    """Asks, and waits until both lanes have answered. A run may be too quick for Stop to be seen."""
    page.fill("#prompt textarea", prompt)
    if key:
        page.press("#prompt textarea", key)
    else:
        page.click("#generate")
    page.wait_for_function(
        """(prompt) => ["base", "dynamo"].every((lane) => {
          const asked = [...document.querySelectorAll(`#pane-${lane} .dm-asked`)].at(-1);
          const pane = document.querySelector(`#pane-${lane} .dm-pane`);
          return asked?.textContent === prompt && pane.dataset.state === "done";
        })""",
        arg=prompt,
    )
    page.wait_for_selector("#stop[disabled]")


def bubbles(page, name: str) -> list[str]:
    return page.locator(f"#pane-{name} .dm-asked").all_text_contents()


def chunks(page, size: int = 3):
    return page.locator(f"#pane-dynamo .dm-chunk.size-{size}")


def set_threshold(page, value: str) -> None:
    """As a pointer does: drags to the value, and lets go."""
    slider = page.locator("#threshold input[type=range]")
    slider.evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def assert_accessible(page, *parts: str, dark: bool = False) -> None:
    """By axe, once no transition has run for ten frames: colours in between are nobody's choice.

    parts: selectors of what is looked at, everything where there are none. dark: then its colours, too, as
    they are in the other theme, which differs in nothing else.
    """
    here = {"include": [[part] for part in parts]} if parts else None
    found = violations(page, here)
    if dark:
        card = page.evaluate(TURN_OVER)
        found += violations(page, here, runOnly=["color-contrast"])
        assert page.evaluate(TURN_OVER) != card
    assert found == []


def violations(page, here: dict | None, **options: Any) -> list[str]:
    """options: of axe, which a page is given at its first look."""
    if page.evaluate("!window.axe"):
        page.evaluate(AXE_SCRIPT)
    return page.evaluate(
        """async ([here, options]) => {
          const ends = (one) => one.effect.getComputedTiming().endTime !== Infinity;
          const moves = (one) => one.playState === "running" && ends(one);
          for (let still = 0; still < 10; still = document.getAnimations().some(moves) ? 0 : still + 1)
            await new Promise(requestAnimationFrame);
          const { violations } = await axe.run(here ?? document, options);
          return violations.flatMap((one) => one.nodes.map(({ html }) => `${one.id}: ${html.slice(0, 160)}`));
        }""",
        [here, {"resultTypes": ["violations"], **options}],
    )
