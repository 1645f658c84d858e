"""The Compare tab's components, and what they show of the pair that is loaded. `wiring` connects them."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from dynamo.ui.compare.duel import CHOICES
from dynamo.ui.compare.examples import Examples, all_examples, examples_for
from dynamo.ui.compare.pair import GENERATE, OWN_LOOP, THRESHOLD_1, ModelPair
from dynamo.ui.compare.presenter import RaceView
from dynamo.ui.compare.service import READY, PageService
from dynamo.ui.compare.settings import (
    CUSTOM,
    PRESETS,
    exact_switch,
    orders,
    settings_panel,
    shown,
    threshold_dial,
)
from dynamo.ui.components import IN_BROWSER, joint_inspector, part, race_bar, token_pane

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
<p class="dm-legend" aria-label="Legend"><span>One pass emitted</span>
  <span class="dm-chunk size-1 backed-off dm-lossy-words">one</span>
  <span class="dm-chunk size-1 dm-exact-words">one</span>
  <span class="dm-chunk size-2"><span class="dm-token">two </span><span class="dm-token">tokens</span></span>
  <span class="dm-chunk size-3"><span class="dm-token">three </span><span class="dm-token">tokens </span><span
    class="dm-token">together</span></span>
  <span class="dm-legend-note dm-lossy-words">dotted: tried more, wasn't sure, backed off</span>
  <span class="dm-legend-note dm-exact-words">drafts it kept, then one of its own</span>
</p>
"""


