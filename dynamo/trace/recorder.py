"""A run while it happens: its records counted, and written down as lines of a trace.

Panes, programs and recordings are made of the same lines; who sends or stores them is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from dynamo.sampling.records import StepRecord
from dynamo.trace.ndjson import End, Header, PassLine


class Decoder(Protocol):
    """Token ids to text, one piece per id (`dynamo.data.text.IncrementalDecoder`)."""

    def push(self, ids: Iterable[int]) -> list[str]: ...

    def flush(self) -> str: ...


class Recorder:
    """Takes the records of one run, in order.

    end_tokens: ids after which a run has ended by itself; label: names a token that is not part of the text,
    a rejected draft. tokens: ids so far; text: of them; seconds: model
    time; decode_seconds, first_tokens: to leave the prompt's pass out of speeds.
    """

    def __init__(
        self,
        header: Header,
        decoder: Decoder,
        end_tokens: frozenset[int],
        label: Callable[[int], str] = str,
    ):
        self.header = header
        self.seconds = 0.0
        self.decode_seconds = 0.0
        self.passes = 0
        self.tokens: list[int] = []
        self.first_tokens = 0
        self.text = ""
        self.end_line: End | None = None
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._label = label

    def take(self, record: StepRecord) -> PassLine:
        """Counts one forward pass and returns its line."""
        texts = self._decoder.push(record.tokens)
        line = PassLine.of(self.passes, record, texts, map(self._label, record.rejected))
        self.text += "".join(line.texts)
        self.passes += 1
        self.seconds += record.seconds
        self.tokens += record.tokens
        if record.prefill:
            self.first_tokens += len(record.tokens)
        else:
            self.decode_seconds += record.seconds
        return line

    def end(self, reason: str = "", message: str = "") -> End:
        """The end line, made once; without a reason the last token tells it."""
        if self.end_line is None:
            ended = bool(self.tokens) and self.tokens[-1] in self._end_tokens
            self.end_line = End(reason or ("eos" if ended else "length"), self._decoder.flush(), message)
            self.text += self.end_line.text
        return self.end_line

    @property
    def tokens_per_second(self) -> float | None:
        """Of model time, the prompt's pass left out; None where nothing was decoded after it."""
        decoded = len(self.tokens) - self.first_tokens
        return decoded / self.decode_seconds if decoded and self.decode_seconds else None
