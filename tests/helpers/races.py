"""A page of the race bar and the timeline alone, and made-up lanes for them: what the panes would tell."""

from __future__ import annotations

import json

import gradio as gr

from dynamo.ui.components import part, race_bar, style
from dynamo.ui.theme import theme

SPLIT = {
    "base": {"parts": {"stem": 3.0, "heads": 0.5, "draw": 0.25, "rest": 0.25}, "pass_ms": 4.0},
    "dynamo": {"parts": {"stem": 3.0, "heads": 1.5, "draw": 0.5, "rest": 0.6}, "pass_ms": 5.6},
}


def lane(kind, ms, tokens=1, *, state="done", end="eos", prefill=12.0, **header):
    """A "lane" event's detail: a prefill pass, then passes of `ms` each with as many tokens."""
    passes = [
        {"pass": i, "ids": [7] * tokens, "text": [" word"] * tokens, "p": [0.5] * tokens, "ms": pass_ms}
        for i, pass_ms in enumerate([prefill, *ms])
    ]
    passes[0]["prefill"] = True
    about = {"run": f"{kind}-run", "lane": kind, "prompt": "hello", "options": {"threshold": 0.5}, **header}
    return {
        "kind": kind,
        "run": about["run"],
        "header": about,
        "state": state,
        "end": {"end": end} if state == "done" else None,
        "passes": passes,
        "count": len(passes),
        "turns": 1,
    }


def nothing():
    """Both lanes where there is no answer."""
    empty = {"run": None, "header": None, "state": "empty", "end": None, "passes": [], "count": 0}
    return [lane(kind, []) | empty for kind in ("base", "dynamo")]


def short_race(**more):
    return [lane("base", [5.0] * 30, **more), lane("dynamo", [7.0] * 12, 3, prefill=19.0, **more)]


def long_race(**more):
    """One that takes 36 s: still playing when a busy machine looks."""
    return [lane("base", [90.0] * 400, **more), lane("dynamo", [99.0] * 200, 3, **more)]


def backing_off(*tries, tokens, best=None):
    """The fields that a pass line has beside its tokens: (order, reason, best, bar) of what was given up."""
    fields = {"ids": [7] * tokens, "text": [" word"] * tokens, "p": [0.5] * tokens}
    if tries:
        fields["backoffs"] = [list(attempt) for attempt in tries]
    if best is not None:
        fields["best"] = best
    return fields


def answered(**more):
    """DynaMo's lane at threshold .5: three tokens, two as three were refused, one as both were, three."""
    refused = (3, "threshold", 0.2, 0.25)
    passes = [
        backing_off(tokens=3, best=0.6),
        backing_off(refused, tokens=2, best=0.7),
        backing_off(refused, (2, "threshold", 0.4, 0.5), tokens=1, best=0.4),
        backing_off(tokens=3, best=0.9),
    ]
    dynamo = lane("dynamo", [7.0] * 3, **more)
    dynamo["passes"] = [each | fields for each, fields in zip(dynamo["passes"], passes, strict=True)]
    return dynamo


class Splits:
    """The server's answer to `get_split`, and how often it was asked."""

    def __init__(self):
        self.answer, self.asked = json.dumps(SPLIT), 0

    def __call__(self):
        self.asked += 1
        return self.answer


def serve_race(splits, status="Both answer."):
    with gr.Blocks() as demo:
        race_bar(status, splits, elem_id="race")
        part("timeline", elem_id="timeline")
    _, url, _ = demo.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        head=f"<style>{style()}</style>",
    )
    return demo, url


def tell(page, name, detail):
    page.evaluate(
        "([name, detail]) => window.dynamoBus.dispatchEvent(new CustomEvent(name, { detail }))",
        [name, detail],
    )


def send(page, lanes):
    """Lets the panes tell of their runs, at one moment."""
    page.evaluate(
        """(lanes) => { for (const detail of lanes)
          window.dynamoBus.dispatchEvent(new CustomEvent("lane", { detail })); }""",
        list(lanes),
    )


def listen(page, *names):
    """What is told on the bus from now on, as a list of [name, detail] in `window.heard`."""
    page.evaluate(
        """(names) => { window.heard = [];
          for (const name of names)
            window.dynamoBus.addEventListener(name, (event) => window.heard.push([name, event.detail])); }""",
        list(names),
    )
