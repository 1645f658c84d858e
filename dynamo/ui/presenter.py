"""From two streams of `StepRecord` to what the page shows, and the race between them.

Both models run in one loop. The lane that has used less of its own model time (the sum of `record.seconds`)
moves next, so at every moment the panes show what each model would have said by then on this machine,
although neither has the machine to itself. Nothing here waits, sleeps or measures model time; wall time only
decides how often a view leaves.

A view is four strings. The two panes get their whole trace each time: Gradio sends only what was appended, a
skipped view loses nothing, and a tab that was hidden catches up. The inspector gets one pass, and asks a
`RunStore` for any other.

This module knows neither torch nor gradio.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dynamo.ndjson import End, Header, JointLine, PassLine, encode_line
from dynamo.trace import StepRecord

FLUSH_SECONDS = 0.036
STORED_RUNS = 64

RACING = "Both models answer the same prompt. The one that has used less model time so far moves next."
FINISHED = "Same prompt, settings and seed. DynaMo is lossy: its text may differ from the base model's."


class Decoder(Protocol):
    """Token ids to text, one piece per id (`dynamo.text.IncrementalDecoder`)."""

    def push(self, ids: Iterable[int]) -> list[str]: ...

    def flush(self) -> str: ...


@dataclass(frozen=True)
class RaceView:
    """What the four outputs of the page show at one moment."""

    base: str
    dynamo: str
    inspector: str
    status: str


class Lane:
    """One model's run: its records written down as trace lines, and the model time they took."""

    def __init__(
        self,
        header: Header,
        steps: Iterator[StepRecord],
        decoder: Decoder,
        end_tokens: frozenset[int],
    ):
        self.header = header
        self.seconds = 0.0
        self.passes = 0
        self.ended = False
        self.wire = encode_line(header) + "\n"
        self._steps = steps
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._last_token: int | None = None

    def advance(self) -> tuple[StepRecord, PassLine] | None:
        """Runs one forward pass; None where the run is over."""
        record = next(self._steps, None)
        if record is None:
            self.end("eos" if self._last_token in self._end_tokens else "length")
            return None
        line = PassLine.of(self.passes, record, self._decoder.push(record.tokens))
        self.wire += encode_line(line) + "\n"
        self.passes += 1
        self.seconds += record.seconds
        self._last_token = record.tokens[-1]
        return record, line

    def end(self, reason: str, message: str = "") -> None:
        """Writes the end line, once."""
        if not self.ended:
            self.ended = True
            self.wire += encode_line(End(reason, self._decoder.flush(), message)) + "\n"

    def close(self) -> None:
        """Lets the engine give back what it holds, also in the middle of a run."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()


class RunStore:
    """Inspector values of the latest runs, for a visitor who looks back.

    A run is found by its id alone, so the id has to be unguessable; the oldest run makes room for the newest.
    """

    def __init__(self, capacity: int = STORED_RUNS):
        self._capacity = capacity
        self._runs: OrderedDict[str, dict[int, str]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, run: str, index: int, value: str) -> None:
        with self._lock:
            self._runs.setdefault(run, {})[index] = value
            self._runs.move_to_end(run)
            while len(self._runs) > self._capacity:
                self._runs.popitem(last=False)

    def get(self, run: str, index: int) -> str | None:
        with self._lock:
            return self._runs.get(run, {}).get(index)


class Race:
    """Two lanes stepped in one loop by model time, seen through `RaceView`s."""

    def __init__(
        self, base: Lane, dynamo: Lane, *, threshold: float, label: Callable[[int], str], store: RunStore
    ):
        self.base = base
        self.dynamo = dynamo
        self._threshold = threshold
        self._label = label
        self._store = store
        self._inspector = ""
        self._telling = ("", (0, False, 0))

    def views(
        self, flush_seconds: float = FLUSH_SECONDS, clock: Callable[[], float] = time.perf_counter
    ) -> Iterator[RaceView]:
        """Runs the race to its end, a view at most every `flush_seconds`; closing it stops both lanes.

        What a lane raises is raised here, after a last view that says so in both panes.
        """
        yield self.view(RACING)
        flushed = clock()
        try:
            while (lane := self.behind()) is not None:
                self._step(lane)
                if clock() - flushed >= flush_seconds:
                    yield self.view(RACING)
                    flushed = clock()
        except Exception as error:
            for lane in (self.base, self.dynamo):
                lane.end("error", str(error))
            yield self.view("")
            raise
        finally:
            self.base.close()
            self.dynamo.close()
        self._inspector = self._telling[0] or self._inspector
        yield self.view(FINISHED)

    def behind(self) -> Lane | None:
        """The lane that moves next: of those still running, the one with less model time used."""
        running = [lane for lane in (self.base, self.dynamo) if not lane.ended]
        return min(running, key=lambda lane: lane.seconds, default=None)

    def view(self, status: str) -> RaceView:
        return RaceView(self.base.wire, self.dynamo.wire, self._inspector, status)

    def _step(self, lane: Lane) -> None:
        advanced = lane.advance()
        if advanced is None or lane is not self.dynamo:
            return
        record, line = advanced
        joint = JointLine.of(line.index, record, self._threshold, self._label)
        self._inspector = inspector_value(lane.header.run, line, joint)
        self._store.put(lane.header.run, line.index, self._inspector)
        self._remember_if_telling(joint)

    def _remember_if_telling(self, joint: JointLine | None) -> None:
        """When the race is over the inspector rests on the pass with most to see: many tokens, many cells."""
        if joint is not None:
            visible = max(joint.picked[:2], default=0) < len(joint.grid)
            weight = (len(joint.picked), visible, min(len(joint.chunks), 6))
            if weight > self._telling[1]:
                self._telling = (self._inspector, weight)


def inspector_value(run: str, line: PassLine, joint: JointLine | None) -> str:
    """One pass for the inspector: the run's id and the two trace lines, as one JSON object."""
    value = {"run": run, "pass": line.to_json(), "joint": joint.to_json() if joint is not None else None}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
