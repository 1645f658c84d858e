"""For programs: the same runs through `gradio_client`, REST and, as tools, MCP.

An MCP tool is named after its function, so these have their public names. Every parameter is checked by
`SamplingOptions`; a mistake comes back as one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import gradio as gr

from dynamo.common.validation import short_repr
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import speed_up
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.handlers import in_one_sentence
from dynamo.ui.compare.pair import OWN_LOOP
from dynamo.ui.compare.presenter import RecordedRun
from dynamo.ui.compare.service import STRIP_THRESHOLDS, PageService
from dynamo.ui.compare.settings import LONGEST_ANSWER, Settings

MOST_THRESHOLDS = 21


def add_api(service: PageService) -> None:
    """Adds the functions to the `gr.Blocks` that is being built."""
    for function in Programs(service).functions():
        gr.api(function, api_name=function.__name__, concurrency_id="model", concurrency_limit=1)


class Programs:
    """What a program may call."""

    def __init__(self, service: PageService):
        self._service = service

    def functions(self) -> list[Callable[..., Iterator[Any]]]:
        return [self.generate, self.compare, self.threshold_sweep]

    @in_one_sentence
    def generate(
        self,
        prompt: str,
        lane: Literal["dynamo", "base"] = "dynamo",
        threshold: float | None = None,
        mask_strength: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_order: int | None = None,
        exact: bool | None = None,
        max_new_tokens: int = LONGEST_ANSWER,
        seed: int = 0,
        stop: list[str] = [],  # noqa: B006  (the schema shows the default)
    ) -> Iterator[dict[str, Any]]:
        """Answers one message, and streams what is there after every few forward passes.

        An option that is not given is as chosen for the loaded pair.

        Args:
            prompt: the user's message.
            lane: "dynamo" (several tokens per pass) or "base" (one token per pass).
            threshold: back-off threshold, 0 (always all tokens) to 1 (always one).
            mask_strength: exponent of the co-occurrence mask, 0 is no mask.
            temperature: 0 or more; 0 takes the likeliest chunk.
            top_k: candidates of each head, 1 or more.
            repetition_penalty: divides the probability of repeated tokens, 1 is none.
            max_order: most tokens of one pass.
            exact: verify drafts, so that the text is distributed as the model's first head would have it;
                a threshold that is given alone switches it off.
            max_new_tokens: longest answer in tokens.
            seed: same seed, same text.
            stop: strings that end the text where they begin.
        """
        options = self._options(
            threshold, exact, mask_strength=mask_strength, temperature=temperature, top_k=top_k,
            repetition_penalty=repetition_penalty, max_order=max_order,
        )  # fmt: skip
        self._service.limits.check(prompt, max_new_tokens)
        if not isinstance(stop, list | tuple):
            raise ValueError(f"stop: expected a list of strings, got {short_repr(stop)}")
        settings = Settings(options, max_new_tokens, seed, tuple(stop))
        for run in self._service.follow(prompt, settings, lane):
            yield summary(run)

    @in_one_sentence
    def compare(
        self,
        prompt: str,
        threshold: float | None = None,
        max_new_tokens: int = LONGEST_ANSWER,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """The base model and DynaMo on the same message and seed: both texts, both clocks, and their ratio
        where the answers are long enough and nothing disturbed it.

        Args:
            prompt: the user's message.
            threshold: back-off threshold of DynaMo, 0 to 1; not given, the pair's own options hold, exact
                mode among them.
            max_new_tokens: longest answer in tokens.
            seed: same seed, same text.
        """
        self._service.limits.check(prompt, max_new_tokens)
        settings = Settings(self._options(threshold), max_new_tokens, seed)
        lanes = self._service.lanes_run(prompt, settings, OWN_LOOP)
        ratio = speed_up(lanes["base"], lanes["dynamo"])
        summaries = {name: summary(lane) for name, lane in lanes.items()}
        yield summaries | {"wall_clock_ratio": None if ratio is None else round(ratio, 3)}

    def _options(self, threshold: float | None, exact: bool | None = None, **others: Any) -> SamplingOptions:
        """The loaded pair's own but for what is given; exact mode would not look at a threshold."""
        if exact is None and threshold is not None:
            exact = False
        given = {"threshold": threshold, "exact": exact, **others}
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self._service.pair.options, **chosen)

    @in_one_sentence
    def threshold_sweep(
        self,
        prompt: str,
        thresholds: list[float] = list(STRIP_THRESHOLDS),  # noqa: B006  (the schema shows the default)
        max_new_tokens: int = LONGEST_ANSWER,
        seed: int = 0,
    ) -> Iterator[list[dict[str, Any]]]:
        """One message at several thresholds; streams the list as it grows.

        Args:
            prompt: the user's message.
            thresholds: 1 to 21 back-off thresholds, each 0 to 1.
            max_new_tokens: longest answer in tokens.
            seed: same seed, same text.
        """
        self._service.limits.check(prompt, max_new_tokens)
        if not isinstance(thresholds, list | tuple):
            raise ValueError(f"thresholds: expected a list of numbers, got {short_repr(thresholds)}")
        if not 1 <= len(thresholds) <= MOST_THRESHOLDS:
            raise ValueError(f"thresholds: expected 1 to {MOST_THRESHOLDS} values, got {len(thresholds)}")
        chosen = replace(self._service.pair.options, exact=False)
        all_settings = [Settings(replace(chosen, threshold=t), max_new_tokens, seed) for t in thresholds]
        rows: list[dict[str, Any]] = []
        for settings in all_settings:
            lane = self._service.lane_run(Chat(), prompt, settings, "dynamo")
            rows.append({"threshold": settings.options.threshold, **summary(lane)})
            yield rows


def summary(lane: RecordedRun) -> dict[str, Any]:
    """One lane's run so far as a program wants it; `trace` is the NDJSON of the run."""
    speed = lane.tokens_per_second
    return {
        "text": lane.text,
        "tokens": len(lane.tokens),
        "passes": lane.passes,
        "tokens_per_forward": round(len(lane.tokens) / max(1, lane.passes), 4),
        "tokens_per_second": round(speed, 2) if speed else None,
        "seconds": round(lane.seconds, 5),
        "end": lane.end_line.reason if lane.end_line else None,
        "trace": lane.wire,
    }
