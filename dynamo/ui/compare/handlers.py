"""What the Compare tab's events call: values of components in, values of components out.

A handler reads the chat back from the panes' values, asks the `PageService`, and reports what went wrong in
one sentence. `wiring` knows which component is which.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.common.bidi import in_html
from dynamo.ui.compare.chat import Chat, last_run
from dynamo.ui.compare.duel import BLIND, Duel
from dynamo.ui.compare.presenter import RaceView
from dynamo.ui.compare.service import READY, Busy, PageService
from dynamo.ui.compare.settings import LARGEST_SEED, Settings, shown
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.server.guard import discard

log = logging.getLogger(__name__)

EMPTY_PROMPT = "Type a message first, or pick an example below."
EDITING = "Change the message and press Generate: it replaces the last turn."
DUEL_AHEAD = "Blind duel: a new chat without names and clocks. You vote, then see which answer is DynaMo's."
DUEL = "Both are writing. You read first and choose; then you learn which is which."
CHOOSE = "Both are done. Which answer is better? Vote below them."


def in_one_sentence(handler: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """Errors of a generator become one sentence for the visitor, never a traceback."""

    @wraps(handler)
    def guarded(*arguments: Any, **keywords: Any) -> Iterator:
        try:
            yield from handler(*arguments, **keywords)
        except (ValueError, Busy) as error:
            # Gradio shows an error's text as HTML, and the sentences may quote what the visitor sent.
            raise gr.Error(in_html(str(error)), print_exception=False) from error
        except gr.Error:  # ZeroGPU's own: no quota is left, say
            raise
        except Exception as error:
            log.exception("a handler failed")
            message = (
                f"The model failed ({type(error).__name__}). What was generated stays on screen; try again."
            )
            raise gr.Error(message, print_exception=False) from error

    return guarded


class Handlers:
    """names: of the settings, in the order in which a handler gets their values, last; uploaded: the paths of
    files that visitors uploaded.
    """

    def __init__(
        self,
        service: PageService,
        names: list[str],
        book: VoteBook | None = None,
        uploaded: set[str] | None = None,
    ):
        self._service = service
        self._names = names
        self._book = book
        self._uploaded = set() if uploaded is None else uploaded

    def _parsed(self, base: str, dynamo: str, *values: Any) -> tuple[Chat, Settings]:
        chat, settings = (
            Chat.read(base, dynamo),
            Settings.from_controls(self._names, values, self._service.pair.options),
        )
        self._service.limits.check(chat.last_prompt if chat else "", settings.max_new_tokens)
        return chat, settings

    # ---- chat

    def validate(self, prompt: str, *others: Any) -> list[dict[str, Any]]:
        """Runs before the queue: an empty prompt is marked at its box and is no error. One value an input."""
        empty = not (isinstance(prompt, str) and prompt.strip())
        return [gr.validate(not empty, EMPTY_PROMPT), *(gr.validate(True, "") for _ in others)]

    @in_one_sentence
    def send(self, prompt: str, replacing: bool, blind: bool, opponent: str, *values: Any) -> Iterator:
        """base, dynamo, inspector, status, duel."""
        chat, settings = self._parsed(*values)
        self._service.limits.check(prompt, settings.max_new_tokens)
        if replacing and chat:
            chat = chat.without_last()
        if blind and self._book is not None:
            yield "", "", "", DUEL, None
            # Whoever has seen an answer at this seed before, the recorded one say, knows whose it is.
            settings = replace(settings, seed=secrets.randbelow(LARGEST_SEED))
            duel = Duel.between(self._service.lanes_run(prompt, settings, opponent))
            yield *duel.blind_wires(), "", CHOOSE, duel
            return
        for view in self._service.answer(chat, prompt, settings, opponent):
            yield *outputs(view), None

    @in_one_sentence
    def retry(self, opponent: str, *values: Any) -> Iterator:
        """base, dynamo, inspector, status."""
        chat, settings = self._parsed(*values)
        if not chat:
            yield values[0], values[1], gr.skip(), READY
            return
        for view in self._service.answer(chat.without_last(), chat.last_prompt, settings, opponent):
            yield outputs(view)

    def edit(self, base: str, dynamo: str) -> tuple[Any, bool, Any]:
        """prompt, replacing, status."""
        chat = _sentence(Chat.read, base, dynamo)
        return (chat.last_prompt, True, EDITING) if chat else (gr.skip(), False, READY)

    def look_again(self, base: str, dynamo: str) -> Iterator:
        """audit, base, dynamo, status: what comes after an answer, and ends where a visitor goes on. Nobody
        asked for it, so nobody is told where it fails.
        """
        chat, opinion = Chat(), ""
        try:
            chat = Chat.read(base, dynamo)
            opinion = self._service.audit(chat)
        except Exception as error:  # its words may be a visitor's, who may have made up tokens too
            log.warning("no audit of what a page sent (%s)", type(error).__name__)
        yield opinion, *(gr.skip(),) * 3
        try:
            for view in self._service.time_again(chat):
                yield gr.skip(), view.base, view.dynamo, view.status
        except Exception as error:
            log.warning("a race was not timed again (%s)", type(error).__name__)

    # ---- the quality dial

    @in_one_sentence
    def decode_again(self, opponent: str, *values: Any) -> Iterator:
        """base, dynamo, inspector, status; nothing changes before the first answer.

        Nor where the settings are those of the answer: Gradio's slider fires "release" whenever it loses the
        focus, and a visitor who passes it with Tab asks for nothing.
        """
        chat, settings = self._parsed(*values)
        if not chat or asdict(settings.options).items() <= chat.last_options.items():
            yield (gr.skip(),) * 4
            return
        for view in self._service.decode_again(chat, settings, opponent):
            yield outputs(view)

    @in_one_sentence
    def strip(self, *values: Any) -> Iterator[str]:
        yield from self._service.strip(*self._parsed(*values))

    def chosen_threshold(self, event: gr.EventData) -> float:
        """The threshold of a row of the strip; anyone may have made it up, the slider's own range holds."""
        value = getattr(event, "threshold", None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise gr.Error("threshold: expected 0 to 1", print_exception=False)
        return float(value)

    # ---- links, files and charts

    @in_one_sentence
    def open_link(self, event: gr.EventData) -> Iterator:
        """base, dynamo, inspector, status, prompt, opponent, and the settings in their order."""
        view, link = self._service.open_link(getattr(event, "lines", None), self._names)
        settings = link.settings
        values = {**shown(settings.options), "max_new_tokens": settings.max_new_tokens, "seed": settings.seed}
        known = link.opponent in self._service.pair.engines.opponents
        opponent = link.opponent if known else gr.skip()
        yield *outputs(view), link.prompt, opponent, *(values[name] for name in self._names)

    @in_one_sentence
    def load(self, path: str) -> Iterator:
        """base, dynamo, inspector, status. The file holds prompts and answers, and is not kept."""
        try:
            yield outputs(self._service.load(Path(path)))
        finally:
            discard(str(path), self._uploaded)

    def timeline_chart(self, dynamo: str) -> Any:
        trace = _sentence(last_run, dynamo or "")
        if trace is None or trace.header.lane == BLIND:
            return None
        options = trace.header.options
        if options.get("exact") is True:
            return charts.backoff_timeline(trace.passes, None)
        threshold = options.get("threshold")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise gr.Error("chat: its threshold must be 0 to 1; start a new chat", print_exception=False)
        return charts.backoff_timeline(trace.passes, threshold)

    def new_charts(self, dynamo: str) -> tuple[Any, Any]:
        """The charts after another answer: no pass of it is enlarged yet."""
        return self.timeline_chart(dynamo), None

    def heatmap(self, event: gr.EventData) -> tuple[Any, Any]:
        """The enlarged joint, and the panel that it opens in."""
        joint = self._service.find_joint(getattr(event, "run", None), getattr(event, "index", None))
        return (charts.joint_heatmap(joint) if joint else None), gr.update(open=True)

    # ---- votes

    def vote(self, duel: Duel | None, choice: str) -> tuple[Any, ...]:
        """base, dynamo, inspector, status, duel: the vote is kept before the sides are revealed."""
        if duel is None:
            return (gr.skip(),) * 5
        outcome = duel.outcome(choice)
        try:
            self._book.add(
                id=duel.id,
                model=duel.model,
                options=duel.options,
                speed_up=duel.speed_up,
                tokens_per_forward=duel.tokens_per_forward,
                outcome=outcome,
            )
        except (ValueError, OSError) as error:
            raise gr.Error(in_html(f"The vote was not kept: {error}"), print_exception=False) from error
        said = {"tie": "A tie", "dynamo": "You chose DynaMo", "base": "You chose the other lane, not DynaMo"}
        where = "left" if duel.left == "dynamo" else "right"
        status = f"{said[outcome]}; DynaMo was on the {where}. Your vote is kept."
        return duel.wires["base"], duel.wires["dynamo"], "", status, None


def _sentence(read: Callable[..., Any], *wires: str) -> Any:
    try:
        return read(*wires)
    except ValueError as error:
        raise gr.Error(in_html(str(error)), print_exception=False) from error


def outputs(view: RaceView) -> tuple[str, str, str, str]:
    return view.base, view.dynamo, view.inspector, view.status
