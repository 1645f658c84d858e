"""One reply of one lane as counts and clocks: a fold over its records, for whatever compares lanes.

Prompts are read by the first pass, so decoding is what comes after it, for every lane alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dynamo.trace import StepRecord


@dataclass(frozen=True)
class Run:
    """tokens: the reply; orders: of every pass; reasons: "order:reason" of every back-off; backed_off: passes
    that gave up at least one order; decode_*: of the passes after the first; prefill_seconds: of the first.
    """

    tokens: tuple[int, ...]
    orders: tuple[int, ...]
    reasons: tuple[str, ...]
    backed_off: int
    decode_tokens: int
    decode_seconds: float
    prefill_seconds: float

    @classmethod
    def of(cls, steps: Iterable[StepRecord]) -> Run:
        """Runs the stream to its end."""
        records = list(steps)
        decoding = [record for record in records if not record.prefill]
        return cls(
            tokens=tuple(token for record in records for token in record.tokens),
            orders=tuple(record.order for record in records),
            reasons=tuple(f"{b.order}:{b.reason}" for record in records for b in record.backoffs),
            backed_off=sum(bool(record.backoffs) for record in records),
            decode_tokens=sum(len(record.tokens) for record in decoding),
            decode_seconds=sum(record.seconds for record in decoding),
            prefill_seconds=sum(record.seconds for record in records if record.prefill),
        )

    @property
    def passes(self) -> int:
        return len(self.orders)

    @property
    def decode_passes(self) -> int:
        return max(0, self.passes - 1)
