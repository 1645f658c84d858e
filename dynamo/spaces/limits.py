"""How much a visitor of a public Space may ask for, as `spaces_config.yaml` sets it under `app: limits`.

On a machine of one's own nothing is limited but what the model and the page limit themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dynamo.common.validation import message, short_repr


@dataclass(frozen=True)
class Limits:
    """Each None where there is none.

    prompt_characters, answer_tokens: of one run; requests_per_minute: of one visitor, by address, that
    many at once and then evenly; upload_mb: of one file; behind_proxy: whether a visitor's address is what
    the proxy in front of the page says, as on a Space. Without a proxy anyone could say anything.
    """

    prompt_characters: int | None = None
    answer_tokens: int | None = None
    requests_per_minute: int | None = None
    upload_mb: int | None = None
    behind_proxy: bool = False

    @classmethod
    def of(cls, given: dict[str, Any], where: str, behind_proxy: bool) -> Limits:
        """From the file's keys. Raises ValueError naming the key."""
        names = [field.name for field in fields(cls) if field.name != "behind_proxy"]
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"{where}.{name}: expected one of {', '.join(names)}")
            if type(value) is not int or value < 1:
                raise ValueError(f"{where}.{name}: expected a whole number from 1, got {value!r}")
        return cls(**given, behind_proxy=behind_proxy)

    def check(self, prompt: str, max_new_tokens: int) -> None:
        """Raises ValueError naming the limit for a run that asks for more."""
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
        """Of one file, where a page itself takes at most `most`."""
        return most if self.upload_mb is None else min(most, 1_000_000 * self.upload_mb)


UNLIMITED = Limits()
