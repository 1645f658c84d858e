"""A stock model without token heads: it completes text, one token a pass, and says that this is all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from dynamo.data.text import IncrementalDecoder, encode_plain, has_chat_template
from dynamo.sampling.sampler import SamplingOptions

LONGEST_COMPLETION = 96  # tokens


class Completion:
    """name: what it was loaded as; chat: whether its tokenizer has the chat template."""

    def __init__(self, name: str, model: Any, tokenizer: Any):
        from dynamo.decoding.engine import Engine

        self.name, self.model = name, model
        self.chat = has_chat_template(tokenizer)
        self._tokenizer = tokenizer
        self._engine = Engine(model, tokenizer=tokenizer)

    def complete(self, text: str, options: SamplingOptions, seed: int = 0) -> Iterator[tuple[str, str]]:
        """The text so far and, at the end, its speed in words. Raises ValueError for a text that is empty."""
        if not (text or "").strip():
            raise ValueError("text: it is empty; write the beginning of something")
        ids = encode_plain(self._tokenizer, [text])[0]
        decoder = IncrementalDecoder(self._tokenizer)
        written, seconds, passes = text, 0.0, 0
        with closing(self._engine.stream(ids, options, LONGEST_COMPLETION, seed)) as steps:
            for step in steps:
                tokens = [token for token in step.tokens if token not in self._engine.end_ids]
                written += "".join(decoder.push(tokens))
                if not step.prefill:
                    seconds, passes = seconds + step.seconds, passes + 1
                yield written, ""
        written += decoder.flush()
        per_token = f", {1000 * seconds / passes:.0f} ms each" if passes else ""
        yield written, f"One token per forward pass{per_token}."
