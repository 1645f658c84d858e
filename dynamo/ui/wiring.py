"""The Compare tab: which event calls what.

What runs the model shares one place in the queue (`concurrency_id="model"`), so that no two clocks disturb
each other; other visitors wait and see their place. Stop tells the panes first and then cancels: what Gradio
still delivers of a cancelled run does not undo it.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.ui.chat import Chat
from dynamo.ui.compare import CompareTab
from dynamo.ui.duel import Duel
from dynamo.ui.host import READY, Busy, Host
from dynamo.ui.presenter import RaceView
from dynamo.ui.settings import CUSTOM, PRESETS, Settings, preset_of
from dynamo.ui.votes import VoteBook

log = logging.getLogger(__name__)

EMPTY_PROMPT = "Type a message first, or pick an example below."
STOPPED = "Stopped. What was generated so far stays on screen."
DUEL = "Both are writing. You read first and choose; then you learn which is which."
CHOOSE = "Which answer is better: left or right?"

_ENABLE_IF_PROMPT = "(prompt) => ({ __type__: 'update', interactive: Boolean(prompt?.trim()) })"
_ENABLE = "() => ({ __type__: 'update', interactive: true })"
_DISABLE = "() => ({ __type__: 'update', interactive: false })"
_TO_BUS = "(value) => window.dynamoBus?.dispatchEvent(new CustomEvent('{name}', {{ detail: value }}))"
# The box is emptied when its message was answered, unless something else was typed meanwhile.
_EMPTY_IF_ANSWERED = """(prompt, wire) => {
  const header = (wire || "").split("\\n").filter((line) => line.startsWith('{"format"')).pop();
  return header && JSON.parse(header).prompt === prompt.trim() ? "" : prompt;
}"""

RUN = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "trigger_mode": "once",
    "show_progress": "minimal",
    "scroll_to_output": False,
    "api_visibility": "private",
}
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def in_one_sentence(handler: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """What goes wrong in a generator becomes one sentence for the visitor, never a traceback."""

    @wraps(handler)
    def guarded(*arguments: Any) -> Iterator:
        try:
            yield from handler(*arguments)
        except (ValueError, Busy) as error:
            # Gradio shows an error's text as HTML, and the sentences may quote what the visitor sent.
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        except Exception as error:
            log.exception("a handler failed")
            told = (
                f"The model failed ({type(error).__name__}). What was generated stays on screen; try again."
            )
            raise gr.Error(told, print_exception=False) from error

    return guarded


class Wiring:
    """Handlers with the tab's components as their inputs and outputs, and the events that call them."""

    def __init__(self, host: Host, tab: CompareTab, book: VoteBook | None):
        self._host = host
        self._tab = tab
        self._book = book
        self._names = list(tab.settings)
        self._settings = list(tab.settings.values())
        self._chat = [tab.base, tab.dynamo]
        self._views = [tab.base, tab.dynamo, tab.inspector, tab.bar]

    def connect(self) -> list[Any]:
        """Wires everything; returns the events that run the model."""
        runs = [*self._connect_chat(), *self._connect_dial()]
        self._connect_stop(runs)
        self._connect_files()
        self._connect_charts()
        if self._book is not None:
            self._connect_votes()
        return runs

    # ---- chat

    def _connect_chat(self) -> list[Any]:
        tab = self._tab
        start = [tab.generate.click, tab.prompt.submit]
        gr.on(start, None, tab.prompt, tab.stop, js=_ENABLE_IF_PROMPT, api_visibility="private")
        blind = tab.blind if tab.blind is not None else gr.State(False)
        running = gr.on(
            start,
            self._send,
            [tab.prompt, tab.replacing, blind, tab.opponent, *self._chat, *self._settings],
            [*self._views, tab.duel],
            validator=self._validate,
            show_progress_on=tab.bar,
            **RUN,
        )
        running.success(
            None, [tab.prompt, tab.dynamo], tab.prompt, js=_EMPTY_IF_ANSWERED, api_visibility="private"
        )
        bumped = tab.retry.click(
            lambda seed: int(seed or 0) + 1, tab.settings["seed"], tab.settings["seed"], **QUIET
        )
        retried = bumped.then(
            self._retry,
            [tab.opponent, *self._chat, *self._settings],
            self._views,
            show_progress_on=tab.bar,
            **RUN,
        )
        tab.retry.click(None, None, tab.stop, js=_ENABLE, api_visibility="private")
        tab.edit.click(self._edit, self._chat, [tab.prompt, tab.replacing, tab.bar], **QUIET)
        tab.new_chat.click(
            lambda: ("", "", "", READY, "", "", False),
            None,
            [*self._views, *self._cards(), tab.replacing],
            **QUIET,
        )
        for event in (running, retried):
            self._after(event)
        return [running, retried]

    def _cards(self) -> list[Any]:
        tab = self._tab
        return [tab.audit or gr.State(""), tab.strip or gr.State("")]

    def _after(self, event: Any) -> None:
        tab = self._tab
        event.then(None, None, tab.stop, js=_DISABLE, api_visibility="private")
        event.then(lambda: False, None, tab.replacing, **QUIET)
        if tab.audit is not None:
            event.then(
                self._audit, self._chat, tab.audit, concurrency_id="model", show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip

    def _validate(self, prompt: str, *others: Any) -> list[dict[str, Any]]:
        """Runs before the queue: an empty prompt is marked at its box, and is no error. One per input."""
        empty = not (isinstance(prompt, str) and prompt.strip())
        return [gr.validate(not empty, EMPTY_PROMPT), *(gr.validate(True, "") for _ in others)]

    def _parsed(self, values: tuple[Any, ...]) -> tuple[Chat, Settings]:
        base, dynamo, *rest = values
        return Chat.read(base, dynamo), Settings.of(self._names, rest)

    @in_one_sentence
    def _send(self, prompt: str, replacing: bool, blind: bool, opponent: str, *values: Any) -> Iterator:
        chat, settings = self._parsed(values)
        if replacing and chat:
            chat = chat.without_last()
        if blind and self._book is not None:
            yield from self._duel(prompt, settings, opponent)
            return
        for view in self._host.answer(chat, prompt, settings, opponent):
            yield *_outputs(view), None

    @in_one_sentence
    def _retry(self, opponent: str, *values: Any) -> Iterator:
        chat, settings = self._parsed(values)
        if chat:
            for view in self._host.answer(chat.without_last(), chat.last_prompt, settings, opponent):
                yield _outputs(view)
        else:
            yield values[0], values[1], "", READY

    def _edit(self, base: str, dynamo: str) -> tuple[Any, bool, Any]:
        chat = Chat.read(base, dynamo)
        if not chat:
            return gr.skip(), False, READY
        return chat.last_prompt, True, "Change the message and press Generate: it replaces the last turn."

    def _audit(self, base: str, dynamo: str) -> str:
        try:
            return self._host.audit(Chat.read(base, dynamo))
        except (ValueError, Busy) as error:
            log.warning("no audit: %s", error)
            return ""

    # ---- the quality dial

    def _connect_dial(self) -> list[Any]:
        tab = self._tab
        threshold = tab.settings["threshold"]
        threshold.change(None, threshold, None, js=_TO_BUS.format(name="threshold"), api_visibility="private")
        again = [*self._chat, *self._settings], self._views
        released = threshold.release(self._again, *again, show_progress_on=tab.bar, **RUN)
        knobs = [tab.settings[name] for name in ("mask_strength", "adaptive", "blur")]
        picked = tab.preset.input(
            lambda name, *now: PRESETS.get(name, now), [tab.preset, *knobs], knobs, **QUIET
        ).then(self._again, *again, show_progress_on=tab.bar, **RUN)
        for knob in knobs:
            knob.input(preset_of, knobs, tab.preset, **QUIET)
        for event in (released, picked):
            self._after(event)
        runs = [released, picked]
        if tab.strip is not None:
            runs.append(
                tab.strip_start.click(self._strip, *again[:1], tab.strip, show_progress_on=tab.strip, **RUN)
            )
            tab.strip_start.click(None, None, tab.stop, js=_ENABLE, api_visibility="private")
            runs[-1].then(None, None, tab.stop, js=_DISABLE, api_visibility="private")
            tab.strip.use(lambda event: event.threshold, None, threshold, **QUIET)
        return runs

    @in_one_sentence
    def _again(self, *values: Any) -> Iterator:
        chat, settings = self._parsed(values)
        if chat:
            for view in self._host.decode_again(chat, settings):
                yield _outputs(view)
        else:
            yield values[0], values[1], gr.skip(), gr.skip()

    @in_one_sentence
    def _strip(self, *values: Any) -> Iterator[str]:
        yield from self._host.strip(*self._parsed(values))

    # ---- Stop

    def _connect_stop(self, runs: list[Any]) -> None:
        tab = self._tab
        tab.stop.click(None, js=_TO_BUS.format(name="stop"), cancels=runs, api_visibility="private").then(
            lambda: (STOPPED, gr.update(interactive=False)), None, [tab.bar, tab.stop], **QUIET
        )

    # ---- files and charts

    def _connect_files(self) -> None:
        tab = self._tab

        @in_one_sentence
        def load(path: str) -> Iterator:
            yield *_outputs(self._host.load(Path(path))), "", ""

        tab.load.upload(load, tab.load, [*self._views, *self._cards()], api_visibility="private")

    def _connect_charts(self) -> None:
        tab = self._tab

        def timeline(base: str, dynamo: str) -> Any:
            chat = Chat.read(base, dynamo)
            if not chat:
                return None
            trace = chat.dynamo[-1].trace
            return charts.backoff_timeline(trace.passes, trace.header.options["threshold"])

        def heatmap(event: gr.EventData) -> tuple[Any, Any]:
            joint = self._host.find_joint(getattr(event, "run", None), getattr(event, "index", None))
            return (charts.joint_heatmap(joint) if joint else None), gr.update(open=True)

        tab.charts.expand(timeline, self._chat, tab.timeline_chart, **QUIET)
        tab.inspector.enlarge(heatmap, None, [tab.heatmap, tab.charts], **QUIET)

    # ---- votes

    def _duel(self, prompt: str, settings: Settings, opponent: str) -> Iterator:
        yield "", "", "", DUEL, None
        duel = Duel.of(self._host.lanes_run(prompt, settings, opponent))
        yield *duel.blind_wires(), "", CHOOSE, duel

    def _connect_votes(self) -> None:
        tab = self._tab
        tab.duel.change(lambda duel: gr.update(visible=duel is not None), tab.duel, tab.votes, **QUIET)
        for choice, button in tab.vote_buttons.items():
            button.click(
                lambda duel, choice=choice: self._vote(duel, choice),
                tab.duel,
                [*self._views, tab.duel],
                **QUIET,
            )

    def _vote(self, duel: Duel | None, choice: str) -> tuple[Any, ...]:
        if duel is None:
            return (gr.skip(),) * 5
        outcome = duel.outcome(choice)
        try:
            self._book.add(
                id=duel.id,
                model=duel.model, options=duel.options, speed_up=duel.speed_up,
                tokens_per_forward=duel.tokens_per_forward, outcome=outcome,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(f"The vote was not kept: {error}"), print_exception=False) from error
        said = {"tie": "A tie", "dynamo": "You chose DynaMo", "base": "You chose the other lane, not DynaMo"}
        where = "left" if duel.left == "dynamo" else "right"
        told = f"{said[outcome]}; DynaMo was on the {where}. Your vote is kept."
        return duel.wires["base"], duel.wires["dynamo"], "", told, None


def _outputs(view: RaceView) -> tuple[str, str, str, str]:
    return view.base, view.dynamo, view.inspector, view.status


__all__ = ["CUSTOM", "Wiring"]
