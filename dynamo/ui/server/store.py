"""The latest runs, pass by pass, for a visitor who looks back: inspector values, wide joints, whole traces.

A run is found by its id alone, so ids are unguessable. The number of runs and of their passes is bounded: the
oldest run makes room for the newest. Recordings that come with the project are kept for ever.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from dynamo.trace.joint_line import JointLine
from dynamo.trace.ndjson import End, Header, PassLine, Trace, encode_line

STORED_RUNS = 256
STORED_PASSES = 12_000  # some 13 KB each, most of it the wide joint


@dataclass
class StoredRun:
    """One run as its trace lines, and for each pass the widest joint that is known (`charts` draws it)."""

    header: Header
    passes: list[str] = field(default_factory=list)
    joints: dict[int, str] = field(default_factory=dict)
    wide: dict[int, JointLine] = field(default_factory=dict)
    end: str = ""

    def inspector_value(self, index: int) -> str:
        """One pass for the inspector: {"run", "pass", "joint"}, the last two being lines of the trace."""
        joint = self.joints.get(index, "null")
        return f'{{"run":"{self.header.run}","pass":{self.passes[index]},"joint":{joint}}}'

    def trace(self) -> str:
        """The run as NDJSON, each pass followed by its joint."""
        lines = [encode_line(self.header)]
        for index, line in enumerate(self.passes):
            lines.append(line)
            if index in self.joints:
                lines.append(self.joints[index])
        if self.end:
            lines.append(self.end)
        return "\n".join(lines) + "\n"


class RunStore:
    """Runs by id, safe to use from several threads."""

    def __init__(self, capacity: int = STORED_RUNS, most_passes: int = STORED_PASSES):
        self._capacity = capacity
        self._most_passes = most_passes
        self._passes = 0
        self._runs: OrderedDict[str, StoredRun] = OrderedDict()
        self._kept: dict[str, StoredRun] = {}
        self._lock = threading.Lock()

    def start(self, header: Header) -> None:
        with self._lock:
            self._runs[header.run] = StoredRun(header)
            self._make_room()

    def put(self, run: str, line: PassLine, joint: JointLine | None, wide: JointLine | None = None) -> str:
        """Stores a pass and returns its inspector value."""
        with self._lock:
            stored = self._runs.get(run)
            if stored is None:  # so many runs began meanwhile that this one was dropped
                stored = StoredRun(Header(run, "", "", ""), [""] * line.index)
            stored.passes.append(encode_line(line))
            if joint is not None:
                stored.joints[line.index] = encode_line(joint)
                stored.wide[line.index] = wide or joint
            if run in self._runs:
                self._passes += 1
                self._make_room()
            return stored.inspector_value(line.index)

    def finish(self, run: str, end: End) -> None:
        with self._lock:
            if run in self._runs:
                self._runs[run].end = encode_line(end)

    def add(self, trace: Trace, *, keep: bool = False) -> None:
        """Stores a run that was read from a file; keep: it is never dropped."""
        self.start(trace.header)
        run = trace.header.run
        for line in trace.passes:
            self.put(run, line, trace.joints.get(line.index))
        if trace.end is not None:
            self.finish(run, trace.end)
        if keep:
            with self._lock:
                self._kept[run] = self._runs.pop(run)
                self._passes -= len(self._kept[run].passes)

    def get_pass(self, run: str, index: int) -> str | None:
        """The inspector value of a pass, None where it is not known."""
        with self._lock:
            stored = self._find(run)
            return stored.inspector_value(index) if stored and 0 <= index < len(stored.passes) else None

    def get_trace(self, run: str) -> str | None:
        with self._lock:
            stored = self._find(run)
            return stored.trace() if stored else None

    def get_joint(self, run: str, index: int) -> JointLine | None:
        """The joint of a pass, as wide as it is known."""
        with self._lock:
            stored = self._find(run)
            return stored.wide.get(index) if stored else None

    def _make_room(self) -> None:
        """The newest run stays, however long it is."""
        while len(self._runs) > self._capacity or (len(self._runs) > 1 and self._passes > self._most_passes):
            _, oldest = self._runs.popitem(last=False)
            self._passes -= len(oldest.passes)

    def _find(self, run: str) -> StoredRun | None:
        return self._runs.get(run) or self._kept.get(run)
