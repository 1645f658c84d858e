"""Prompts to try that suit the loaded pair.

The embedded pair only knows the dialogues' domains, a pair that was finetuned to chat answers anything, and
one that was not completes a text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from dynamo.ui.components import ASSETS

DIALOGUES, CHAT, COMPLETION = "dialogues", "chat", "completion"
LABELS = {
    DIALOGUES: "Your message (this model knows booking talk only)",
    CHAT: "Your message",
    COMPLETION: "Text to complete (this model was not finetuned to chat)",
}


@dataclass(frozen=True)
class Examples:
    """label, placeholder: of the box that prompts go into; prompts: by the name of their button."""

    label: str
    placeholder: str
    prompts: dict[str, str]

    @property
    def first(self) -> str:
        return next(iter(self.prompts.values()))

    def samples(self) -> dict[str, Any]:
        """Keywords of the `gr.Dataset` that shows them."""
        return {
            "samples": [[prompt] for prompt in self.prompts.values()],
            "sample_labels": list(self.prompts),
        }


@cache
def examples_for(kind: str) -> Examples:
    """kind: `DIALOGUES`, `CHAT` or `COMPLETION`."""
    fields = json.loads((ASSETS / "examples.json").read_text(encoding="utf-8"))[kind]
    prompts = {each["label"]: each["prompt"] for each in fields["examples"]}
    return Examples(LABELS[kind], fields["placeholder"], prompts)


def all_examples() -> list[str]:
    """Every prompt of every kind: a box that holds one of them holds nothing that a visitor typed."""
    return [prompt for kind in LABELS for prompt in examples_for(kind).prompts.values()]
