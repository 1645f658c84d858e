"""The Compare tab: what stands where. What each event calls is `wiring`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from dynamo.ui.compare.analyses import Offer
from dynamo.ui.compare.examples import Examples, examples_for
from dynamo.ui.compare.pair import GENERATE, OWN_LOOP, THRESHOLD_1
from dynamo.ui.compare.presenter import RaceView
from dynamo.ui.compare.service import READY, PageService
from dynamo.ui.compare.settings import CUSTOM, PRESETS, exact_switch, settings_panel, threshold_dial
from dynamo.ui.components import joint_inspector, part, race_bar, token_pane

LONGEST_PROMPT = 2000  # characters; the engine counts tokens, this only stops pasted books

OPPONENTS = {
    OWN_LOOP: "the base model, our own loop",
    GENERATE: "the base model, transformers generate",
    THRESHOLD_1: "DynaMo at threshold 1 (same weights)",
}
OPPONENT_INFO = (
    "All sample alike: `generate` gets our temperature, top-k and repetition penalty as a logits processor"
)

_LEGEND = """
<p class="dm-legend" aria-label="Legend"><span>One forward pass emitted</span>
  <span class="dm-chunk size-1 backed-off">one</span>
  <span class="dm-chunk size-2"><span class="dm-token">two </span><span class="dm-token">tokens</span></span>
  <span class="dm-chunk size-3"><span class="dm-token">three </span><span class="dm-token">tokens </span><span
    class="dm-token">together</span></span>
  <span class="dm-legend-note">dotted: it tried more and backed off</span>
