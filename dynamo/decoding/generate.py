"""`transformers`' own `generate`, behind the interface of `dynamo.Engine`: the opponent that everyone knows.

The loop, the cache and the forward pass are the library's; the distribution is ours, through a logits
processor, because the paper's repetition penalty divides probabilities and the library's divides logits. The
processor also draws, with the uniforms that `dynamo.Engine` would use: same seed, same text (up to rounding),
and nobody's global random state is touched. With a draft model the library draws itself, to accept as many
drafts as it can: same distribution, another text.

`generate` does not yield, so `stream` runs it in a thread that hands over after every pass and sleeps until
the next one is asked for; a race can therefore pause it, and its clock stands still meanwhile. Nothing here
knows heads, tables or joints.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import transformers
from transformers import CompileConfig, GenerationConfig, PreTrainedModel
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dynamo.common.device_map import execution_device
from dynamo.data.text import StopStrings
from dynamo.decoding.cache import within_memory
from dynamo.decoding.engine import checked_count, checked_prompt, end_of_text_ids, unpenalised_ids
from dynamo.model.architectures import max_positions
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.joint import draw
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import Context, choose_one

AS_WEIGHED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # nothing cut but by us


class GenerateEngine:
    """Streams one `StepRecord` of order 1 per forward pass of `model.generate`.

    tokenizer: for stop strings and for the special tokens that the penalty leaves alone, as in
    `dynamo.Engine`; draft: a smaller model of the same vocabulary, for assisted generation; compiled: with a
    static cache and a compiled decode step, which takes the first replies minutes; settings: further fields
    of transformers' GenerationConfig (`prompt_lookup_num_tokens`). A DynaMo model generates with its first
    head. Raises ValueError for a draft of another vocabulary.
    """

    heads = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        draft: PreTrainedModel | None = None,
        compiled: bool = False,
        **settings: Any,
    ):
        if draft is not None and draft.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"draft: expected a model with the same {model.config.vocab_size} tokens, got one of "
                f"{draft.config.vocab_size}"
            )
        self._model = model
        self._tokenizer = tokenizer
        self._draft, self._compiled = draft, compiled
        self._settings = {**settings, **({"cache_implementation": "static"} if compiled else {})}
        self.end_ids = end_of_text_ids(model, tokenizer)
        self.max_length = max_positions(model)
        self._special_ids = tuple(unpenalised_ids(model, tokenizer))

    @property
    def flags(self) -> dict[str, Any]:
        """What `generate` is called with, and how it runs."""
        return {
            "library": f"transformers {transformers.__version__}",
            "use_cache": True,
            "cache_implementation": self._settings.get("cache_implementation", "dynamic"),
            "do_sample": self._draft is not None,
            "logits_processor": "draws by top-k, temperature, penalty on probabilities"
            if self._draft is None
            else "top-k, temperature, penalty on probabilities",
            "attention": self._model.config._attn_implementation,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(execution_device(self._model)),
            **self._settings,
            **({"compiled": self._compile_config().mode} if self._compiled else {}),
            **({"draft_parameters": self._draft.num_parameters()} if self._draft is not None else {}),
        }

    def _compile_config(self) -> CompileConfig:
        # The library's own mode is for CUDA graphs; elsewhere it compiles only where it is told to.
        config = CompileConfig(mode="reduce-overhead" if self._model.device.type == "cuda" else "default")
        config._compile_all_devices = True
        return config

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
        return within_memory(_paced(run, self._generate), execution_device(self._model))

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
        limit = min(checked_count("max_new_tokens", max_new_tokens, 1), self.max_length - len(prompt))
        seed = checked_count("seed", seed, 0)
        if stop and self._tokenizer is None:
            raise ValueError("stop: stop strings need a tokenizer; build the engine with one")
        stops = StopStrings(self._tokenizer, stop) if stop else None
        lookup = bool(self._settings.get("prompt_lookup_num_tokens"))
        chooser = (ChooseOne if self._draft is None else Weigh)(
            options or SamplingOptions(), self._special_ids, seed, lookup
        )
        return _Run(prompt, limit, seed, chooser, self.end_ids, stops)

    def _generate(self, run: _Run) -> None:
        ids = torch.tensor([run.prompt], device=execution_device(self._model))
        end_ids = sorted(self.end_ids) or None
        config = GenerationConfig(
            max_new_tokens=run.limit,
            use_cache=True,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0] if end_ids else 0,
            **({"do_sample": False} if self._draft is None else AS_WEIGHED),
            **({"compile_config": self._compile_config()} if self._compiled else {}),
            **self._settings,
        )
        with ExitStack() as own_random_state:
            if self._draft is not None:  # the library then draws itself, from torch's global state
                own_random_state.enter_context(torch.random.fork_rng([ids.device] if ids.is_cuda else []))
                torch.manual_seed(run.seed)
            run.resumed = time.perf_counter()
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([run.chooser]),
                stopping_criteria=StoppingCriteriaList([run]),
                **({"assistant_model": self._draft} if self._draft is not None else {}),
            )


class _Run(StoppingCriteria):
    """One call of `generate`. It is asked after every pass whether to stop, and makes that pass a record."""

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        seed: int,
        chooser: ChooseOne,
        end_ids: frozenset[int],
        stops: StopStrings | None,
    ):
        self.prompt = prompt
        self.limit, self.seed = limit, seed
        self.chooser = chooser
        self.report: Callable[[StepRecord], None]
        self.cancelled = False  # by the caller
        self.ended = False
        self.resumed = 0.0
        self._end_ids = end_ids
        self._stops = stops
        self._length = len(prompt)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        # input_ids (1, prompt + new): with drafts a pass may have added several.
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
        self.resumed = time.perf_counter()  # whatever the caller did with the record is not the model's time


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
        run.cancelled = True  # the thread ends at its next pass; waiting keeps it from outliving its model
        go.release()
        thread.join()


class ChooseOne(LogitsProcessor):
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
        chosen = torch.full_like(scores, -torch.inf)  # (1, vocab), all but one forbidden: no choice is left
        chosen[0, int(ids[best])] = 0.0
        return chosen

    def distribution(self, input_ids: torch.Tensor, scores: torch.Tensor) -> tuple[Any, Any, Any]:
        """Ids that survive top-k, their weights after the penalty, and their probabilities before: (k,)."""
        candidates = top_candidates(scores.float().cpu().numpy(), self._options)
        # Made anew for each pass: drafts that were rejected must leave no trace in what was seen.
        context = Context(scores.shape[-1], self._special_ids)
        context.add(input_ids[0].tolist())
        ranks, weights = choose_one(candidates, context, self._options)
        return candidates.ids[0][ranks[:, 0]], weights, candidates.f[0][ranks[:, 0]]


class Weigh(ChooseOne):
    """Leaves `generate` the distribution, to draw from."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids, weights, _ = self.distribution(input_ids, scores)
        if self._options.temperature == 0:
            ids, weights = ids[[weights.argmax()]], weights[[weights.argmax()]]
        left = torch.full_like(scores, -torch.inf)
        left[0, torch.from_numpy(ids.astype("int64")).to(scores.device)] = (
            torch.from_numpy(weights).log().to(scores)  # softmax makes probabilities of them again
        )
        return left
