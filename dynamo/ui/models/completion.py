"""A stock model without token heads: it completes text, one token a pass, and says that this is all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from dynamo.data.text import IncrementalDecoder, encode_plain, has_chat_template
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import Recorder

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
        run = Recorder(IncrementalDecoder(self._tokenizer))
        with closing(self._engine.stream(ids, options, LONGEST_COMPLETION, seed)) as steps:
            for step in steps:
                run.take(step)
                yield text + run.text, ""
        run.end()
        speed = run.tokens_per_second  # one token a pass
        per_token = f", {1000 / speed:.0f} ms each" if speed else ""
        yield text + run.text, f"One token per forward pass{per_token}."
