"""The Compare tab: which event calls what.

All runs of the model share one place in the queue (`concurrency_id="model"`), so that no two clocks disturb
each other; other visitors wait and see their place. Stop notifies the panes first and then cancels, so that
what Gradio still delivers of a cancelled run does not undo it.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from dynamo.ui.compare.handlers import DUEL_AHEAD, Handlers
from dynamo.ui.compare.service import READY
from dynamo.ui.compare.settings import CUSTOM, PRESETS, dial_state, preset_of
from dynamo.ui.compare.tab import CompareTab
from dynamo.ui.components import IN_BROWSER, LATER, QUIET, RUN, ends_of

STOPPED = "Stopped. What was generated so far stays on screen."

_ENABLE_IF_PROMPT = "(prompt) => ({ __type__: 'update', interactive: Boolean(prompt?.trim()) })"
_ENABLE = "() => ({ __type__: 'update', interactive: true })"
_ENABLE_IF_REPLAYING = "() => ({ __type__: 'update', interactive: Boolean(window.dynamoBus?.replaying) })"
_TO_BUS = "(value) => window.dynamoBus?.dispatchEvent(new CustomEvent('{name}', {{ detail: value }}))"
_BRING_INTO_VIEW = "() => document.getElementById('{}').scrollIntoView({{ block: 'nearest' }})"
_GO_ON_IF_PROMPT = "(prompt) => prompt?.trim() && window.dynamoBus?.dispatchEvent(new CustomEvent('going'))"
# Of a closed panel the server draws nothing; it does when the panel opens.
_IF_CHARTS_OPEN = "(wire) => document.querySelector('#charts p')?.checkVisibility() ? wire : ''"
# The box is emptied when its message was answered, unless something else was typed meanwhile.
_EMPTY_IF_ANSWERED = """(prompt, wire) => {
  const header = (wire || "").split("\\n").filter((line) => line.startsWith('{"format"')).pop();
  return header && JSON.parse(header).prompt === prompt.trim() ? "" : prompt;
}"""


class Wiring:
    """Connects a tab's components with the handlers, once."""

    def __init__(self, tab: CompareTab, handlers: Handlers):
        self._tab = tab
        self._handlers = handlers
        self._settings = list(tab.settings.values())
        self._chat = [tab.base, tab.dynamo]
        self._views = [tab.base, tab.dynamo, tab.inspector, tab.bar]

    def connect(self) -> None:
        later = self._connect_later()
        sent = self._connect_send()
        runs = [sent, self._connect_retry(), *self._connect_dial()]
        for run in runs:
            self._after_a_run(run)
        if self._tab.strip is not None:
            runs.append(self._connect_strip())
        self._connect_stop([*runs, later])
        self._connect_chat_buttons([*runs, later])
        self._connect_link()
        self._connect_charts()
        if self._tab.votes is not None:
            self._connect_votes(sent)

    def _connect_later(self) -> Any:
        """What still needs the model after a run. Who asks for something else does not wait for it.

        It is wired before all others: the page calls an event's listeners in their order, each when the one
        before it has come to its end.
        """
        tab = self._tab
        shown = [tab.audit, *self._chat, tab.bar]
        later = tab.bar.ran(self._handlers.look_again, self._chat, shown, **LATER)
        tab.bar.going(None, cancels=later, **IN_BROWSER)
        # Not the threshold's slider, which is also let go where nobody moved it.
        going_on = [tab.retry.click, tab.settings["exact"].input, tab.preset.input, tab.load.upload,
                    tab.bar.linked]  # fmt: skip
        for asks in going_on:
            asks(None, js=_TO_BUS.format(name="going"), **IN_BROWSER)
        for asks in (tab.generate.click, tab.prompt.submit):
            asks(None, tab.prompt, js=_GO_ON_IF_PROMPT, **IN_BROWSER)
        return later

    def _connect_send(self) -> Any:
        tab = self._tab
        start = [tab.generate.click, tab.prompt.submit]
        gr.on(start, None, tab.prompt, tab.stop, js=_ENABLE_IF_PROMPT, **IN_BROWSER)
        running = gr.on(
            start,
            self._handlers.send,
            [tab.prompt, tab.replacing, tab.blind, tab.opponent, *self._chat, *self._settings],
            [*self._views, tab.duel],
            validator=self._handlers.validate,
            show_progress_on=tab.bar,
            **RUN,
        )
        running.success(None, [tab.prompt, tab.dynamo], tab.prompt, js=_EMPTY_IF_ANSWERED, **IN_BROWSER)
        return running

    def _connect_retry(self) -> Any:
        tab = self._tab
        seed = tab.settings["seed"]
        tab.retry.click(None, None, tab.stop, js=_ENABLE, **IN_BROWSER)
        return tab.retry.click(lambda now: int(now or 0) + 1, seed, seed, **QUIET).then(
            self._handlers.retry,
            [tab.opponent, *self._chat, *self._settings],
            self._views,
            show_progress_on=tab.bar,
            **RUN,
        )

    def _connect_dial(self) -> list[Any]:
        """The threshold previews while it is dragged, and decodes again when it is released."""
        tab = self._tab
        threshold = tab.settings["threshold"]
        threshold.change(None, threshold, None, js=_TO_BUS.format(name="threshold"), **IN_BROWSER)
        again = {
            "fn": self._handlers.decode_again,
            "inputs": [tab.opponent, *self._chat, *self._settings],
            "outputs": self._views,
            "show_progress_on": tab.bar,
            **RUN,
        }
        knobs = [tab.settings[name] for name in ("mask_strength", "adaptive", "blur")]
        picked = tab.preset.input(
            lambda name, *now: PRESETS.get(name, now), [tab.preset, *knobs], knobs, **QUIET
        )
        # Whoever wants a custom correction sets it there.
        tab.preset.input(
            lambda name: gr.update(open=True) if name == CUSTOM else gr.skip(), tab.preset, tab.panel, **QUIET
        ).then(
            None,
            tab.preset,
            js=f"(name) => name === '{CUSTOM}' && ({_BRING_INTO_VIEW.format('settings')})()",
            **IN_BROWSER,
        )
        for knob in knobs:
            knob.input(preset_of, knobs, tab.preset, **QUIET)
        exact = tab.settings["exact"]
        states = json.dumps([dial_state(False), dial_state(True)])
        js = f"(exact) => ({{ __type__: 'update', ...{states}[Number(exact)] }})"
        exact.change(None, exact, threshold, js=js, **IN_BROWSER)
        switched = exact.input(**again)
        return [threshold.release(**again), switched, picked.then(**again)]

    def _after_a_run(self, event: Any) -> None:
        tab = self._tab
        for after in ends_of(event):
            after(None, None, tab.stop, js=_ENABLE_IF_REPLAYING, **IN_BROWSER)
        event.then(lambda: False, None, tab.replacing, **QUIET)
        event.then(None, js=_TO_BUS.format(name="ran"), **IN_BROWSER)
        self._draw_charts(event.then)

    def _connect_strip(self) -> Any:
        tab = self._tab
        tab.strip.use(self._handlers.chosen_threshold, None, tab.settings["threshold"], **QUIET)
        tab.strip_start.click(None, None, tab.stop, js=_ENABLE, **IN_BROWSER)
        running = tab.strip_start.click(
            self._handlers.strip,
            [*self._chat, *self._settings],
            tab.strip,
            show_progress_on=tab.strip,
            **RUN,
        )
        for after in ends_of(running):
            after(None, None, tab.stop, js=_ENABLE_IF_REPLAYING, **IN_BROWSER)
        return running

    def _connect_stop(self, runs: list[Any]) -> None:
        """Stop ends the run, and the replay of one that is over."""
        tab = self._tab
        for change in (tab.bar.replaying, tab.bar.rested):
            change(None, None, tab.stop, js=_ENABLE_IF_REPLAYING, **IN_BROWSER)
        stopped = tab.stop.click(None, js=_TO_BUS.format(name="stop"), cancels=runs, **IN_BROWSER)
        said = stopped.then(
            lambda: (STOPPED, gr.update(interactive=False)), None, [tab.bar, tab.stop], **QUIET
        )
        self._draw_charts(said.then)

    def _connect_chat_buttons(self, runs: list[Any]) -> None:
        tab = self._tab
        tab.edit.click(self._handlers.edit, self._chat, [tab.prompt, tab.replacing, tab.bar], **QUIET).then(
            None, js="() => document.querySelector('#prompt textarea').focus()", **IN_BROWSER
        )
        # What a run under way sends would bring the old chat back.
        left = tab.new_chat.click(None, js=_TO_BUS.format(name="stop"), cancels=runs, **IN_BROWSER)
        emptied = [*self._views, tab.replacing, tab.duel, *tab.cards, tab.stop]
        cleared = left.then(
            lambda: ("", "", "", READY, False, None, *("" for _ in tab.cards), gr.update(interactive=False)),
            None,
            emptied,
            **QUIET,
        )
        self._draw_charts(cleared.then)
        tab.examples.click(lambda sample: sample[0], tab.examples, tab.prompt, **QUIET)
        loaded = tab.load.upload(
            self._handlers.load,
            tab.load,
            self._views,
            show_progress="minimal",
            show_progress_on=tab.bar,
            **IN_BROWSER,
        )
        self._draw_charts(loaded.success)
        for card in tab.cards:
            tab.load.upload(lambda: "", None, card, **QUIET)

    def _connect_link(self) -> None:
        """A race that the page's address holds, or an address that is pasted over it."""
        tab = self._tab
        opened = tab.bar.linked(
            self._handlers.open_link,
            None,
            [*self._views, tab.prompt, tab.opponent, *self._settings],
            show_progress="minimal",
            show_progress_on=tab.bar,
            **IN_BROWSER,
        )
        knobs = [tab.settings[name] for name in ("mask_strength", "adaptive", "blur")]
        opened.success(preset_of, knobs, tab.preset, **QUIET)
        self._draw_charts(opened.success)
        for card in tab.cards:
            opened.success(lambda: "", None, card, **QUIET)

    def _connect_charts(self) -> None:
        tab = self._tab
        tab.charts.expand(self._handlers.timeline_chart, tab.dynamo, tab.timeline_chart, **QUIET)
        tab.inspector.enlarge(self._handlers.heatmap, None, [tab.heatmap, tab.charts], **QUIET).then(
            None, js=_BRING_INTO_VIEW.format("charts"), **IN_BROWSER
        )

    def _draw_charts(self, event: Any) -> None:
        """After `event` the panel of charts, where it is open, is about the answer on screen."""
        tab = self._tab
        charts = [tab.timeline_chart, tab.heatmap]
        event(self._handlers.new_charts, tab.dynamo, charts, js=_IF_CHARTS_OPEN, **QUIET)

    def _connect_votes(self, sent: Any) -> None:
        """The row is visible while a duel waits for its vote."""
        tab = self._tab
        show = {"fn": lambda duel: gr.update(visible=duel is not None), "inputs": tab.duel, **QUIET}
        for after in ends_of(sent):
            after(outputs=tab.votes, **show)
        tab.new_chat.click(lambda: gr.update(visible=False), None, tab.votes, **QUIET)
        ahead = f"(blind) => blind ? {json.dumps(DUEL_AHEAD)} : {json.dumps(READY)}"
        tab.blind.input(None, tab.blind, tab.bar, js=ahead, **IN_BROWSER)
        for choice, button in tab.vote_buttons.items():
            chosen = gr.State(choice)
            voted = button.click(self._handlers.vote, [tab.duel, chosen], [*self._views, tab.duel], **QUIET)
            self._draw_charts(voted.then(outputs=tab.votes, **show).then)
