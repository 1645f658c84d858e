"""One reply of one lane as counts and clocks: a fold over its records, for whatever compares lanes.

Prompts are read by the first pass, so decoding is what comes after it, for every lane alike. Replies that
nobody times may be decoded together: same texts up to the rounding of sums, in less time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dynamo.decoding.engine import Engine
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import SamplingOptions

BATCH = 16  # rows; throughput still grows there: bench --rows 1 2 4 8 16


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


def together(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int,
    batch: int = BATCH,
) -> Iterator[list[StepRecord]]:
    """The records of a reply to every prompt (ids) with its seed, in order, up to `batch` decoded at once.

    Seconds are then shares of passes, and no lane's own speed. Raises ValueError for a batch below 1.
    """
    check_batch(batch)
    for start in range(0, len(prompts), batch):
        group, own = prompts[start : start + batch], seeds[start : start + batch]
        if len(group) == 1:
            yield list(engine.stream(group[0], options, max_new_tokens, own[0]))
            continue
        replies: list[list[StepRecord]] = [[] for _ in group]
        for row, record in engine.stream_batch(group, options, max_new_tokens, own):
            replies[row].append(record)
        yield from replies


def check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch: expected 1 or more replies at once, got {batch}")
