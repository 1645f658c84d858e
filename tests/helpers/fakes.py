"""Scripted stand-ins for a loaded pair: no weights, known text, joints that look like real ones.

`ScriptedEngine` walks along a fixed answer. How sure it is at each position is drawn from the seed alone, so
the threshold decides how many tokens a pass emits, as it does in the real thing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynamo.sampling.records import BackOff, Joint, StepRecord

if TYPE_CHECKING:
    from dynamo.ui.compare.pair import ModelPair

ANSWER = (
    "Sure , what time would you like to eat ? I found a nice place called Sino in San Jose . It serves"
    " Chinese food and it is moderately priced . Would you like me to reserve a table for two people there ?"
)
HOSTILE = "<img src=x onerror=window.pwned=1> ${alert(1)} {{x}} `code` <b>bold</b> \\u0041 & done ."
FILLERS = (
    "a",
    "the",
    "at",
    "on",
    "which",
    "it",
    "six",
    "seven",
    "tonight",
    "tomorrow",
    "please",
    "how",
    "many",
)


class Vocabulary:
    """Words as tokens, a leading space before all but punctuation; the last id ends a turn."""

    def __init__(self, answer: str):
        words = dict.fromkeys([*answer.split(), *FILLERS])
        self.texts = [word if word in ".,?" else " " + word for word in words] + [""]
        self.ids = {word: token for token, word in enumerate(words)}
        self.end = len(self.texts) - 1
        self.answer = [*(self.ids[word] for word in answer.split()), self.end]

    def label(self, token: int) -> str:
        return "<|end|>" if token == self.end else self.texts[token]

    def decoder(self, stop: Sequence[str] = ()) -> ScriptedDecoder:
        return ScriptedDecoder(self.texts)


class ScriptedDecoder:
    stopped = False

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def push(self, ids: Iterable[int]) -> list[str]:
        return [self._texts[token] for token in ids]

    def flush(self) -> str:
        return ""


class ScriptedEngine:
    """Emits `vocabulary.answer`, up to `heads` tokens a pass, and takes `seconds` for each pass.

    `sleep` makes a pass last as long as it claims; `fail_at` raises RuntimeError at that pass; `go` holds
    every pass back while it is clear; `closed` counts how often a stream was closed or ran out, `cut` how
    often it was closed before its end.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        heads: int,
        *,
        seconds: float = 0.02,
        sleep: bool = False,
        repeat: int = 1,
        fail_at: int | None = None,
    ):
        self.vocabulary = vocabulary
        self.heads = heads
        self.seconds = seconds
        self.sleep = sleep
        self.answer = vocabulary.answer[:-1] * repeat + vocabulary.answer[-1:]
        self.fail_at = fail_at
        self.closed = self.cut = 0
        self.go = threading.Event()
        self.go.set()

    def stream(
        self, input_ids, options, max_new_tokens: int = 128, seed: int = 0, stop: Sequence[str] = ()
    ) -> Iterator[StepRecord]:
        rng = np.random.default_rng(seed)
        answer = self.answer[:max_new_tokens]
        position = passes = 0
        try:
            while position < len(answer):
                if passes == self.fail_at:
                    raise RuntimeError("the scripted engine fails here")
                if self.sleep:
                    time.sleep(self.seconds)
                self.go.wait(120)
                record = self._pass(answer[position:], options, rng, prefill=passes == 0)
                yield record
                position += len(record.tokens)
                passes += 1
        finally:
            self.cut += position < len(answer)
            self.closed += 1

    def _pass(self, ahead: list[int], options, rng: np.random.Generator, prefill: bool) -> StepRecord:
        sureness = {3: rng.beta(0.8, 0.8), 2: rng.beta(1.2, 0.9)}
        backoffs = []
        joint = None
        order = 1
        for tried in range(min(self.heads, options.max_order), 1, -1):
            if options.threshold >= 1 or len(ahead) < tried:
                continue
            bar = options.threshold ** (tried - 1)
            joint = self._joint(ahead[:tried], sureness[tried], rng)
            best = float(joint.values.max())
            if best > bar:
                order = tried
                break
            backoffs.append(BackOff(tried, "threshold", best, bar))
        return StepRecord(
            tokens=tuple(ahead[:order]),
            order=order,
            seconds=self.seconds * (2 if prefill else 1) * (1.08 if self.heads > 1 else 1),
            prefill=prefill,
            probabilities=tuple(float(p) for p in rng.beta(5, 2, size=order)),
            backoffs=tuple(backoffs),
            kept_mass=float(rng.uniform(0.2, 0.9)) if joint is not None else None,
            joint=joint,
        )

    def _joint(self, chunk: list[int], best: float, rng: np.random.Generator) -> Joint:
        """A joint whose largest cell is `chunk`, with `best` of the mass; the rest falls off by rank."""
        others = np.arange(len(self.vocabulary.texts) - 1)
        order, size = len(chunk), min(20, len(others))
        candidates = np.stack(
            [[token, *rng.permutation(others[others != token])[: size - 1]] for token in chunk]
        )
        weights = np.sort(rng.random((order, size)) ** 9 + 1e-4, axis=1)[:, ::-1]
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        ranks = np.indices((size,) * order).reshape(order, -1).T
        ranks = ranks[(rng.random(len(ranks)) < 0.55) & (ranks.sum(axis=1) > 0)]
        ranks = np.concatenate([np.zeros((1, order), dtype=ranks.dtype), ranks])
        values = probabilities[np.arange(order), ranks].prod(axis=1)
        values[1:] *= np.exp(rng.normal(0, 1.2, len(values) - 1))
        values[1:] = np.minimum(values[1:] / values[1:].sum() * (1 - best), best)
        values[0] = best
        return Joint(candidates, probabilities, ranks, values / values.sum())


def scripted_pair(
    answer: str = ANSWER, *, seconds: float = 0.02, sleep: bool = False, repeat: int = 1
) -> ModelPair:
    from dynamo.ui.compare.pair import ModelPair
    from dynamo.ui.server.engines import LocalEngines

    vocabulary = Vocabulary(answer)
    return ModelPair(
        name="scripted",
        description="Scripted stand-in: no model runs, the text and the timings are made up.",
        engines=LocalEngines(
            {
                "loop": ScriptedEngine(vocabulary, 1, seconds=seconds, sleep=sleep, repeat=repeat),
                "generate": ScriptedEngine(vocabulary, 1, seconds=2 * seconds, sleep=sleep, repeat=repeat),
                "dynamo": ScriptedEngine(vocabulary, 3, seconds=seconds, sleep=sleep, repeat=repeat),
            }
        ),
        encode=lambda messages, room: [0] * len(messages),
        decoder=vocabulary.decoder,
        label=vocabulary.label,
        end_tokens=frozenset([vocabulary.end]),
    )


def vote(outcome="dynamo", threshold=0.5, model="embedded", **fields):
    options = fields.pop("options", {"threshold": threshold, "adaptive": True, "seed": 3, "opponent": "loop"})
    fields = {"speed_up": 2.0, "tokens_per_forward": 2.4, **fields}
    return {"model": model, "options": options, "outcome": outcome, **fields}


COMMANDS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
