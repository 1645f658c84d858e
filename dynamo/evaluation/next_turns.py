"""Replies in the middle of held-out dialogues, compared with what was really said there.

DynaMo goes on from the turns before an assistant's turn. chrF says how near its reply comes to the true one;
numbers and names that the context lacks say how much it makes up. Each threshold is compared with threshold 1
on the same places, and with the true turns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamo.common.statistics import Estimate, bootstrap, ratio
from dynamo.data.rows import Turns
from dynamo.data.text import decode, encode_chat
from dynamo.decoding.engine import Engine
from dynamo.evaluation.replies import decode_together
from dynamo.evaluation.text_measures import CHRF_COLUMNS, chrf_counts, chrf_score, mentions
from dynamo.sampling.options import SamplingOptions

_NUMBERS, _NAMES = slice(CHRF_COLUMNS, CHRF_COLUMNS + 2), slice(CHRF_COLUMNS + 2, CHRF_COLUMNS + 4)
_COLUMNS = CHRF_COLUMNS + 4

MEASURES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "chrf": lambda sums: chrf_score(sums[:, :CHRF_COLUMNS]),
    "numbers_in_context": lambda sums: ratio(*sums[:, _NUMBERS].T),
    "names_in_context": lambda sums: ratio(*sums[:, _NAMES].T),
}


@dataclass(frozen=True)
class Place:
    """The turns before an assistant's turn, and that turn."""

    turns: Turns
    true: str

    @property
    def context(self) -> str:
        return "\n".join(turn["content"] for turn in self.turns)


@dataclass(frozen=True)
class Answers:
    """One lane's replies: measures with 95 % intervals over places, and their difference to threshold 1's on
    the same places (None for the lanes that have none). threshold: None for the true turns."""

    threshold: float | None
    tokens_per_forward: float | None
    measures: dict[str, Estimate]
    against_one: dict[str, Estimate] | None

    def to_json(self) -> dict[str, Any]:
        against = self.against_one
        return {
            "threshold": self.threshold,
            "tokens_per_forward": self.tokens_per_forward,
            "measures": {name: each.to_json() for name, each in self.measures.items()},
            "against_one": against and {name: each.to_json() for name, each in against.items()},
        }


def places(conversations: Sequence[Turns], count: int, seed: int = 0) -> list[Place]:
    """A random assistant turn, not the first turn, of each of `count` random dialogues (all that have one).

    Raises ValueError if none has one.
    """
    random = np.random.default_rng(seed)
    found = []
    for index in random.permutation(len(conversations)):
        turns = conversations[index]
        answers = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
        if answers and len(found) < count:
            chosen = int(random.choice(answers))
            found.append(Place(list(turns[:chosen]), turns[chosen]["content"]))
    if not found:
        raise ValueError("data: no conversation has an assistant's turn after another turn")
    return found


def answer_places(
    engine: Engine,
    tokenizer: Any,
    places: Sequence[Place],
    thresholds: Sequence[float],
    options: SamplingOptions | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Answers]:
    """The true turns' row, then one per threshold (1 is added if it is missing); one reply to each place.

    Raises ValueError in exact mode.
    """
    options = options or SamplingOptions()
    if options.exact:
        raise ValueError("exact: replies are compared over back-off thresholds, which exact mode lacks")
    thresholds = sorted({*thresholds, 1.0}, reverse=True)
    true = np.array([_row(place.true, place) for place in places])
    rows = [Answers(None, None, _estimates(true), None)]
    prompts = [encode_chat(tokenizer, place.turns) for place in places]
    one = None
    for threshold in thresholds:
        own = replace(options, threshold=threshold)
        texts, passes, tokens = [], 0, 0
        for run in decode_together(engine, prompts, range(seed, seed + len(prompts)), own, max_new_tokens):
            texts.append(decode(tokenizer, run.tokens))
            passes, tokens = passes + run.passes, tokens + len(run.tokens)
            progress()
        found = np.array([_row(text, place) for text, place in zip(texts, places, strict=True)])
        one = found if one is None else one
        against = None if threshold == 1 else _differences(found, one)
        rows.append(Answers(threshold, tokens / passes, _estimates(found), against))
    return rows


def _row(text: str, place: Place) -> NDArray[np.float64]:
    """(22,): what one reply adds to each column."""
    return np.array([*chrf_counts(text, place.true), *mentions(text, place.context)], dtype=np.float64)


def _estimates(rows: NDArray[np.float64]) -> dict[str, Estimate]:
    return {name: bootstrap(rows, statistic) for name, statistic in MEASURES.items()}


def _differences(own: NDArray[np.float64], one: NDArray[np.float64]) -> dict[str, Estimate]:
    """Places are resampled for both at once: they are the same places."""
    both = np.concatenate([own, one], axis=1)
    return {
        name: bootstrap(both, lambda sums, f=statistic: f(sums[:, :_COLUMNS]) - f(sums[:, _COLUMNS:]))
        for name, statistic in MEASURES.items()
    }
