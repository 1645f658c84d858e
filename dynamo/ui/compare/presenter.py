"""From streams of `StepRecord` to what the page shows while a race is on.

A view is four strings. The two panes get their whole chat each time: Gradio sends only what was appended, a
skipped view loses nothing, and a tab that was hidden catches up. The inspector gets one pass, and asks a
`RunStore` for any other. Nothing here waits, sleeps or measures model time; wall time only decides how often
a view is sent. `dynamo.decoding.race` decides which lane moves next.

This module knows neither torch nor gradio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from dynamo.decoding.race import race
from dynamo.sampling.records import StepRecord
from dynamo.trace.joint_line import GRID_SIZE, JointLine
from dynamo.trace.ndjson import End, Header, PassLine, Trace, encode_lines
from dynamo.trace.recorder import LEAST_TOKENS, Decoder, Recorder
from dynamo.ui.server.store import RunStore

FLUSH_SECONDS = 0.033
WAIT_SECONDS = 0.2  # before a visitor who goes on stops the timing
WIDE_GRID = 25

# Two standard errors of the ratio are then 4 % of it.
WIDEST_ERROR = 0.02
MOST_SECONDS = 3.0  # of model time, for timing the lanes again
RACING = "Both take turns on this machine: the one that has used less time moves next."
TIMING = "Both lanes decode the same once more, unseen: the times of their passes spread too far for a ratio."
FINISHED = "Same prompt, settings and seed. DynaMo is lossy: its text may differ from the base model's."
FINISHED_EXACT = "Exact mode: DynaMo's text is distributed as if this model wrote one token at a time{}."


@dataclass(frozen=True)
class RaceView:
    """What the four outputs of the page show at one moment."""

    base: str
    dynamo: str
    inspector: str
    status: str


class RecordedRun(Recorder):
    """One model's run in a pane: its lines after the lane's earlier turns.

    before: the lane's chat so far, NDJSON; steps: a stream of records that can be closed; prompt_ids: what
    the stream was given; again: the same stream anew, None where that would take from a visitor's quota.
    """

    def __init__(
        self,
        header: Header,
        steps: Iterator[StepRecord],
        decoder: Decoder,
        end_tokens: frozenset[int],
        before: str = "",
        prompt_ids: tuple[int, ...] = (),
        label: Callable[[int], str] = str,
        again: Callable[[], Iterator[StepRecord]] | None = None,
    ):
        super().__init__(decoder, end_tokens, label)
        self.header = header
        self.steps = steps
        self.again = again
        self.prompt_ids = prompt_ids
        self.wire = before + encode_lines([header])

    def take(self, record: StepRecord) -> PassLine:
        line = super().take(record)
        self.wire += encode_lines([line])
        return line

    def joint(self, line: PassLine, record: StepRecord, size: int) -> JointLine | None:
        """The pass's joint, as much of it as a table of `size` by `size` shows."""
        return JointLine.from_record(line.index, record, self.header.options["threshold"], self._label, size)

    def end(self, reason: str = "", message: str = "") -> End:
        if self.end_line is None:
            self.wire += encode_lines([super().end(reason, message)])
        return self.end_line

    def end_timed_again(self) -> End:
        self.end_line = replace(self.end_line, timed=self.pass_speed)
        self.wire += encode_lines([self.end_line])
        return self.end_line


class Throttle:
    """Limits views to one every `seconds`."""

    def __init__(self, seconds: float = FLUSH_SECONDS, clock: Callable[[], float] = time.perf_counter):
        self._seconds, self._clock = seconds, clock
        self._due = clock() + seconds

    def is_due(self) -> bool:
        now = self._clock()
        if now < self._due:
            return False
        # Counted from when it was due: passes that come about as often would otherwise miss every other view.
        self._due = max(self._due + self._seconds, now)
        return True


