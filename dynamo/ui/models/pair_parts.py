"""All parts of the page that are about the loaded pair, and what they show of another one after a swap."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dynamo.common.bidi import in_html
from dynamo.sampling.sampler import SamplingOptions
from dynamo.ui.compare.examples import all_examples, examples_for
from dynamo.ui.compare.service import READY
from dynamo.ui.compare.tab import OPPONENTS, CompareTab
from dynamo.ui.explore.tab import ExploreTab
from dynamo.ui.models.manager import ModelManager

Updates = dict[Any, Any]


@dataclass(frozen=True)
class PairParts:
    """What on the page is about the loaded pair. about: a description to the About page's HTML."""

    compare: CompareTab
    explore: ExploreTab
    notice: gr.HTML
    description: gr.HTML
    about: Callable[[str], str]

    def outputs(self) -> list[Any]:
        tab = self.compare
        cards = [card for card in (tab.audit, tab.strip) if card is not None]
        return [
            tab.prompt, tab.suggested, tab.examples, tab.opponent, tab.settings["max_order"], self.notice,
            self.description, tab.base, tab.dynamo, tab.inspector, tab.bar, tab.replacing, tab.duel, *cards,
            *self.explore.outputs,
        ]  # fmt: skip

    def shown(self, manager: ModelManager) -> Updates:
        """Everything about the pair that is loaded now, and no chat yet; what the visitor wrote stays."""
        tab, pair = self.compare, manager.service.pair
        cards = [card for card in (tab.audit, tab.strip) if card is not None]
        names = list(pair.opponents)
        examples = examples_for(pair.examples)
        return {
            tab.prompt: gr.update(label=examples.label, placeholder=examples.placeholder),
            tab.suggested: examples.first,
            tab.examples: gr.update(**examples.samples()),
            tab.opponent: gr.update(choices=[(OPPONENTS[name], name) for name in names], value=names[0]),
            tab.settings["max_order"]: gr.update(
                maximum=max(pair.heads, 2), value=min(pair.heads, SamplingOptions().max_order)
            ),
            self.notice: notice_update(manager.notice),
            self.description: self.about(pair.description),
            **dict.fromkeys((tab.base, tab.dynamo, tab.inspector, *cards), ""),
            tab.bar: READY,
            tab.replacing: False,
            tab.duel: None,
            **self.explore.show(manager.service.analyses.report),
        }


def suggest(event: Any, tab: CompareTab, opening: bool = False) -> Any:
    """After `event` the box holds the suggested prompt, unless the visitor has written another by then.

    opening: of a page, whose box began with its suggestion: only one for another pair is new, and an example
    that was picked meanwhile stays.
    """
    stays = f"suggested === {json.dumps(tab.suggested.value)}" if opening else "false"
    js = f"""(prompt, suggested) => {stays} ||
      (prompt?.trim() && !{json.dumps(all_examples())}.includes(prompt)) ? prompt : suggested"""
    return event(None, [tab.prompt, tab.suggested], tab.prompt, js=js, api_visibility="private")


def notice_update(told: str) -> Any:
    return gr.update(value=notice_html(told), visible=bool(told))


def notice_html(told: str) -> str:
    return f'<p class="dm-notice" role="status">{in_html(told)}</p>' if told else ""
