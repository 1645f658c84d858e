"""Chats for the panes, written by hand: runs of few or of many passes, and a page that streams them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import gradio as gr

from dynamo.sampling.records import BackOff
from dynamo.trace.ndjson import End, Header, PassLine, encode_line, read_runs
from dynamo.ui.components import style, token_pane

ANSWER = ["Sure|,| what", " time| would", " you", " like| to| eat", "?", ""]
NEXT = [
    " I| found",
    " a",
    " nice| place| called",
    " Sino",
    " in| San| Jose",
    ". ",
    "It| serves",
    " Chinese| food",
    ".",
]


def run(
    name: str,
    lane: str,
    prompt: str,
    chunks: list[str],
    *,
    end: str = "eos",
    milliseconds: float = 20.0,
    **header: str,
) -> str:
    """One run as NDJSON; a chunk's tokens are parted by "|". Without `end` the run goes on."""
    options = {"threshold": 0.5, "max_new_tokens": 64, "seed": 0}
    lines = [Header(name.ljust(32, "0"), lane, "tiny", prompt, options, **header)]
    for index, chunk in enumerate(chunks):
        texts = chunk.split("|")
        backs_off = lane == "dynamo" and len(texts) == 1
        backoffs = (BackOff(3, "threshold", 0.091, 0.25), BackOff(2, "threshold", 0.31, 0.5))
        lines.append(
            PassLine(
                index,
                tuple(range(len(texts))),
                tuple(texts),
                len(texts),
                milliseconds * (2 if index == 0 else 1),
                tuple(0.9 - 0.2 * i for i in range(len(texts))),
                backoffs if backs_off else (),
                prefill=index == 0,
            )
        )
    if end:
        lines.append(End(end))
    return "".join(encode_line(line) + "\n" for line in lines)


def one_by_one(chunks: list[str]) -> list[str]:
    return [token for chunk in chunks for token in chunk.split("|")]


def both(name: str, prompt: str, chunks: list[str], **options) -> tuple[str, str]:
    """The same answer in both lanes; the runs are called `name` + "b" and `name` + "d"."""
    return (
        run(name + "b", "base", prompt, one_by_one(chunks), **options),
        run(name + "d", "dynamo", prompt, chunks, **options),
    )


FIRST = both("1", "I want to book a table for two in San Jose", ANSWER)
SECOND = both("2", "Chinese, at seven.", NEXT)
LONG = both("3", "Tell me everything.", NEXT * 20)
KNOWN = {"2d".ljust(32, "0"): "the whole trace, joints included\n"}  # run to what the server remembers of it


def panes_page() -> gr.Blocks:
    """Two panes, and a box for orders: {"base", "dynamo": the values to come to, "lines": of them per view
    (0: all at once), "after": characters that are there from the first view on, "pause": seconds}.
    """
    with gr.Blocks() as page:
        with gr.Row():
            panes = []
            for side in ("base", "dynamo"):
                with gr.Column(min_width=320):
                    panes.append(token_pane(side, "", KNOWN.get, elem_id=f"pane-{side}"))
        order = gr.Textbox(label="Order", lines=1, max_lines=1, elem_id="order")
        send = gr.Button("Send", elem_id="send")
        send.click(_views, order, panes, show_progress="hidden")
    return page


def launch_panes() -> tuple[gr.Blocks, str]:
    page = panes_page()
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        head=f"<style>{style()}</style>",
        ssr_mode=False,
        run_history=False,
    )
    return page, url


def _views(text: str) -> Iterator[tuple[str, str]]:
    order = json.loads(text)
    wires = [order.get("base", ""), order.get("dynamo", "")]
    lines, pause, after = order.get("lines", 0), order.get("pause", 0), order.get("after", [0, 0])
    parts = [wire[start:].splitlines(keepends=True) for wire, start in zip(wires, after, strict=True)]
    for count in range(lines, max(map(len, parts)), lines) if lines else ():
        yield tuple(
            wire[:start] + "".join(part[:count])
            for wire, start, part in zip(wires, after, parts, strict=True)
        )
        time.sleep(pause)
    yield tuple(wires)


def send(page, base: str = "", dynamo: str = "", **order) -> None:
    """Orders the views; whoever calls waits for what has to be seen."""
    page.fill("#order input", json.dumps({"base": base, "dynamo": dynamo, **order}))
    page.click("#send")


def show(page, *turns: tuple[str, str], state: str = "done", **order) -> None:
    """The panes come to hold these turns."""
    wires = ["".join(turn[side] for turn in turns) for side in (0, 1)]
    send(page, *wires, **order)
    lasts = [read_runs(wire.splitlines())[-1] for wire in wires]
    page.wait_for_function(
        """(awaited) => awaited.every(([kind, ...rest]) => {
          const last = told.lane.filter((lane) => lane.kind === kind).at(-1);
          return last && [last.run, last.passes, last.state].join() === rest.join(); })""",
        arg=[
            [side, last.header.run, len(last.passes), state]
            for side, last in zip(("base", "dynamo"), lasts, strict=True)
        ],
        polling=50,
    )


def emptied(page):
    """The page as it opens: no chat, no playhead, no pass looked at, the pointer out of the way."""
    dispatch(page, "playhead", {"milliseconds": None})
    dispatch(page, "shown", {"run": "", "index": 0})
    if page.locator(".dm-pane:not([data-state=empty])").count():
        send(page)
        for side in ("base", "dynamo"):
            pane(page, side, ".dm-pane[data-state=empty]").wait_for()
    page.mouse.move(2, 2)
    settle(page)
    page.evaluate("() => { window.told = { lane: [], show: [] }; }")
    return page


def dispatch(page, name: str, detail=None) -> None:
    page.evaluate(
        "([name, detail]) => dynamoBus.dispatchEvent(new CustomEvent(name, { detail }))", [name, detail]
    )


def told(page, kind: str) -> dict:
    settle(page)
    return page.evaluate("(kind) => told.lane.filter((lane) => lane.kind === kind).at(-1)", kind)


def settle(page) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pane(page, side: str, selector: str):
    return page.locator(f"#pane-{side} {selector}")
