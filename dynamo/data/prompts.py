"""The prompts that commands reply to: a JSON list of chats, each a list of turns (`role`, `content`), or
lines of Vicuna questions.

A model whose tokenizer lacks the chat template completes the last turn's text instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamo.data.reading import Reading
from dynamo.data.rows import rows
from dynamo.data.text import encode_chat, encode_prompt, has_chat_template

PROMPTS_FILE = Path(__file__).resolve().parents[2] / "assets" / "prompts.json"
EVERYDAY_FILE = PROMPTS_FILE.with_name("prompts-everyday.jsonl")  # for models that chat about anything
# Of the same kinds, for heads' training data alone; none of them is measured with.
TRAINING_FILE = PROMPTS_FILE.with_name("prompts-everyday-train.jsonl")


def read_prompts(path: Path | None, tokenizer: Any, limit: int = 0) -> list[list[int]]:
    """Ids of the first `limit` prompts of a file (0: all); None: of the prompts that come with the project.

    Raises ValueError for a file that is not such a list, and for a limit below 0.
    """
    if limit < 0:
        raise ValueError(f"limit: expected 0 (all) or more prompts, got {limit}")
    path = path or PROMPTS_FILE
    chats = [row.content for row in rows(path, Reading(strict=True))][: limit or None]
    if not chats or any(isinstance(chat, str) for chat in chats):
        raise ValueError(
            f"prompts: {path}: expected a list of chats, each a list of turns with 'role' and 'content'"
        )
    if has_chat_template(tokenizer):
        return [encode_chat(tokenizer, chat) for chat in chats]
    return [encode_prompt(tokenizer, chat[-1]["content"]) for chat in chats]
