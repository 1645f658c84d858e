"""Races of two scripted engines."""

from __future__ import annotations

import io

from fakes import scripted_pair

from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.trace.ndjson import Header, read_trace
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.presenter import Race, RecordedRun
from dynamo.ui.compare.settings import Settings
from dynamo.ui.server.store import RunStore

OPTIONS = SamplingOptions()


END = 9


class Words:
    """A decoder whose token 1 only opens a character and whose token 2 completes it."""

    stopped = False

    def __init__(self):
        self.held = ""

    def push(self, ids):
        return [self._piece(token) for token in ids]

    def _piece(self, token):
        if token == 1:
            self.held = "�"
            return ""
        self.held = ""
        return {2: "é", END: ""}.get(token, f" {token}")

    def flush(self):
        return self.held


class Steps:
    """An iterator of records with given seconds, that knows whether it was closed."""

    def __init__(self, seconds, tokens=None, error=None):
        self.seconds = list(seconds)
        self.tokens = tokens or [(5,)] * len(self.seconds)
        self.error = error
        self.taken = 0
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == len(self.seconds):
            if self.error:
                raise self.error
            raise StopIteration
        self.taken += 1
        tokens = self.tokens[self.taken - 1]
        return StepRecord(tokens, len(tokens), self.seconds[self.taken - 1], prefill=self.taken == 1)

    def close(self):
        self.closed = True


def lane(steps, kind="base", before="") -> RecordedRun:
    header = Header(f"run {kind}", kind, "m", "hi", {"threshold": 0.5})
    return RecordedRun(header, steps, Words(), frozenset([END]), before)


def race(base, dynamo, store=None) -> Race:
    lanes = {"base": lane(base), "dynamo": lane(dynamo, "dynamo")}
    return Race(lanes, store=store or RunStore())


def scripted_race(store=None, **fake) -> Race:
    pair = scripted_pair(**fake)
    lanes = pair.lanes(Chat(), "hello", Settings(OPTIONS, 96, 3))
    return Race(lanes, store=store or RunStore())


def trace(wire: str):
    return read_trace(io.StringIO(wire))
