"""The Models tab: which pair races, where it comes from, and what to do with a model that has no heads.

What is loaded is the whole page's, so every part that is about the pair is refreshed after a load, and for
whoever opens the page later. `dynamo.ui.models.manager` loads, `dynamo.ui.models.training` trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import gradio as gr

from dynamo.common.bidi import in_html
from dynamo.sampling.options import SamplingOptions
from dynamo.ui.compare.handlers import in_one_sentence
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.compare.tab import CompareTab
from dynamo.ui.components import IN_BROWSER, QUIET, RUN, part
from dynamo.ui.models.few_bits import AS_SAVED, few_bits_table
from dynamo.ui.models.footprint import footprint_table
from dynamo.ui.models.manager import LoadProgress, ModelManager
from dynamo.ui.models.switch import ModelSwitch
from dynamo.ui.models.training import TrainingSection

MODELS = "Models"  # label of the tab
LOADING = {"show_progress": "hidden", "concurrency_id": "loading", "concurrency_limit": 4, **IN_BROWSER}
LONGEST_NAME = 300

Updates = dict[Any, Any]

_INTRO = """<div class="dm-models"><h2>Which model runs here</h2>
<p>Choose one and press Load. Switching models affects every visitor.{}</p></div>"""
_SUITE = """ The Pythia models come without token heads: once loaded, they complete text, and you can train
heads for them here."""
_HEADLESS = """<div class="dm-models"><h2><bdi>{name}</bdi> has no token heads yet</h2>
<p>It cannot race, as one pass gives one token. It can complete text, and you can train heads for it here; the
pair in Compare stays.</p><h3>Plain completion by the base model</h3></div>"""


# Whether the visitor has written or picked a name, perhaps before the page has learned which pair is loaded.
# It is in the page's head, as Gradio's load events may come after the first letters.
NOTE_NAMING = """document.addEventListener("input", ({ target }) => {
  if (target.closest("#model-name, #models-picker")) window.dynamoModelNamed = true; }, true);"""


class ModelsTab:
    """Builds the tab inside a `gr.Tab(MODELS)` and connects it.

    compare: the tab in which the pair races; switch: the picker in the page's head, and where it reports;
    show_pair: updates of all of `about_pair`, the components elsewhere that are about the loaded pair; it is
    told whether a page is being opened; demo: the page, refreshed for whoever opens it later.
    """

    def __init__(
        self,
        manager: ModelManager,
        switch: ModelSwitch,
        compare: CompareTab,
        about_pair: list[Any],
        show_pair: Callable[[bool], Updates],
        tabs: gr.Tabs,
        demo: gr.Blocks,
    ):
        self._manager, self._switch, self._compare = manager, switch, compare
        self._show_pair = show_pair
        self._build()
        self._training = None
        if manager.training_folder is not None:
            with self.headless:
                self._training = TrainingSection(manager, demo)
        # What this page shows, see `_now`: kept in the page, as answers may reach it out of turn.
        self._built = self._now()
        self._built_for = _shown_of(manager.service.pair)
        self.seen = gr.Textbox(self._built, visible=False)
        self.opened_with = gr.Textbox(manager.loaded, visible=False)
        self._refreshed = [
            self.seen, self.opened_with, self.name, self.loaded, self.picker, self.headless,
            self.headless_title, self.written, self.speed, switch.picked, self.quantize, self.few_bits,
            *about_pair,
        ]  # fmt: skip
        self._connect_loading(tabs, demo)
        self._connect_opening(demo)
        self._connect_choice(tabs)

    def _build(self) -> None:
        manager = self._manager
        gr.HTML(_INTRO.format(_SUITE if manager.training_folder is not None else ""))
        self.picker = part("picker", self._rows(None, manager.loaded), elem_id="models-picker")
        with gr.Row(elem_classes="dm-models-row"):
            self.name = gr.Textbox(
                manager.loaded,
                label="Model: one of the above, a hub id, a folder or a GGUF file"
                if manager.any_model
                else "Model",
                interactive=manager.any_model,
                max_length=LONGEST_NAME,
                min_width=260,
                elem_id="model-name",
            )
            self.quantize = gr.Radio(
                **self._weights(manager.loaded), label="Weights", min_width=260, elem_id="model-bits"
            )
        with gr.Row(elem_classes="dm-models-row"):
            self.load = gr.Button("Load", variant="primary", min_width=120, scale=0, elem_id="model-load")
            self.cancel = gr.Button(
                "Cancel", min_width=100, scale=0, interactive=False, elem_id="model-cancel"
            )
        self.status = gr.HTML(elem_id="model-status")
        self.few_bits = gr.HTML(self._few_bits(manager.loaded), elem_id="model-few-bits")
        self.loaded = gr.HTML(self._loaded(), elem_id="models-loaded")
        with gr.Column(visible=False, elem_id="headless") as self.headless:
            self.headless_title = gr.HTML()
            with gr.Row(elem_classes="dm-models-row"):
                self.begun = gr.Textbox(
                    "Once upon a time", label="Text to complete", lines=1, max_lines=4, elem_id="begun"
                )
                self.complete = gr.Button("Complete it", min_width=140, scale=0, elem_id="complete")
            self.written = gr.Textbox(
                label="Completion", lines=4, interactive=False, elem_id="completion", buttons=["copy"]
            )
            self.speed = gr.HTML(elem_id="completion-speed")

    # ---- events

    def _connect_loading(self, tabs: gr.Tabs, demo: gr.Blocks) -> None:
        switch = self._switch
        self._connect_load(self.load.click, self._load, self.name, self.status)
        # Picked again while the first is being loaded: "once" would drop it without a word.
        picked = partial(switch.picked.input, trigger_mode="multiple")
        self._connect_load(picked, self._load_picked, switch.picked, switch.status)
        self.cancel.click(self._manager.cancel, None, None, **QUIET)
        if self._training is not None:
            self._show_estimate(demo.load)
            finished = self._training.finished
            self._connect_load(finished.change, self._load, finished, self.status).then(
                lambda folder: gr.Tabs(selected="compare") if self._manager.loaded == folder else gr.skip(),
                finished, tabs, **QUIET,
            )  # fmt: skip

    def _connect_load(self, event: Any, load: Callable[..., Any], source: Any, status: gr.HTML) -> Any:
        """At `event` the model that `source` names is loaded, and then the page shows it.

        The event's first listener, as each reads its inputs when its turn comes, and by then an answer that
        was under way may have put another name there.
        """
        buttons = [self.load, self.cancel]
        loading = event(load, [source, self.quantize], [status, *buttons], **LOADING)
        loading.failure(lambda: _buttons(loading=False), None, buttons, **QUIET)
        refreshed = loading.then(self._refresh, self.seen, self._refreshed, **QUIET)
        refreshed = refreshed.then(self._missed, self.seen, self._refreshed, **QUIET)
        shown = self._compare.suggest(refreshed.then)
        if self._training is not None:
            self._show_estimate(shown.then)
        return loading

    def _show_estimate(self, event: Any) -> None:
        training = self._training
        event(training.estimate_in_words, training.steps, training.estimate, **QUIET)

    def _connect_opening(self, demo: gr.Blocks) -> None:
        """The page was built for the pair that it began with. Asked twice, as the first answer may come so
        late that it takes the place of one about a pair that was loaded meanwhile.
        """
        opened = demo.load(partial(self._refresh, opening=True), self.seen, self._refreshed, **QUIET)
        missed = partial(self._missed, opening=True)
        opened = opened.then(missed, self.seen, self._refreshed, **QUIET)
        self._compare.suggest(opened.then, opening=True)
        self.opened = opened.then(
            None, [self.name, self.opened_with], self.name,
            js="(name, loaded) => window.dynamoModelNamed ? name : loaded", **IN_BROWSER,
        )  # fmt: skip

    def _connect_choice(self, tabs: gr.Tabs) -> None:
        chosen = [self.quantize, self.name]
        self.picker.pick(_picked, None, self.name, **QUIET)
        self.quantize.change(self._rows, chosen, self.picker, **QUIET)
        self.name.change(self._named, chosen, [self.quantize, self.few_bits], **QUIET)
        arrived = tabs.select(self._arrived, chosen, [self.picker, self.loaded, self.few_bits], **QUIET)
        arrived.then(self._loaded, None, self.loaded, **QUIET)  # that answer may be older than a load's
        self.complete.click(self._complete, self.begun, [self.written, self.speed], **RUN)

    # ---- what is shown

    def _now(self) -> str:
        """How often the pair was swapped, and a model loaded beside it."""
        return f"{self._manager.service.swaps} {self._manager.completions}"

    def _refresh(self, seen: str, opening: bool = False) -> Updates:
        manager, completion = self._manager, self._manager.completion
        pair, now = manager.service.pair, self._now()
        updates = {
            self.seen: now,
            self.loaded: self._loaded(),
            self.picker: self._rows(None, completion.name if completion else manager.loaded),
            self.headless: gr.update(visible=completion is not None),
            self.headless_title: _HEADLESS.format(name=in_html(completion.name)) if completion else "",
            self.written: "",
            self.speed: "",
        }
        changed = seen.split()[:1] != now.split()[:1]
        if opening and seen == self._built and _shown_of(pair) == self._built_for:
            changed = False  # another pair came and went
        # The answer to a page's first question may come when its visitor has already picked another pair.
        updates[self._switch.picked] = self._switch.update(with_value=changed or not opening)
        if changed:
            name = self.opened_with if opening else self.name
            weights = gr.update(**self._weights(manager.loaded, pair.weights))
            updates |= {
                name: manager.loaded,
                self.quantize: weights,
                self.few_bits: self._few_bits(manager.loaded),
                **self._show_pair(opening),
            }
        return updates

    def _missed(self, seen: str, opening: bool = False) -> Updates:
        """Refreshes a page on which an answer about an earlier pair has come after that about the latest."""
        return self._refresh(seen, opening) if seen != self._now() else {self.seen: seen}

    def _loaded(self) -> str:
        service = self._manager.service
        pair = service.pair
        kind = "" if pair.chat else " It completes text; it was not finetuned to chat."
        reach = f"up to {pair.heads} tokens a pass, {pair.max_length:,} in a chat."
        name = f"<b><bdi>{in_html(pair.about.title or pair.name)}</bdi></b>"
        table = footprint_table(pair.footprint, service.speeds(), service.speeds(quantised=""))
        return f'<div class="dm-models"><p>Loaded: {name}, {reach}{kind}</p>{table}</div>'

    def _rows(self, quantize: Any, chosen: str) -> str:
        """The picker's value: what can be loaded at these weights."""
        rows = [asdict(row) for row in self._manager.rows(_bits(quantize))]
        return json.dumps({"chosen": chosen, "rows": rows})

    def _arrived(self, quantize: str, name: str, event: gr.SelectData) -> Any:
        """What is free, cached, trained and how fast may have changed since the tab was seen last."""
        if event.value != MODELS:
            return (gr.skip(),) * 3
        return self._rows(quantize, name), self._loaded(), self._few_bits(name)

    def _named(self, quantize: str, name: str) -> tuple[Any, str]:
        """What there is to choose from for the model whose name was picked or written. What was chosen stays
        where it is offered, also what is chosen until this arrives."""
        weights = self._weights(name, quantize)
        if weights["value"] == quantize:
            del weights["value"]
        return gr.update(**weights), self._few_bits(name)

    def _weights(self, name: str, chosen: str = AS_SAVED) -> dict[str, Any]:
        offered = self._manager.quantisations(name)
        measured = name in self._manager.few_bits
        return {
            "choices": [AS_SAVED, *offered],
            "value": chosen if chosen in offered else AS_SAVED,
            "info": "Fewer bits are less to read in every pass: see below"
            if measured
            else "Fewer bits save memory; on a CPU they cost time",
            "visible": bool(offered),
        }

    def _few_bits(self, name: str) -> str:
        """What fewer bits change of the model of this name."""
        service, measured = self._manager.service, self._manager.few_bits.get(name, ())
        loaded = service.pair.weights if service.pair.name == name else None
        return few_bits_table(measured, lambda weights: service.speeds(name, weights), loaded)

    # ---- what is done

    def _load(self, name: str, quantize: str) -> Iterator[tuple[Any, ...]]:
        """status, load, cancel."""
        manager = self._manager
        try:
            for progress in manager.load(str(name or "")[:LONGEST_NAME], _bits(quantize)):
                yield _status(progress), *_buttons(loading=True)
        except (ValueError, OSError, RuntimeError) as error:
            kept = manager.notice or f"{manager.loaded} goes on answering."
            yield failed(f"{str(error).rstrip('.')}. {kept}"), *_buttons(loading=False)
            return
        message = f"{name.strip()} is loaded for every visitor; it answers in Compare from the next run on."
        if manager.completion is not None:
            message = f"{name.strip()} is loaded. It has no token heads: see below."
        yield _status(LoadProgress(message)), *_buttons(loading=False)

    def _load_picked(self, name: str, quantize: str) -> Iterator[tuple[Any, ...]]:
        """As `_load`. Gradio's list also fires "input" whenever it loses the focus: nobody asked for anything
        then.
        """
        if refusal := self._switch.refusal(name):
            gr.Warning(in_html(refusal))  # the line of status goes on with the load
        if refusal or name == self._manager.loaded:
            yield (gr.skip(),) * 3
        else:
            offered = quantize in self._manager.quantisations(name)
            yield from self._load(name, quantize if offered else AS_SAVED)

    @in_one_sentence
    def _complete(self, text: str) -> Iterator[tuple[str, str]]:
        completion = self._manager.completion
        if completion is None:
            raise ValueError("There is no model here that completes text; load one first")
        with self._manager.service.exclusive():
            for written, speed in completion.complete(text, SamplingOptions()):
                yield written, f'<div class="dm-models"><p>{in_html(speed)}</p></div>'


def _shown_of(pair: ModelPair) -> tuple[Any, ...]:
    """What a page says of a pair."""
    return pair.name, pair.bits, pair.options, pair.about, pair.description, pair.report


def _buttons(loading: bool) -> tuple[Any, Any]:
    """Of the two buttons only one can be pressed: Load, or Cancel while a model is loading."""
    return gr.update(interactive=not loading), gr.update(interactive=loading)


def _picked(event: gr.EventData) -> Any:
    name = getattr(event, "name", None)
    return name[:LONGEST_NAME] if isinstance(name, str) else gr.skip()


def _bits(quantize: Any) -> str | None:
    return None if quantize in (None, AS_SAVED) else str(quantize)


def _status(progress: LoadProgress) -> str:
    bar = f'<progress max="{progress.total}" value="{progress.done}" aria-label="Download"></progress>'
    message = f'<p role="status">{in_html(progress.message)}</p>'
    return f'<div class="dm-models">{message}{bar if progress.total else ""}</div>'


def failed(reason: str) -> str:
    """A reason that stays on the page; Gradio's own message goes away after some seconds."""
    return f'<div class="dm-models"><p class="dm-failed" role="alert">{in_html(reason)}</p></div>'
