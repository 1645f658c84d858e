"""Speed, passes and quality over back-off thresholds, each with its interval.

Timed lanes are interleaved reply by reply, so a machine that slows down slows both. Speed-up is the
wall-clock ratio of decoding (model time after the first pass) to the one-token loop on the base model, pooled
over all timed replies. Other replies may be decoded together: they count for passes and quality. Quality is
the base model's opinion and the texts' own diversity, never one number alone: thresholds cut the tail, so low
nats may mean a dull text. Nothing here draws or writes files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynamo.common import validation
from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, ratio
from dynamo.decoding.engine import Engine
from dynamo.evaluation.audit import TOP_K, audit
from dynamo.evaluation.replies import check_batch, decode_together
from dynamo.evaluation.text_measures import distinct, repeated
from dynamo.loading import Pair
from dynamo.sampling.options import MAX_ORDER, SamplingOptions
from dynamo.trace.recorder import RunCounts

QUALITY = {
    "nats_per_token": "mean nats of the replies' tokens under the base model",
    "share_below_1_percent": "share of tokens that the base gives less than 1 %",
    f"share_outside_top_{TOP_K}": f"share of tokens outside the base's {TOP_K} likeliest",
    "repetition": "share of 4-grams that stood in the same reply before (seq-rep-4)",
    "distinct_2": "different bigrams of the replies to one prompt, over all of them",
}


@dataclass(frozen=True)
class Point:
    """One threshold (None: the base model's own loop), with 95 % intervals over prompts.

    tokens_per_forward: over all passes, the prompt's included; speed_up: decode tokens per second over the
    base loop's, timed in between; share_by_order: of passes by tokens decided on; backoff_rate: share of
    passes that gave up at least one order (at threshold 1 none is tried); reasons: "order:reason" to how
    often; quality: by the names of `QUALITY`; drift: share_below_1_percent less the base loop's own for the
    same prompts (None: of the base loop, and of files written before it was measured).
    """

    threshold: float | None
    replies: int
    tokens: int
    passes: int
    tokens_per_forward: Estimate
    speed_up: Estimate
    tokens_per_second: float
    share_by_order: dict[str, float]
    backoff_rate: float
    reasons: dict[str, int]
    quality: dict[str, Estimate]
    drift: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "tokens_per_forward": self.tokens_per_forward.to_json(),
            "speed_up": self.speed_up.to_json(),
            "quality": {name: each.to_json() for name, each in self.quality.items()},
            "drift": None if self.drift is None else self.drift.to_json(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Point:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` does not write."""
        threshold = fields["threshold"]
        return cls(
            threshold=None if threshold is None else validation.number("threshold", threshold),
            replies=validation.require_int("replies", fields["replies"]),
            tokens=validation.require_int("tokens", fields["tokens"]),
            passes=validation.require_int("passes", fields["passes"]),
            tokens_per_forward=Estimate.from_json(fields["tokens_per_forward"]),
            speed_up=Estimate.from_json(fields["speed_up"]),
            tokens_per_second=validation.number("tokens_per_second", fields["tokens_per_second"], 0),
            share_by_order={
                str(validation.require_int("share_by_order", int(m), 1, MAX_ORDER)): validation.number(
                    "share_by_order", share, 0, 1
                )
                for m, share in fields["share_by_order"].items()
            },
            backoff_rate=validation.number("backoff_rate", fields["backoff_rate"], 0, 1),
            reasons={
                str(reason): validation.require_int("reasons", count)
                for reason, count in fields["reasons"].items()
            },
            quality={name: Estimate.from_json(fields["quality"][name]) for name in QUALITY},
            drift=Estimate.from_json(drift) if (drift := fields.get("drift")) else None,
        )


def sweep(
    pair: Pair,
    thresholds: Sequence[float],
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions | None = None,
    seeds: int = 3,
    max_new_tokens: int = 128,
    progress: Callable[[], None] | None = None,
    batch: int = 1,
) -> Iterator[Point]:
    """The base loop's point first, then one per threshold; `seeds` replies to every prompt (ids) each.

    batch: above 1, only the first reply to each prompt is timed, alone, and the others are decoded `batch` at
    a time; progress: called after every reply of any lane, `sweep_replies` times in all. Close the iterator
    to cancel, or raise from `progress`. Raises ValueError, before anything runs, for thresholds out of range,
    without prompts, and in exact mode.
    """
    options = options or SamplingOptions()
    each = [replace(options, threshold=threshold) for threshold in thresholds]
    if options.exact:
        raise ValueError("exact: a sweep moves the back-off threshold, which exact mode does not have")
    if not prompts:
        raise ValueError("prompts: expected one or more, got none")
    if seeds < 1:
        raise ValueError(f"seeds: expected 1 or more, got {seeds}")
    check_batch(batch)
    return _points(pair, each, prompts, options, seeds, max_new_tokens, progress or (lambda: None), batch)


def sweep_replies(thresholds: int, prompts: int, seeds: int, batch: int = 1) -> int:
    """How many replies a sweep runs: the base's own, then DynaMo's at every threshold and, for each of those
    that are timed, the base's again."""
    return prompts * (seeds + thresholds * (seeds + _timed(seeds, batch)))


def _timed(seeds: int, batch: int) -> int:
    return seeds if batch == 1 else 1


def _points(
    pair: Pair,
    each: list[SamplingOptions],
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    seeds: int,
    max_new_tokens: int,
    progress: Callable[[], None],
    batch: int,
) -> Iterator[Point]:
    base = Engine(pair.base, None, pair.tokenizer, pair.weights)
    dynamo = Engine(pair.dynamo, pair.table, pair.tokenizer, pair.weights)

    def reply(engine: Engine, options: SamplingOptions, prompt: Sequence[int], seed: int) -> RunCounts:
        run = RunCounts.fold(engine.stream(prompt, options, max_new_tokens, seed))
        progress()
        return run

    for engine in (base, dynamo):  # a reply each to warm up
        RunCounts.fold(engine.stream(prompts[0], options, max_new_tokens))
    timed = _timed(seeds, batch)
    rest = [(number, seed) for number in range(len(prompts)) for seed in range(timed, seeds)]

    def untimed(engine: Engine, options: SamplingOptions) -> list[list[RunCounts]]:
        """By prompt, the replies that need no clock."""
        runs: list[list[RunCounts]] = [[] for _ in prompts]
        asked, own = [prompts[number] for number, _ in rest], [seed for _, seed in rest]
        replies = decode_together(engine, asked, own, options, max_new_tokens, batch)
        for (number, _), run in zip(rest, replies, strict=True):
            runs[number].append(run)
            progress()
        return runs

    own_pool = _Pool(pair, prompts)
    others = untimed(base, options)
    for number, prompt in enumerate(prompts):
        runs = [reply(base, options, prompt, seed) for seed in range(timed)]
        own_pool.add(number, runs, others[number], runs)
    yield own_pool.point(None)
    for own in each:
        pool = _Pool(pair, prompts)
        others = untimed(dynamo, own)
        for number, prompt in enumerate(prompts):
            runs: dict[Engine, list[RunCounts]] = {base: [], dynamo: []}
            for seed in range(timed):
                # The second one finds warm caches, so they take turns.
                for engine in (base, dynamo) if (number * timed + seed) % 2 == 0 else (dynamo, base):
                    runs[engine].append(reply(engine, own, prompt, seed))
            pool.add(number, runs[dynamo], others[number], runs[base])
        yield pool.point(own.threshold, own_pool)


COLUMNS = ("tokens", "passes", "decode_tokens", "decode_seconds", "base_tokens", "base_seconds", "nats",
           "below", "outside", "repeated", "grams", "distinct", "bigrams")  # fmt: skip


@dataclass
class _Pool:
    """Sums of each column by prompt, and counts over all replies."""

    pair: Pair
    prompts: Sequence[Sequence[int]]
    sums: dict[str, np.ndarray] = field(init=False)
    orders: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    backed_off: int = 0
    replies: int = 0

    def __post_init__(self):
        self.sums = {name: np.zeros(len(self.prompts)) for name in COLUMNS}

    def add(
        self,
        number: int,
        timed: Sequence[RunCounts],
        others: Sequence[RunCounts],
        base_timed: Sequence[RunCounts],
    ) -> None:
        """Counts a lane's replies to one prompt, and the base's that were timed between them."""
        runs = [*timed, *others]
        self.replies += len(runs)
        for run in runs:
            opinion = audit(self.pair.base, self.prompts[number], run.tokens)
            again, grams = repeated(run.tokens)
            self._count(
                number,
                tokens=len(run.tokens),
                passes=run.passes,
                nats=-sum(opinion.log_probabilities),
                below=sum(opinion.unlikely),
                outside=sum(opinion.outside),
                repeated=again,
                grams=grams,
            )
            self.orders.update(run.orders)
            self.reasons.update(run.backoffs)
            self.backed_off += run.backed_off
        for run in timed:
            self._count(number, decode_tokens=run.decode_tokens, decode_seconds=run.decode_seconds)
        for run in base_timed:
            self._count(number, base_tokens=run.decode_tokens, base_seconds=run.decode_seconds)
        different, bigrams = distinct([run.tokens for run in runs])
        self._count(number, distinct=different, bigrams=bigrams)

    def _count(self, number: int, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.sums[name][number] += amount

    def point(self, threshold: float | None, base: _Pool | None = None) -> Point:
        """What was counted; base: the pool of the base's own replies to the same prompts."""
        sums = self.sums
        passes = int(sums["passes"].sum())
        speeds = ("decode_tokens", "decode_seconds", "base_tokens", "base_seconds")
        shares = (("nats", "tokens"), ("below", "tokens"), ("outside", "tokens"), ("repeated", "grams"),
                  ("distinct", "bigrams"))  # fmt: skip
        return Point(
            threshold=threshold,
            replies=self.replies,
            tokens=int(sums["tokens"].sum()),
            passes=passes,
            tokens_per_forward=bootstrap_ratio(sums["tokens"], sums["passes"]),
            speed_up=bootstrap(np.stack([sums[name] for name in speeds], axis=1), _speed_up),
            tokens_per_second=float(sums["decode_tokens"].sum() / max(sums["decode_seconds"].sum(), 1e-12)),
            share_by_order={str(m): self.orders[m] / passes for m in sorted(self.orders)},
            backoff_rate=self.backed_off / passes,
            reasons=dict(sorted(self.reasons.items())),
            quality={
                name: bootstrap_ratio(sums[over], sums[under])
                for name, (over, under) in zip(QUALITY, shares, strict=True)
            },
            drift=None if base is None else self._drift(base),
        )

    def _drift(self, base: _Pool) -> Estimate:
        """The two shares of one prompt are resampled together."""
        columns = [pool.sums[name] for pool in (self, base) for name in ("below", "tokens")]
        return bootstrap(np.stack(columns, axis=1), _difference_of_shares)


def _difference_of_shares(pooled: np.ndarray) -> np.ndarray:
    over, under, base_over, base_under = pooled.T
    return ratio(over, under) - ratio(base_over, base_under)


def _speed_up(pooled: np.ndarray) -> np.ndarray:
    tokens, seconds, base_tokens, base_seconds = pooled.T
    return ratio(ratio(tokens, seconds), ratio(base_tokens, base_seconds))
