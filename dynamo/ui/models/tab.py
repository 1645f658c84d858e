"""The Models tab: which pair races, where it comes from, and what to do with a model that has no heads.

What is loaded is the whole page's, so every part that is about the pair is refreshed after a load, and for
whoever opens the page later. `dynamo.ui.models.manager` loads, `dynamo.ui.models.training` trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gradio as gr

from dynamo.common.bidi import in_html
from dynamo.sampling.sampler import SamplingOptions
from dynamo.ui.compare.handlers import in_one_sentence
from dynamo.ui.components import part
from dynamo.ui.models.footprint import footprint_table
from dynamo.ui.models.manager import LoadProgress, ModelManager
from dynamo.ui.models.pair_parts import PairParts, Updates, suggest
from dynamo.ui.models.training import TrainingSection
from dynamo.ui.wiring import IN_BROWSER, QUIET, RUN

MODELS = "Models"  # label of the tab
AS_SAVED = "as they are"
LONGEST_NAME = 300

_INTRO = """<div class="dm-models"><h2>Which model runs here</h2>
<p>The pair that is loaded answers in Compare, for everyone who has this page open.</p></div>"""
_SUITE = """<div class="dm-models"><p>The Pythia models come without token heads: they complete text, and
learn heads here.</p></div>"""
_HEADLESS = """<div class="dm-models"><h2><bdi>{name}</bdi> has no token heads yet</h2>
<p>So it cannot race: one pass gives one token. It completes text, and it learns heads here; the pair in
Compare stays.</p><h3>Plain completion by the base model</h3></div>"""


# Whether the visitor has written or picked a name, perhaps before the page has learned which pair is loaded.
_NOTE_NAMING = """() => { document.addEventListener("input", ({ target }) => {
  if (target.closest("#model-name, #models-picker")) window.dynamoModelNamed = true; }, true); }"""


@dataclass(frozen=True)
class _Tab:
    """The parts that events read or write."""

    loaded: gr.HTML
    picker: gr.HTML
    name: gr.Textbox
    quantize: gr.Radio
    load: gr.Button
    cancel: gr.Button
    status: gr.HTML
    headless: gr.Column
    headless_title: gr.HTML
    begun: gr.Textbox
    complete: gr.Button
    written: gr.Textbox
    speed: gr.HTML

    def refreshed(self) -> list[Any]:
        return [self.loaded, self.picker, self.headless, self.headless_title, self.written, self.speed]


def models_tab(manager: ModelManager, pair: PairParts, tabs: gr.Tabs, demo: gr.Blocks) -> None:
    """Builds the tab inside a `gr.Tab(MODELS)` and connects it; demo: the page, refreshed for latecomers."""
    tab = _build(manager)
    training = None
    if manager.offer.workshop is not None:
        with tab.headless:
            training = TrainingSection(manager, demo)
    # Swaps of the pair that this page shows: kept in the page, as answers may reach it out of turn.
    seen = gr.Number(0, precision=0, visible=False)
    loaded = gr.Textbox(manager.loaded, visible=False)
    refreshed = [seen, loaded, tab.name, *tab.refreshed(), *pair.outputs()]

    def refresh(swaps: int, opening: bool = False) -> Updates:
        told = _told(tab, manager)
        if swaps != manager.service.swaps:
            name = loaded if opening else tab.name
            told |= {seen: manager.service.swaps, name: manager.loaded, **pair.shown(manager)}
        return told

    def missed(swaps: int) -> Updates:
        return refresh(swaps, opening=True) if swaps != manager.service.swaps else {seen: swaps}

    def connect(event: Any, source: Any) -> Any:
        loading = event(_load(manager), [source, tab.quantize], tab.status, **_LOADING)
        shown = suggest(loading.then(refresh, seen, refreshed, **QUIET).then, pair.compare)
        if training is not None:
            shown.then(training.estimate_in_words, training.steps, training.estimate, **QUIET)
        for after in (shown.then, loading.failure):
            after(
                lambda: (gr.update(interactive=True), gr.update(interactive=False)), None,
                [tab.load, tab.cancel], **QUIET,
            )  # fmt: skip
        return loading

    begun = tab.load.click(
        lambda: (gr.update(interactive=False), gr.update(interactive=True)), None, [tab.load, tab.cancel],
        **QUIET,
    )  # fmt: skip
    connect(begun.then, tab.name)
    tab.cancel.click(manager.cancel, None, None, **QUIET)
    # The page was built for the pair that it began with. Asked twice, as the first answer may come so late
    # that it takes the place of one about a pair that was loaded meanwhile.
    opened = demo.load(partial(refresh, opening=True), seen, refreshed, **QUIET)
    opened = opened.then(missed, seen, refreshed, **QUIET)
    suggest(opened.then, pair.compare, opening=True)
    opened.then(
        None, [tab.name, loaded], tab.name, api_visibility="private",
        js="(name, loaded) => window.dynamoModelNamed ? name : loaded",
    )  # fmt: skip
    demo.load(None, None, None, js=_NOTE_NAMING, api_visibility="private")
    tab.picker.pick(_picked, None, tab.name, **QUIET)
    asked = [tab.quantize, tab.name]
    tab.quantize.change(
        lambda quantize, name: _picker(manager, _bits(quantize), name), asked, tab.picker, **QUIET
    )
    tabs.select(_arrived(manager), asked, [tab.picker, tab.loaded], **QUIET)
    tab.complete.click(_complete(manager), tab.begun, [tab.written, tab.speed], **RUN)
    if training is not None:
        finished = training.finished
        demo.load(training.estimate_in_words, training.steps, training.estimate, **QUIET)
        connect(finished.change, finished).then(
            lambda folder: gr.Tabs(selected="compare") if manager.loaded == folder else gr.skip(),
            finished, tabs, **QUIET,
        )  # fmt: skip


_LOADING = {"show_progress": "hidden", "concurrency_id": "loading", "concurrency_limit": 4, **IN_BROWSER}


def _build(manager: ModelManager) -> _Tab:
    offer, bits = manager.offer, manager.quantisations()
    gr.HTML(_INTRO)
    if offer.workshop is not None:
        gr.HTML(_SUITE)
    parts: dict[str, Any] = {"loaded": gr.HTML(_loaded(manager), elem_id="models-loaded")}
    parts["picker"] = part("picker", _picker(manager, None, manager.loaded), elem_id="models-picker")
    with gr.Row(elem_classes="dm-models-row"):
        parts["name"] = gr.Textbox(
            manager.loaded,
            label="Model: one of the above, a hub id, or a folder" if offer.any_model else "Model",
            interactive=offer.any_model,
            max_length=LONGEST_NAME,
            min_width=260,
            elem_id="model-name",
        )
        parts["quantize"] = gr.Radio(
            [AS_SAVED, *bits],
            value=AS_SAVED,
            label="Weights",
            info="Fewer bits save memory; on a CPU they cost time",
            visible=bool(bits),
            min_width=260,
            elem_id="model-bits",
        )
    with gr.Row(elem_classes="dm-models-row"):
        parts["load"] = gr.Button("Load", variant="primary", min_width=120, scale=0, elem_id="model-load")
        parts["cancel"] = gr.Button(
            "Cancel", min_width=100, scale=0, interactive=False, elem_id="model-cancel"
        )
    parts["status"] = gr.HTML(elem_id="model-status")
    with gr.Column(visible=False, elem_id="headless") as parts["headless"]:
        parts["headless_title"] = gr.HTML()
        with gr.Row(elem_classes="dm-models-row"):
            parts["begun"] = gr.Textbox(
                "Once upon a time", label="Text to complete", lines=1, max_lines=4, elem_id="begun"
            )
            parts["complete"] = gr.Button("Complete it", min_width=140, scale=0, elem_id="complete")
        parts["written"] = gr.Textbox(
            label="Completion", lines=4, interactive=False, elem_id="completion", buttons=["copy"]
        )
        parts["speed"] = gr.HTML(elem_id="completion-speed")
    return _Tab(**parts)


# ---- what is shown


def _told(tab: _Tab, manager: ModelManager) -> Updates:
    completion = manager.completion
    chosen = completion.name if completion else manager.loaded
    title = _HEADLESS.format(name=in_html(completion.name)) if completion else ""
    return {
        tab.loaded: _loaded(manager),
        tab.picker: _picker(manager, None, chosen),
        tab.headless: gr.update(visible=completion is not None),
        tab.headless_title: title,
        tab.written: "",
        tab.speed: "",
    }


def _loaded(manager: ModelManager) -> str:
    pair = manager.service.pair
    kind = "" if pair.chat else " It completes text; it was not finetuned to chat."
    heads = f"{pair.heads} token heads, up to {pair.max_length:,} tokens."
    name = f"<b><bdi>{in_html(pair.name)}</bdi></b>"
    service = manager.service
    table = footprint_table(pair.footprint, service.speeds(), service.speeds(in_full=True))
    return f'<div class="dm-models"><p>Loaded: {name}, {heads}{kind}</p>{table}</div>'


def _picker(manager: ModelManager, quantize: str | None, chosen: str) -> str:
    return json.dumps({"chosen": chosen, "rows": [asdict(row) for row in manager.rows(quantize)]})


def _arrived(manager: ModelManager) -> Callable[..., Any]:
    """What is free, cached, trained and how fast may have changed since the tab was seen last."""

    def arrived(quantize: str, name: str, event: gr.SelectData) -> Any:
        if event.value != MODELS:
            return gr.skip(), gr.skip()
        return _picker(manager, _bits(quantize), name), _loaded(manager)

    return arrived


def _picked(event: gr.EventData) -> Any:
    name = getattr(event, "name", None)
    return name[:LONGEST_NAME] if isinstance(name, str) else gr.skip()


def _bits(quantize: Any) -> str | None:
    return None if quantize in (None, AS_SAVED) else str(quantize)


def _status(moment: LoadProgress) -> str:
    bar = f'<progress max="{moment.total}" value="{moment.done}" aria-label="Download"></progress>'
    told = f'<p role="status">{in_html(moment.told)}</p>'
    return f'<div class="dm-models">{told}{bar if moment.total else ""}</div>'


def failed(reason: str) -> str:
    """A reason that stays on the page; Gradio's own message goes away after some seconds."""
    return f'<div class="dm-models"><p class="dm-failed" role="alert">{in_html(reason)}</p></div>'


# ---- what is done


def _load(manager: ModelManager) -> Callable[..., Iterator[str]]:
    def load(name: str, quantize: str) -> Iterator[str]:
        try:
            for moment in manager.load(str(name or "")[:LONGEST_NAME], _bits(quantize)):
                yield _status(moment)
        except (ValueError, OSError, RuntimeError) as error:
            kept = f" {manager.loaded} goes on answering." if not manager.notice else f" {manager.notice}"
            yield failed(f"{str(error).rstrip('.')}.{kept}")
            return
        told = f"{name.strip()} is loaded; it answers in Compare from the next run on."
        if manager.completion is not None:
            told = f"{name.strip()} is loaded. It has no token heads: see below."
        yield _status(LoadProgress(told))

    return load


def _complete(manager: ModelManager) -> Callable[[str], Iterator[tuple[str, str]]]:
    @in_one_sentence
    def complete(text: str) -> Iterator[tuple[str, str]]:
        completion = manager.completion
        if completion is None:
            raise ValueError("There is no model here that completes text; load one first")
        options = SamplingOptions()
        with manager.service.exclusive():
            for written, speed in completion.complete(text, options):
                yield written, f'<div class="dm-models"><p>{in_html(speed)}</p></div>'

    return complete