</p>
"""


@dataclass(frozen=True)
class CompareTab:
    """The parts of the tab that events read or write."""

    prompt: gr.Textbox
    suggested: gr.Textbox
    examples: gr.Dataset
    generate: gr.Button
    stop: gr.Button
    retry: gr.Button
    edit: gr.Button
    new_chat: gr.Button
    load: gr.UploadButton
    bar: gr.HTML
    base: gr.HTML
    dynamo: gr.HTML
    inspector: gr.HTML
    audit: gr.HTML | None
    settings: Mapping[str, gr.components.Component]
    preset: gr.Radio
    opponent: gr.Radio
    blind: gr.Checkbox | gr.State
    votes: gr.Row | None
    vote_buttons: Mapping[str, gr.Button]
    strip: gr.HTML | None
    strip_start: gr.Button | None
    charts: gr.Accordion
    timeline_chart: gr.Plot
    heatmap: gr.Plot
    replacing: gr.State
    duel: gr.State


def compare_tab(service: PageService, offer: Offer, recorded: RaceView | None) -> CompareTab:
    """Builds the tab inside a `gr.Tab`; `recorded` is what the panes show before anything was asked."""
    first = recorded or RaceView("", "", "", READY)
    prompt, suggested, generate, stop, examples = _prompt_row(examples_for(service.pair.examples))
    bar = race_bar(first.status, service.split, elem_id="race")
    gr.HTML(_LEGEND)
    base, dynamo = _panes(service, first)
    voting = offer.votes is not None
    votes, vote_buttons = _vote_row() if voting else (None, {})
    retry, edit, new_chat, load, blind = _chat_row(voting)
    with gr.Row(equal_height=True, elem_id="dial"):
        with gr.Column(min_width=260):
            threshold = threshold_dial()
            exact = exact_switch()
        preset = gr.Radio(
            [*PRESETS, CUSTOM],
            value=next(iter(PRESETS)),
            label="What corrects the joint",
            info="The paper's ablation: one click decodes the answer again without a part",
            min_width=260,
            elem_id="preset",
        )
    inspector = joint_inspector(service.store.get_pass, elem_id="inspector", value=first.inspector)
    part("timeline", elem_id="timeline")
    audit = part("audit", elem_id="audit") if service.analyses.audit else None
    strip, strip_start = _strip() if offer.strip else (None, None)
    with gr.Accordion("All settings, and the left lane", open=False, elem_id="settings"):
        opponent = gr.Radio(
            [(OPPONENTS[name], name) for name in service.pair.opponents],
            value=next(iter(service.pair.opponents)),
            label="Left lane",
            info=OPPONENT_INFO,
            elem_id="opponent",
        )
        settings = {
            "threshold": threshold,
            "exact": exact,
            **settings_panel(service.pair.heads, service.limits.answer_tokens),
        }
    with gr.Accordion("Charts to zoom, read and save", open=False, elem_id="charts") as charts:
        gr.Markdown("The back-offs of the last answer, and the joint of the pass that you enlarge above.")
        timeline_chart = gr.Plot(label="Best joint value of every pass against its threshold")
        heatmap = gr.Plot(label="Joint of one pass, 25 candidates by 25", elem_id="heatmap")
    return CompareTab(
        prompt=prompt,
        suggested=suggested,
        examples=examples,
        generate=generate,
        stop=stop,
        retry=retry,
        edit=edit,
        new_chat=new_chat,
        load=load,
        bar=bar,
        base=base,
        dynamo=dynamo,
        inspector=inspector,
        audit=audit,
        settings=settings,
        preset=preset,
        opponent=opponent,
        blind=blind or gr.State(False),
        votes=votes,
        vote_buttons=vote_buttons,
        strip=strip,
        strip_start=strip_start,
        charts=charts,
        timeline_chart=timeline_chart,
        heatmap=heatmap,
        replacing=gr.State(False),
        duel=gr.State(None),
    )


def _prompt_row(examples: Examples) -> tuple[gr.Textbox, gr.Textbox, gr.Button, gr.Button, gr.Dataset]:
    with gr.Row(elem_classes="dm-prompt-row"):
        with gr.Column(scale=5, min_width=300):
            prompt = gr.Textbox(
                examples.first,
                label=examples.label,
                placeholder=examples.placeholder,
                lines=1,
                max_lines=4,
                max_length=LONGEST_PROMPT,
                elem_id="prompt",
            )
        with gr.Column(scale=1, min_width=220), gr.Row(elem_classes="dm-actions"):
            generate = gr.Button("Generate", variant="primary", min_width=100, elem_id="generate")
            stop = gr.Button("Stop", min_width=80, interactive=False, elem_id="stop")
    shown = gr.Dataset(
        components=[prompt], **examples.samples(), label="Try one", samples_per_page=20, elem_id="examples"
    )
    return prompt, gr.Textbox(examples.first, visible=False), generate, stop, shown


def _chat_row(
    voting: bool,
) -> tuple[gr.Button, gr.Button, gr.Button, gr.UploadButton, gr.Checkbox | None]:
    with gr.Row(elem_classes="dm-chat-row"):
        retry = gr.Button("Retry with the next seed", size="sm", min_width=90, elem_id="retry")
        edit = gr.Button("Edit last message", size="sm", min_width=90, elem_id="edit")
        new_chat = gr.Button("New chat", size="sm", min_width=90, elem_id="new-chat")
        load = gr.UploadButton(
            "Load a trace", file_types=[".ndjson"], size="sm", min_width=90, elem_id="load-trace"
        )
        blind = None
        if voting:
            blind = gr.Checkbox(
                False,
                label="Blind duel: vote first, then learn which is which",
                container=False,
                min_width=200,
                elem_id="blind",
            )
    return retry, edit, new_chat, load, blind


def _vote_row() -> tuple[gr.Row, dict[str, gr.Button]]:
    with gr.Row(visible=False, elem_id="votes") as row:
        gr.Markdown(
            "**Which answer is better?** Your vote is kept with the settings and the speed-up, "
            "without the prompt and the answers.",
            elem_classes="dm-question",
        )
        buttons = {
            "left": gr.Button("Left", size="sm", min_width=80, elem_id="vote-left"),
            "tie": gr.Button("Tie", size="sm", min_width=80, elem_id="vote-tie"),
            "right": gr.Button("Right", size="sm", min_width=80, elem_id="vote-right"),
        }
    return row, buttons


def _panes(service: PageService, first: RaceView) -> tuple[gr.HTML, gr.HTML]:
    with gr.Row(equal_height=True, elem_classes="dm-panes"):
        with gr.Column(min_width=320):
            base = token_pane("base", first.base, service.store.get_trace, elem_id="pane-base")
        with gr.Column(min_width=320):
            dynamo = token_pane("dynamo", first.dynamo, service.store.get_trace, elem_id="pane-dynamo")
    return base, dynamo


def _strip() -> tuple[gr.HTML, gr.Button]:
    with gr.Accordion("This prompt at seven thresholds", open=False, elem_id="strip-panel"):
        start = gr.Button("Decode it at 0, .1, .3, .5, .7, .9 and 1", size="sm", elem_id="strip-start")
        strip = part("strip", elem_id="strip")
    return strip, start
