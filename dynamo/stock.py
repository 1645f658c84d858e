"""`transformers`' own `generate`, behind the interface of `dynamo.Engine`: the opponent that everyone knows.

The loop, the cache and the forward pass are the library's; the distribution is ours, through a logits
processor, because the paper's repetition penalty divides probabilities and the library's divides logits. The
processor also draws, with the uniforms that `dynamo.Engine` would use: same seed, same text (up to rounding),
and nobody's global random state is touched.

`generate` does not yield, so `stream` runs it in a thread that hands over after every pass and sleeps until
the next one is asked for; a race can therefore pause it, and its clock stands still meanwhile. Nothing here
knows heads, tables or joints.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, GPTNeoXForCausalLM
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dynamo.cache import within_memory
from dynamo.engine import checked_prompt, end_of_text_ids
from dynamo.joint import draw
from dynamo.model import DynamoForCausalLM
from dynamo.sampler import Context, SamplingOptions, choose_one, top_candidates
from dynamo.text import StopStrings
from dynamo.trace import StepRecord


class GenerateEngine:
    """Streams one `StepRecord` of order 1 per forward pass of `model.generate`.

    tokenizer: for stop strings and for the special tokens that the penalty leaves alone, as in
    `dynamo.Engine`; settings: further fields of transformers' GenerationConfig (`prompt_lookup_num_tokens`,
    `cache_implementation`). A DynaMo model generates with its first head.
    """

    heads = 1

    def __init__(self, model: GPTNeoXForCausalLM | DynamoForCausalLM, tokenizer: Any = None, **settings: Any):
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self.end_ids = end_of_text_ids(model)
        self.max_length = model.config.max_position_embeddings
        named = model.config.bos_token_id, model.config.pad_token_id
        special = tokenizer.all_special_ids if tokenizer is not None else [i for i in named if i is not None]
        self._special_ids = tuple(self.end_ids | set(special))

    @property
    def flags(self) -> dict[str, Any]:
        """What `generate` is called with, and how it runs."""
        return {
            "library": f"transformers {transformers.__version__}",
            "use_cache": True,
            "cache_implementation": self._settings.get("cache_implementation", "dynamic"),
            "do_sample": False,
            "logits_processor": "draws by top-k, temperature, penalty on probabilities",
            "attention": self._model.config._attn_implementation,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
            **self._settings,
        }

    def stream(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]:
        """Decode from a prompt, (1, seq) or a list of ids; ends at end-of-text, a stop string or the length.

        Of `options` temperature, top-k and penalty count; what concerns several tokens is ignored. Time in
        which the caller holds a record is not counted. Close the iterator to cancel: the thread has ended
        when `close` returns. What `generate` raises is raised here. Raises ValueError, before anything is
        yielded, for the inputs that `dynamo.Engine.stream` refuses.
        """
        run = self._run(input_ids, options, max_new_tokens, seed, stop)
        return within_memory(_paced(run, self._generate), self._model.device)

    def complete(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[StepRecord]:
        """What `stream` yields, at once and without its thread: for benchmarks."""
        run = self._run(input_ids, options, max_new_tokens, seed, stop)
        records: list[StepRecord] = []
        run.report = records.append
        self._generate(run)
        return records

    def _run(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions | None,
        max_new_tokens: int,
        seed: int,
        stop: Sequence[str],
    ) -> _Run:
        prompt = checked_prompt(input_ids, self._model.config.vocab_size, self.max_length)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected 1 or more, got {max_new_tokens}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        if stop and self._tokenizer is None:
            raise ValueError("stop: stop strings need a tokenizer; build the engine with one")
        stops = StopStrings(self._tokenizer, stop) if stop else None
        limit = min(max_new_tokens, self.max_length - len(prompt))
        lookup = bool(self._settings.get("prompt_lookup_num_tokens"))
        chooser = _ChooseOne(options or SamplingOptions(), self._special_ids, seed, lookup)
        return _Run(prompt, limit, chooser, self.end_ids, stops)

    def _generate(self, run: _Run) -> None:
        ids = torch.tensor([run.prompt], device=self._model.device)
        end_ids = sorted(self.end_ids) or None
        config = GenerationConfig(
            max_new_tokens=run.limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0] if end_ids else 0,
            **self._settings,
        )
        run.resumed = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([run.chooser]),
            stopping_criteria=StoppingCriteriaList([run]),
        )


class _ChooseOne(LogitsProcessor):
    """Draws as the sampler does at order 1, and leaves `generate` one token to take.

    lookup: whether prompt lookup shows it rows of ones, to learn which drafts are forbidden.
    """

    def __init__(self, options: SamplingOptions, special_ids: Sequence[int], seed: int, lookup: bool):
        self._options = options
        self._special_ids = special_ids
        self._lookup = lookup
        self._uniforms = random.Random(seed)
        self.probabilities: list[float] = []  # of the tokens drawn since the last record

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._lookup and bool((scores == 1).all()):
            return scores
        ids, weights, f = self.distribution(input_ids, scores)
        uniform = self._uniforms.random()
        best = int(weights.argmax()) if self._options.temperature == 0 else draw(weights, uniform)
        self.probabilities.append(float(f[best]))
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, int(ids[best])] = 0.0
        return chosen

    def distribution(self, input_ids: torch.Tensor, scores: torch.Tensor) -> tuple[Any, Any, Any]:
        """Ids that survive top-k, their weights after the penalty, and their probabilities before: (k,)."""
        candidates = top_candidates(scores.float().cpu().numpy(), self._options)
        context = Context(scores.shape[-1], self._special_ids)
        context.add(input_ids[0].tolist())
        ranks, weights = choose_one(candidates, context, self._options)
        return candidates.ids[0][ranks[:, 0]], weights, candidates.f[0][ranks[:, 0]]


class _Run(StoppingCriteria):
    """One call of `generate`. It is asked after every pass whether to stop, and makes that pass a record."""

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        chooser: _ChooseOne,
        end_ids: frozenset[int],
        stops: StopStrings | None,
    ):
        self.prompt = prompt
        self.limit = limit
        self.chooser = chooser
        self.report: Callable[[StepRecord], None]
        self.cancelled = False  # by the caller
        self.ended = False
        self.resumed = 0.0
        self._end_ids = end_ids
        self._stops = stops
        self._length = len(prompt)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not (self.cancelled or self.ended):  # generate may look one pass ahead of this answer
            self._record(input_ids[0, self._length :].tolist())
        return torch.full((1,), self.cancelled or self.ended, dtype=torch.bool, device=input_ids.device)

    def _record(self, tokens: list[int]) -> None:
        seconds = time.perf_counter() - self.resumed
        cut = self._stops.cut(tokens) if self._stops is not None else None
        prefill = self._length == len(self.prompt)
        self._length += len(tokens)
        self.ended = cut is not None or not self._end_ids.isdisjoint(tokens)
        tokens = tokens[:cut]
        probabilities = tuple(self.chooser.probabilities[: len(tokens)])
        self.chooser.probabilities.clear()
        self.report(StepRecord(tuple(tokens), len(tokens), seconds, prefill, probabilities))
        self.resumed = time.perf_counter()


def _paced(run: _Run, generate: Callable[[_Run], None]) -> Iterator[StepRecord]:
    """Records of a run in a thread of its own, which works only while the caller waits for the next one."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    records: list[StepRecord] = []
    errors: list[BaseException] = []

    def hand_over(record: StepRecord) -> None:
        records.append(record)
        done.release()
        go.acquire()

    def work() -> None:
        go.acquire()
        try:
            generate(run)
        except BaseException as error:
            errors.append(error)
        finally:
            done.release()

    run.report = hand_over
    thread = threading.Thread(target=work, name="generate", daemon=True)
    thread.start()
    try:
        while True:
            go.release()
            done.acquire()
            if not records:
                break
            yield records.pop()
        if errors:
            raise errors[0]
    finally:
        run.cancelled = True
        go.release()
        thread.join()