class Race:
    """Lanes run to their end, shown as `RaceView`s.

    settle: called before the lanes are timed again, as their times may spread because the machine has other
    work than when its threads were counted.
    """

    def __init__(
        self,
        lanes: Mapping[str, RecordedRun],
        *,
        store: RunStore,
        settle: Callable[[], object] | None = None,
    ):
        self.lanes = dict(lanes)
        self._store = store
        self._settle = settle
        self._inspector = ""
        self._telling: tuple[str, tuple] = ("", (False,))

    def views(
        self, flush_seconds: float = FLUSH_SECONDS, clock: Callable[[], float] = time.perf_counter
    ) -> Iterator[RaceView]:
        """Runs the race to its end, one view for every `flush_seconds` at most; closing it stops the
        lanes.

        What a lane raises is raised here, after a last view that says so in its panes.
        """
        for lane in self.lanes.values():
            self._store.start(lane.header)
        running = race({name: lane.steps for name, lane in self.lanes.items()})
        try:
            yield self.view(RACING)
            throttle = Throttle(flush_seconds, clock)
            for name, record in running:
                self._step(self.lanes[name], record)
                if throttle.is_due():
                    yield self.view(RACING)
        except Exception as error:
            self._stop(running, "error", str(error))
            yield self.view("")
            raise
        finally:
            self._stop(running, "cancelled")
        self._inspector = self._telling[0] or self._inspector
        yield self.view(self._finished())

    def whole(self) -> Iterator[RaceView]:
        """The race, and the times of its lanes again where that is needed."""
        yield from self.views()
        yield from self.time_again()

    def rounds(self) -> int:
        """How often the lanes may be timed again; 0 where that is needless, impossible or takes too long."""
        lanes = self.lanes.values()
        if len(lanes) < 2 or any(lane.again is None or lane.decode_tokens < LEAST_TOKENS for lane in lanes):
            return 0
        return int(MOST_SECONDS / sum(lane.seconds for lane in lanes)) if self._error() > WIDEST_ERROR else 0

    def _error(self) -> float:
        """The standard error of the ratio of the lanes' speeds, as a share of it."""
        speeds = [lane.pass_speed for lane in self.lanes.values()]
        return math.hypot(*(speed.error for speed in speeds if speed))

    def time_again(self, wait_seconds: float = WAIT_SECONDS) -> Iterator[RaceView]:
        """Whole answers in turn, as `bench` times them, until their passes' times say enough; nothing where
        they do already. A view every `wait_seconds`, after which it may be closed, and one that says so.

        Only these count: in the race most passes find the other lane's weights in the caches.
        """
        rounds, order = self.rounds(), list(self.lanes.values())
        if not rounds:
            return
        yield self.view(TIMING)
        throttle = Throttle(wait_seconds)
        if self._settle:
            self._settle()
        for lane in order:
            lane.timings.clear()
        for _ in range(rounds):
            for lane in order:
                with closing(lane.again()) as records:
                    for record in records:
                        if not record.prefill:
                            lane.timings.append(record.seconds)
                        if throttle.is_due():
                            yield self.view(TIMING)
            order.reverse()
            if self._error() <= WIDEST_ERROR:
                break
        for lane in order:
            self._store.finish(lane.header.run, lane.end_timed_again())
        yield self.view(self._finished())

    def view(self, status: str) -> RaceView:
        wires = {name: lane.wire for name, lane in self.lanes.items()}
        return RaceView(wires.get("base", ""), wires.get("dynamo", ""), self._inspector, status)

    def _finished(self) -> str:
        options = self.lanes["dynamo"].header.options if "dynamo" in self.lanes else {}
        if not options.get("exact"):
            return FINISHED
        return FINISHED_EXACT.format(
            f", in these {bits}-bit weights" if (bits := options.get("bits")) else ""
        )

    def _step(self, lane: RecordedRun, record: StepRecord | None) -> None:
        if record is None:
            self._end(lane)
            return
        line = lane.take(record)
        joint, wide = (lane.joint(line, record, size) for size in (GRID_SIZE, WIDE_GRID))
        value = self._store.put(lane.header.run, line, joint, wide)
        if lane.header.lane == "dynamo":
            self._inspector = value
            self._remember_if_telling(line, joint)

    def _stop(self, running: Iterator, reason: str, message: str = "") -> None:
        """Closes the streams, and ends the lanes that have not come to an end of their own."""
        running.close()
        for lane in self.lanes.values():
            self._end(lane, reason, message)

    def _end(self, lane: RecordedRun, reason: str = "", message: str = "") -> None:
        if lane.end_line is None:
            lane.end(reason, message)
            self._store.finish(lane.header.run, lane.end_line)

    def _remember_if_telling(self, line: PassLine, joint: JointLine | None) -> None:
        if joint is not None and (weight := telling(line, joint)) > self._telling[1]:
            self._telling = (self._inspector, weight)


def telling(line: PassLine, joint: JointLine) -> tuple:
    """What the inspector rests on when a race is over, comparable: the first pass that backed off, as it
    explains itself; where none did the one with most to see, by tokens, whether the tables show them, cells.
    """
    if line.backoffs:
        return (True,)
    visible = max(joint.picked[:2], default=0) < len(joint.grid)
    return False, len(line.tokens), visible, min(len(joint.chunks), 6)


def most_telling(trace: Trace) -> int:
    """The pass of a finished run that the inspector rests on, by its index: as after a race."""
    seen = [line for line in trace.passes if line.index in trace.joints]
    return max(seen, key=lambda line: telling(line, trace.joints[line.index])).index if seen else 0
