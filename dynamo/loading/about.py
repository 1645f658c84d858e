"""What is said of a pair wherever it is shown: a name for people, the licence of its weights, what it is good
for in one line, and at more length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from yaml import YAMLError

from dynamo.data.text import has_chat_template
from dynamo.loading.names import EMBEDDED, SMOLLM2, smollm2_base


@dataclass(frozen=True)
class About:
    """licence: "" where the checkpoint names none; good_for: a clause that follows the name."""

    title: str = ""
    licence: str = ""
    good_for: str = ""
    description: str = ""


EMBEDDED_ABOUT = About(
    "Embedded pair",
    "CC BY-SA 4.0",
    "knows booking talk only: hotels, flights, tables and the like",
    "A small dialogue model trained by this project on the Schema-Guided Dialogue corpus. "
    "It has Pythia's architecture but is not a Pythia checkpoint, and it only knows that corpus's domains: "
    "restaurants, hotels, flights, films, music, weather, banking, calendars, rides and events. Asked about "
    "anything else it answers as if it were one of these. It invents names, times and prices, and books "
    "nothing.",
)
SMOLLM2_ABOUT = About(
    "SmolLM2-135M-Instruct",
    "Apache-2.0",
    "chats about anything, often wrongly",
    "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) with token heads trained by this project "
    "on the model's own conversations. It chats about anything, and a model this small is often wrong.",
)
KNOWN = {EMBEDDED: EMBEDDED_ABOUT, SMOLLM2: SMOLLM2_ABOUT}


def about(name: str, folder: Path, tokenizer: Any) -> About:
    """Of a loaded pair; folder: of its DynaMo model."""
    if name == SMOLLM2:
        known = KNOWN[name]
        return About(
            known.title, known.licence, known.good_for, f"{known.description} {smollm2_base().sentence}."
        )
    if name in KNOWN:
        return KNOWN[name]
    chat = has_chat_template(tokenizer)
    untuned = "" if chat else " It completes text; it was not finetuned to chat."
    return About(
        name, _licence(folder), "" if chat else "completes text", f"DynaMo checkpoint {name}.{untuned}"
    )


def _licence(folder: Path) -> str:
    """As the checkpoint's card says."""
    try:
        found = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, YAMLError):
        return ""
    licence = found.get("license")
    return licence if isinstance(licence, str) else ""
