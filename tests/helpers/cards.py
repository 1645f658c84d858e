"""A page of the inspector, the audit and the dial alone, and runs worked out by hand for them to show."""

from __future__ import annotations

import json

import gradio as gr
import numpy as np
from fakes import HOSTILE

from dynamo.sampling.records import BackOff, Joint, StepRecord
from dynamo.trace.joint_line import JointLine
from dynamo.trace.ndjson import Header, PassLine
from dynamo.ui.components import joint_inspector, part, style
from dynamo.ui.server.store import RunStore
from dynamo.ui.theme import theme

RUN, NEXT_RUN, NASTY_RUN, LONG_RUN = (name * 32 for name in "1234")
WORDS = (
    [" What", " At", " Which"],
    [" time", " would", " place"],
    [" would", " you", " do"],
)


def joint(values: dict[tuple[int, ...], float], words=WORDS) -> Joint:
    """A joint of these cells by rank, three candidates a head; a token's id is 10 x its head + its rank."""
    order = len(next(iter(values)))
    candidates = np.array([[10 * head + rank for rank in range(3)] for head in range(order)])
    probabilities = np.array([[0.6, 0.3, 0.1]] * order)
    return Joint(candidates, probabilities, np.array(list(values)), np.array(list(values.values())))


def label(words):
    return lambda token: words[token // 10][token % 10]


def fill(store: RunStore, run: str, records: list[StepRecord], threshold: float = 0.5, words=WORDS):
    """Puts a run into the store; returns its inspector values and its pass lines as the panes tell them."""
    store.start(Header(run, "dynamo", "tiny", "What time?", {"threshold": threshold}))
    name = label(words)
    values = []
    for index, record in enumerate(records):
        texts, rejected = ([name(token) for token in ids] for ids in (record.tokens, record.rejected))
        line = PassLine.from_record(index, record, texts, rejected)
        values.append(store.put(run, line, JointLine.from_record(index, record, threshold, name)))
    return values, [json.loads(value)["pass"] for value in values]


def records() -> list[StepRecord]:
    """Three tokens at once; a pair after three were refused; a single token after both were."""
    triple = joint({(0, 0, 0): 0.6, (0, 1, 2): 0.3, (2, 1, 1): 0.1})
    pair = joint({(0, 0): 0.7, (1, 2): 0.2, (2, 1): 0.1})
    flat = joint({(0, 0): 0.4, (1, 1): 0.35, (2, 2): 0.25})
    refused = BackOff(3, "threshold", 0.2, 0.25)
    return [
        StepRecord(
            (0, 10, 20), 3, 0.02, prefill=True, probabilities=(0.6,) * 3, kept_mass=0.207, joint=triple
        ),
        StepRecord((0, 10), 2, 0.01, probabilities=(0.6, 0.6), backoffs=(refused,), joint=pair),
        StepRecord(
            (1,), 1, 0.01, probabilities=(0.3,),
            backoffs=(refused, BackOff(2, "threshold", 0.4, 0.5)), joint=flat,
        ),
    ]  # fmt: skip


def four_runs() -> tuple[RunStore, dict[str, tuple[list[str], list[dict]]]]:
    """A store of four runs, and for each what `fill` returned."""
    store = RunStore()
    return store, {
        RUN: fill(store, RUN, records()),
        NEXT_RUN: fill(store, NEXT_RUN, records()[::-1], threshold=0.3),
        NASTY_RUN: fill(store, NASTY_RUN, records(), words=[[HOSTILE] * 3] * 3),
        LONG_RUN: fill(store, LONG_RUN, records() * 9),
    }


def launch_cards(store: RunStore) -> tuple[gr.Blocks, str]:
    """The three components, a box for the value of each, and a box for what they tell Python."""
    with gr.Blocks() as page:
        told = gr.Textbox(label="Told", elem_id="told")
        cards = {
            "inspector": joint_inspector(store.get_pass, elem_id="inspector"),
            "audit": part("audit", elem_id="audit"),
            "strip": part("strip", elem_id="strip"),
        }
        for name, card in cards.items():
            box = gr.Textbox(label=f"Value of {name}", lines=2, elem_id=f"value-{name}")
            given = box.change(lambda value: value, box, card, show_progress="hidden")
            given.then(None, None, None, js="() => { window.given = (window.given ?? 0) + 1; }")

        def tell(event: gr.EventData) -> str:
            return json.dumps(event._data)

        cards["inspector"].enlarge(tell, None, told)
        cards["strip"].use(tell, None, told)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        theme=theme(),
        head=f"<style>{style()}</style>",
    )
    return page, url


def give(page, name: str, value: str) -> None:
    """Sets the value of one of the three components, as a handler's output would."""
    page.fill(f"#value-{name} textarea", value)


def give_for_sure(page, name: str, value: str) -> None:
    """And waits until it is there, for what is not seen to come of it."""
    before = page.evaluate("window.given ?? 0")
    give(page, name, value)
    page.wait_for_function("(before) => (window.given ?? 0) > before", arg=before)


def dispatch(page, name: str, detail) -> None:
    page.evaluate(
        "([name, detail]) => dynamoBus.dispatchEvent(new CustomEvent(name, { detail }))", [name, detail]
    )


def lane(run: str | None, passes: list[dict], state: str = "done", threshold: float = 0.5) -> dict:
    """What the DynaMo pane tells of its current run."""
    header = {"run": run, "lane": "dynamo", "options": {"threshold": threshold}} if run else None
    return {
        "kind": "dynamo",
        "run": run,
        "header": header,
        "state": state,
        "end": {"end": "eos"} if state == "done" else None,
        "passes": passes,
        "count": len(passes),
        "turns": 1,
    }


def note_shown(page) -> None:
    """Keeps in `window.shown` which passes the inspector showed."""
    page.wait_for_selector(".dm-inspector")
    page.evaluate(
        "() => { window.shown = []; dynamoBus.addEventListener('shown', (one) => shown.push(one.detail)); }"
    )


def show(page, run: str, index: int, pinned: bool = True) -> None:
    """Asks the inspector for a pass and waits until it is there."""
    dispatch(page, "show", {"run": run, "index": index, "pinned": pinned})
    page.wait_for_function(
        "([run, index]) => shown.at(-1)?.run === run && shown.at(-1).index === index", arg=[run, index]
    )


def verdict(page) -> str:
    """What the inspector says of the pass, once it has drawn."""
    page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done), 60))")
    return page.inner_text(".dm-verdict b")
