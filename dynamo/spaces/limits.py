"""Limits for visitors of a public Space, from `app: limits` in `spaces_config.yaml`.

Elsewhere only the model's and the page's own limits apply.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dynamo.common.validation import message, short_repr


@dataclass(frozen=True)
class Limits:
    """None means no limit.

    prompt_characters, answer_tokens: of one run; requests_per_minute: of one visitor, by address, that
    many at once and then evenly; upload_mb: of one file; behind_proxy: whether a proxy in front of the page
    names a visitor's address, as on a Space. Without a proxy the header could be forged.
    """

    prompt_characters: int | None = None
    answer_tokens: int | None = None
    requests_per_minute: int | None = None
    upload_mb: int | None = None
    behind_proxy: bool = False

    @classmethod
    def from_config(cls, given: dict[str, Any], where: str, behind_proxy: bool) -> Limits:
        """Limits from the file's keys. Raises ValueError naming the key."""
        names = [field.name for field in fields(cls) if field.name != "behind_proxy"]
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"{where}.{name}: expected one of {', '.join(names)}")
            if type(value) is not int or value < 1:
                raise ValueError(f"{where}.{name}: expected a whole number from 1, got {value!r}")
        return cls(**given, behind_proxy=behind_proxy)

    def check(self, prompt: str, max_new_tokens: int) -> None:
        """Raises ValueError naming the limit that a run exceeds."""
        prompt = message("prompt", prompt)
        if self.prompt_characters is not None and len(prompt) > self.prompt_characters:
            raise ValueError(
                f"prompt: it has {len(prompt):,} characters and at most {self.prompt_characters:,} are read "
                "here; shorten it"
            )
        asked = max_new_tokens if isinstance(max_new_tokens, int | float) else 0  # refused elsewhere
        if self.answer_tokens is not None and asked > self.answer_tokens:
            raise ValueError(
                f"max_new_tokens: expected 1 to {self.answer_tokens} here, got {short_repr(max_new_tokens)}; "
                "ask for less"
            )

    def upload_bytes(self, most: int) -> int:
        """The largest upload in bytes; `most`: that of the page itself."""
        return most if self.upload_mb is None else min(most, 1_000_000 * self.upload_mb)


UNLIMITED = Limits()
