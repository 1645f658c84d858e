"""The blind duel: two answers, no names, one choice.

The traces themselves are withheld until the vote: the server sends each text as a single pass of a lane
called "blind", so that neither the page nor its source reveals which is which. Sides are drawn with the
system's own randomness.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from uuid import uuid4

from dynamo.trace.ndjson import End, Header, PassLine, encode_lines
from dynamo.trace.recorder import speed_up
from dynamo.ui.compare.pair import GENERATE
from dynamo.ui.compare.presenter import RecordedRun

CHOICES = ("left", "tie", "right")
BLIND = "blind"  # the lane of an answer that does not say whose it is


@dataclass(frozen=True, eq=False)  # a session's state is hashed
class Duel:
    """A finished race with its sides drawn. left: the lane shown on the left, "base" or "dynamo"."""

    id: str
    left: str
    wires: dict[str, str]
    texts: dict[str, str]
    prompt: str
    model: str
    options: dict
    speed_up: float | None
    tokens_per_forward: float

    @classmethod
    def between(cls, lanes: dict[str, RecordedRun]) -> Duel:
        base, dynamo = lanes["base"], lanes["dynamo"]
        return cls(
            id=dynamo.header.run,
            left=secrets.choice(("base", "dynamo")),
            wires={name: lane.wire for name, lane in lanes.items()},
            texts={name: lane.text for name, lane in lanes.items()},
            prompt=dynamo.header.prompt,
            model=dynamo.header.model,
            options={**dynamo.header.options, "opponent": base.header.engine},
            speed_up=speed_up(base, dynamo, same_loop=base.header.engine != GENERATE),
            tokens_per_forward=len(dynamo.tokens) / max(1, dynamo.passes),
        )

    @property
    def right(self) -> str:
        return "dynamo" if self.left == "base" else "base"

    def blind_wires(self) -> tuple[str, str]:
        """What the left and the right pane may know before the vote."""
        return self._blind(self.left), self._blind(self.right)

    def outcome(self, choice: str) -> str:
        """ "dynamo", "base" or "tie" for "left", "right" or "tie"."""
        if choice not in CHOICES:
            raise ValueError(f"choice: expected one of {', '.join(CHOICES)}, got {choice!r}")
        return "tie" if choice == "tie" else getattr(self, choice)

    def _blind(self, lane: str) -> str:
        lines = (
            Header(uuid4().hex, BLIND, self.model, self.prompt),
            PassLine(0, (0,), (self.texts[lane],), 1, 0.0),
            End("eos"),
        )
        return encode_lines(lines)
