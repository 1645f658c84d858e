"""The one fold over a run's records: its counts and clocks, its text, and the lines of its trace.

Commands, benchmarks, panes and recordings all take their figures from here, and print, send or store them
themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, Self

from dynamo.sampling.records import StepRecord
from dynamo.trace.ndjson import End, PassLine, PassSpeed

LEAST_TOKENS = 16  # that each lane decoded: fewer tell more of the machine than of the lanes


class Decoder(Protocol):
    """Token ids to text, one piece per id (`dynamo.data.text.IncrementalDecoder`).

    stopped: whether a stop string ended the text.
    """

    stopped: bool

    def push(self, ids: Iterable[int]) -> list[str]: ...

    def flush(self) -> str: ...


@dataclass
class RunCounts:
    """One run as counts and clocks (model time).

    tokens: the ids emitted; orders: how many tokens each pass decided on; backoffs: "order:reason" of every
    order that was given up; backed_off: passes that gave up at least one; decode_*: of the passes after the
    one that reads the prompt; prefill_seconds: of that one; timings: the seconds of each of the others, or,
    where the run was timed again, of the same passes then.
    """

    tokens: list[int] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    backoffs: list[str] = field(default_factory=list)
    backed_off: int = 0
    decode_tokens: int = 0
    decode_passes: int = 0
    decode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    timings: list[float] = field(default_factory=list)

    @classmethod
    def fold(cls, records: Iterable[StepRecord | PassLine]) -> Self:
        """Runs a stream to its end; the lines of a stored run count as its records did."""
        counts = cls()
        for record in records:
            counts.add(record)
        return counts

    def add(self, record: StepRecord | PassLine) -> None:
        """Counts one forward pass."""
        self.tokens += record.tokens
        self.orders.append(record.order)
        self.backoffs += [f"{each.order}:{each.reason}" for each in record.backoffs]
        self.backed_off += bool(record.backoffs)
        if record.prefill:
            self.prefill_seconds += record.seconds
        else:
            self.decode_tokens += len(record.tokens)
            self.decode_passes += 1
            self.decode_seconds += record.seconds
            self.timings.append(record.seconds)

    @property
    def passes(self) -> int:
        return len(self.orders)

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_forward(self) -> float:
        """Over all passes, the prompt's included."""
        return len(self.tokens) / self.passes

    @property
    def pass_speed(self) -> PassSpeed | None:
        return PassSpeed.of(self.timings)

    @property
    def tokens_per_second(self) -> float | None:
        """Of model time, without the pass that reads the prompt; None if no pass followed it.

        Tokens a pass times the passes' mean speed: a pass that something else held up counts as one slow
        pass, however long it took, while in a sum of seconds it could outweigh all others.
        """
        speed = self.pass_speed
        return self.decode_tokens / self.decode_passes * speed.passes_per_second if speed else None


def speed_up(base: RunCounts, dynamo: RunCounts, *, same_loop: bool = True) -> float | None:
    """DynaMo's tokens per second over the base lane's; both were timed in one run, alternating.

    None over fewer than `LEAST_TOKENS` decoded tokens in a lane. Nor is there a ratio above the gain in
    tokens per pass where both lanes run in our loop (same_loop): a pass of DynaMo does more work, so
    something else held the base lane up.
    """
    if min(base.decode_tokens, dynamo.decode_tokens) < LEAST_TOKENS:
        return None
    fast, slow = dynamo.tokens_per_second, base.tokens_per_second
    if not (fast and slow):
        return None
    possible = not same_loop or fast / slow <= dynamo.tokens_per_forward / base.tokens_per_forward
    return fast / slow if possible else None


class Recorder(RunCounts):
    """A run while it happens: takes its records in order, and returns them as lines of a trace.

    end_tokens: ids after which a run has ended by itself; label: names a token that is not part of the text,
    a rejected draft. text: of the tokens so far.
    """

    def __init__(
        self, decoder: Decoder, end_tokens: frozenset[int] = frozenset(), label: Callable[[int], str] = str
    ):
        super().__init__()
        self.text = ""
        self.end_line: End | None = None
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._label = label

    def take(self, record: StepRecord) -> PassLine:
        """Counts one forward pass and returns its line."""
        texts = self._decoder.push(record.tokens)
        line = PassLine.from_record(self.passes, record, texts, map(self._label, record.rejected))
        self.text += "".join(line.texts)
        self.add(record)
        return line

    def end(self, reason: str = "", message: str = "") -> End:
        """The end line, made once; without a reason, the text and its last token say how it ended."""
        if self.end_line is None:
            ended = bool(self.tokens) and self.tokens[-1] in self._end_tokens
            found = "stop" if self._decoder.stopped else "eos" if ended else "length"
            self.end_line = End(reason or found, self._decoder.flush(), message)
            self.text += self.end_line.text
        return self.end_line
