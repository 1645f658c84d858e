"""A chat as a fold over its traces: what was said in both lanes, read back from the panes' values.

The page keeps no other record of a chat: the panes hold every run as NDJSON, and a new turn is appended to
them. What comes back from a browser may have been made up, so it is read like any trace file and bounded.
Recordings and blind duels are shown but are no part of a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynamo.common.validation import short_repr
from dynamo.trace.ndjson import End, Trace, read_runs

LONGEST_CHAT = 400_000  # characters of one lane's trace; a turn of 100 tokens takes about 8,000

Message = dict[str, str]
LANES = ("base", "dynamo")


@dataclass(frozen=True)
class Chat:
    """The live runs of both lanes, turn by turn; the same user messages in both."""

    base: tuple[Trace, ...] = ()
    dynamo: tuple[Trace, ...] = ()

    @classmethod
    def read(cls, base: str, dynamo: str) -> Chat:
        """From the panes' values. Raises ValueError on what is not a chat of this page, or too long."""
        lanes = [_live_runs(wire or "") for wire in (base, dynamo)]
        prompts = [[run.header.prompt for run in runs] for runs in lanes]
        if prompts[0] != prompts[1]:
            raise ValueError("chat: the two lanes do not answer the same messages; start a new chat")
        return cls(*map(tuple, lanes))

    def __len__(self) -> int:
        return len(self.dynamo)

    @property
    def last_prompt(self) -> str:
        return self.dynamo[-1].header.prompt

    @property
    def last_model(self) -> str:
        return self.dynamo[-1].header.model

    @property
    def last_seed(self) -> int:
        seed = self.last_options.get("seed", 0)
        if type(seed) is not int or seed < 0:
            raise ValueError(
                f"chat: its seed must be a whole number, got {short_repr(seed)}; start a new chat"
            )
        return seed

    @property
    def last_options(self) -> Mapping[str, Any]:
        """What the last answer of DynaMo was sampled with, as its trace tells."""
        return self.dynamo[-1].header.options

    def without_last(self) -> Chat:
        return Chat(self.base[:-1], self.dynamo[:-1])

    def wire(self, lane: str) -> str:
        """The lane's turns as NDJSON, ready for a next run to follow."""
        return "".join(run.wire for run in self._lane(lane))

    def messages(self, lane: str) -> list[Message]:
        """What was said in one lane, for the chat template."""
        return [
            {"role": role, "content": content}
            for run in self._lane(lane)
            for role, content in (("user", run.header.prompt), ("assistant", run.text))
        ]

    def _lane(self, lane: str) -> tuple[Trace, ...]:
        return self.base if lane == "base" else self.dynamo


def last_run(wire: str) -> Trace | None:
    """The newest of a lane's runs, a recorded one too. Raises ValueError on what is not of this page."""
    return next(reversed(_runs(wire)), None)


def _live_runs(wire: str) -> list[Trace]:
    live = [run for run in _runs(wire) if not run.header.recorded]
    # A stopped run has no end line: the browser marks it, and it is closed here.
    return [run if run.end else replace(run, end=End("cancelled")) for run in live]


def _runs(wire: str) -> list[Trace]:
    if not isinstance(wire, str):
        raise ValueError(f"chat: expected the lines of its traces, got {short_repr(wire)}; start a new chat")
    if len(wire) > LONGEST_CHAT:
        raise ValueError(
            f"chat: it has grown to {len(wire):,} characters of trace, at most {LONGEST_CHAT:,} are read; "
            "start a new chat"
        )
    runs = read_runs(wire.split("\n")) if wire.strip() else []
    return [run for run in runs if run.header.lane in LANES]