class CompareTab:
    """Builds the tab inside a `gr.Tab`; its attributes are the components that events read or write.

    recorded: what the panes show before the first answer; voting: whether blind duels are offered; strip:
    whether one click may decode a prompt seven times. Components that are not offered are None.
    """

    def __init__(
        self,
        service: PageService,
        recorded: RaceView | None = None,
        *,
        voting: bool = False,
        strip: bool = True,
    ):
        first = recorded or RaceView("", "", "", READY)
        self._chosen = service.pair.options
        with gr.Column(elem_id="stage"):
            self.bar = race_bar(first.status, service.profile, elem_id="race")
            gr.HTML(_LEGEND, elem_id="legend")
            self._panes(service, first)
            with gr.Column(elem_id="say", min_width=0):
                self._prompt_row(examples_for(service.pair.examples))
                self._vote_row(voting)
                self._chat_row(voting)
                self._dial()
            with gr.Column(elem_id="look", min_width=0):
                self.inspector = joint_inspector(
                    service.store.get_pass, elem_id="inspector", value=first.inspector
                )
                part("timeline", elem_id="timeline")
        self._ablations()
        self.audit = part("audit", elem_id="audit", visible=service.pair.audit is not None)
        self._strip(strip)
        self._settings(service)
        with gr.Accordion("Charts to zoom, read and save", open=False, elem_id="charts") as self.charts:
            gr.Markdown("The back-offs of the last answer, and the joint of the pass that you enlarge above.")
            self.timeline_chart = gr.Plot(label="Best joint value of every pass against its threshold")
            self.heatmap = gr.Plot(label="Joint of one pass", elem_id="heatmap")
        self.replacing = gr.State(False)
        self.duel = gr.State(None)

    @property
    def cards(self) -> list[gr.HTML]:
        """Cards about the last answer, emptied with each new chat."""
        return [self.audit] if self.strip is None else [self.audit, self.strip]

    def pair_updates(self, pair: ModelPair, opening: bool = False) -> dict[Any, Any]:
        """Everything in the tab that is about a pair, and no chat yet; what the visitor typed stays, and the
        recording where the page is being opened."""
        examples = examples_for(pair.examples)
        return {
            self.prompt: gr.update(label=examples.label, placeholder=examples.placeholder),
            self.suggested: examples.first,
            self.examples: gr.update(**examples.samples()),
            self.opponent: gr.update(**_opponents(pair)),
            **{
                self.settings[name]: value
                for name, value in shown(pair.options).items()
                if name in self.settings
            },
            self.settings["max_order"]: gr.update(
                maximum=orders(pair.heads)[1], value=min(pair.heads, pair.options.max_order)
            ),
            **({} if opening else self._empty()),
        }

    def _empty(self) -> dict[Any, Any]:
        lanes = (self.base, self.dynamo, self.inspector, *self.cards)
        nothing = (self.duel, self.timeline_chart, self.heatmap)
        return {
            **dict.fromkeys(lanes, ""), **dict.fromkeys(nothing), self.bar: READY, self.replacing: False
        }  # fmt: skip

    def suggest(self, event: Any, opening: bool = False) -> Any:
        """After `event` the box holds the suggested prompt, unless the visitor has typed another by then.

        opening: of a page, whose box began with its suggestion: only one for another pair is new, and an
        example that was picked meanwhile stays.
        """
        stays = f"suggested === {json.dumps(self.suggested.value)}" if opening else "false"
        js = f"""(prompt, suggested) => {stays} ||
          (prompt?.trim() && !{json.dumps(all_examples())}.includes(prompt)) ? prompt : suggested"""
        return event(None, [self.prompt, self.suggested], self.prompt, js=js, **IN_BROWSER)

    def _prompt_row(self, examples: Examples) -> None:
        with gr.Row(elem_classes="dm-prompt-row"):
            self.prompt = gr.Textbox(
                examples.first,
                label=examples.label,
                placeholder=examples.placeholder,
                lines=1,
                max_lines=4,
                max_length=LONGEST_PROMPT,
                container=False,
                min_width=120,
                elem_id="prompt",
            )
            self.generate = gr.Button("Generate", variant="primary", min_width=90, elem_id="generate")
            self.stop = gr.Button("Stop", min_width=70, interactive=False, elem_id="stop")
        self.examples = gr.Dataset(
            components=[self.prompt],
            **examples.samples(),
            label="Try one",
            samples_per_page=20,
            elem_id="examples",
        )
        self.suggested = gr.Textbox(examples.first, visible=False)

    def _panes(self, service: PageService, first: RaceView) -> None:
        get_trace = service.store.get_trace
        self.base = token_pane("base", first.base, get_trace, elem_id="pane-base")
        self.dynamo = token_pane("dynamo", first.dynamo, get_trace, elem_id="pane-dynamo")

    def _vote_row(self, voting: bool) -> None:
        self.votes, self.vote_buttons = None, {}
        if not voting:
            return
        with gr.Row(visible=False, elem_id="votes") as self.votes:
            gr.Markdown(
                "**Which answer is better?** Your vote is kept with the settings and the speed-up, "
                "without the prompt and the answers.",
                elem_classes="dm-question",
            )
            self.vote_buttons = {
                choice: gr.Button(choice.title(), size="sm", min_width=80, elem_id=f"vote-{choice}")
                for choice in CHOICES
            }

    def _chat_row(self, voting: bool) -> None:
        small = {"size": "sm", "min_width": 90}
        with gr.Row(elem_classes="dm-chat-row"):
            self.retry = gr.Button("Try another seed", elem_id="retry", **small)
            self.edit = gr.Button("Edit last message", elem_id="edit", **small)
            self.new_chat = gr.Button("New chat", elem_id="new-chat", **small)
            self.load = gr.UploadButton("Load a trace", file_types=[".ndjson"], elem_id="load-trace", **small)
            if voting:
                self.blind = gr.Checkbox(
                    False,
                    label="Blind duel",
                    container=False,
                    min_width=90,
                    elem_id="blind",
                )
            else:
                self.blind = gr.State(False)

    def _dial(self) -> None:
        with gr.Row(elem_id="dial"):
            self.settings = {
                "threshold": threshold_dial(self._chosen),
                "exact": exact_switch(self._chosen),
            }

    def _ablations(self) -> None:
        self.preset = gr.Radio(
            [*PRESETS, CUSTOM],
            value=next(iter(PRESETS)),
            label="The paper's ablations: decode again without a part",
            info="By one click; a pair's correlator counts as its mask",
            elem_id="preset",
        )

    def _strip(self, offered: bool) -> None:
        self.strip = self.strip_start = None
        if not offered:
            return
        with gr.Accordion("This prompt at seven thresholds", open=False, elem_id="strip-panel"):
            self.strip_start = gr.Button(
                "Decode it at 0, .1, .3, .5, .7, .9 and 1", size="sm", elem_id="strip-start"
            )
            self.strip = part("strip", elem_id="strip")

    def _settings(self, service: PageService) -> None:
        with gr.Accordion("All settings, and the left lane", open=False, elem_id="settings") as self.panel:
            self.opponent = gr.Radio(
                **_opponents(service.pair), label="Left lane", info=OPPONENT_INFO, elem_id="opponent"
            )
            self.settings |= settings_panel(service.pair.heads, self._chosen, service.limits.answer_tokens)


def _opponents(pair: ModelPair) -> dict[str, Any]:
    names = pair.engines.opponents
    return {"choices": [(OPPONENTS[name], name) for name in names], "value": names[0]}
