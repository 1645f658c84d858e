"""A sweep run from the page: each point is shown when it is measured, and Cancel works between two replies.

Like any other run it has the model to itself (`concurrency_id="model"`). Gradio can end a handler only where
it yields, once a threshold, so Cancel also sets a flag that is checked after every reply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from dynamo.ui.compare.handlers import in_one_sentence
from dynamo.ui.components import QUIET, RUN, ends_of
from dynamo.ui.explore.sweep_view import Report

# run_sweep(prompts, progress) yields the report so far, after the base and after each threshold, and calls
# progress(done, total) after every reply; what `progress` raises passes through it.
RunSweep = Callable[[int, Callable[[int, int], None]], Iterator[Report]]
Updates = Mapping[Any, Any]

FEW_PROMPTS, MOST_PROMPTS = 8, 40

_INTRO = """<div class="dm-explore"><h2>Measure it here</h2>
<p>One reply to each prompt at each threshold, on this machine. Fewer prompts are quicker and give wider
intervals. Nobody else can use the model meanwhile.</p></div>"""
_STOPPED = "Stopped. What was measured so far is shown."


class Cancelled(Exception):
    """A visitor stopped the sweep."""


class Stops:
    """The sessions whose sweep should stop."""

    def __init__(self):
        self._flags: dict[str | None, threading.Event] = {}

    def start(self, session: str | None) -> threading.Event:
        return self._flags.setdefault(session, threading.Event())

    def stop(self, session: str | None) -> None:
        if session in self._flags:
            self._flags[session].set()

    def forget(self, session: str | None) -> None:
        self._flags.pop(session, None)


def run_section(
    run_sweep: RunSweep,
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
    shown: Callable[..., Updates],
) -> None:
    """Builds the part of the tab that runs a sweep.

    shown: (report, *values of `inputs`) -> updates of `outputs`.
    """
    gr.HTML(_INTRO)
    with gr.Row(elem_classes="dm-use"):
        prompts = gr.Slider(
            2, MOST_PROMPTS, FEW_PROMPTS, step=1, label="Prompts", min_width=240, elem_id="sweep-prompts"
        )
        run = gr.Button(
            "Run the sweep here", variant="primary", min_width=230, scale=0, size="md", elem_id="sweep-run"
        )
        cancel = gr.Button(
            "Cancel", min_width=100, scale=0, interactive=False, size="md", elem_id="sweep-cancel"
        )
    status = gr.HTML(elem_id="sweep-status")
    stops = Stops()

    def begin() -> tuple[Any, str]:
        return gr.update(interactive=True), ""

    def stop(request: gr.Request) -> tuple[Any, str]:
        stops.stop(request.session_hash)
        return gr.update(interactive=False), _STOPPED

    run.click(begin, None, [cancel, status], **QUIET)
    running = run.click(
        _measure(run_sweep, shown, stops),
        [prompts, *inputs],
        list(outputs),
        show_progress_on=status,
        **{**RUN, "show_progress": "full"},
    )
    for after in ends_of(running):
        after(lambda: gr.update(interactive=False), None, cancel, **QUIET)
    cancel.click(stop, None, [cancel, status], cancels=[running], **QUIET)


def _measure(run_sweep: RunSweep, shown: Callable[..., Updates], stops: Stops) -> Callable[..., Any]:
    @in_one_sentence
    def measure(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for it here)
        *values: Any,
    ) -> Iterator[Updates]:
        prompts, *others = values
        flag = stops.start(request.session_hash)

        def after_reply(done: int, total: int) -> None:
            if flag.is_set():
                raise Cancelled
            progress((done, total), desc="Replies", unit="replies")

        try:
            for report in run_sweep(max(1, min(int(prompts), MOST_PROMPTS)), after_reply):
                if report["points"]:
                    yield shown(report, *others)
        except Cancelled:
            return
        finally:
            stops.forget(request.session_hash)

    return measure
