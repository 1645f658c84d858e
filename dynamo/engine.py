"""The decode loop: one for the baseline and for DynaMo (paper, Algorithm 1).

A pass reads the tokens chosen by the pass before and chooses the next ones; what differs between the two
lanes is how many heads the model has and which table it brings. Only chosen tokens are ever fed, nothing is
verified and nothing is rolled back: `cached + pending == prompt + emitted` at every step.

The engine speaks token ids and `StepRecord`s. It knows no text, except to look for stop strings.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GPTNeoXForCausalLM

from dynamo.cooccurrence import CooccurrenceTable
from dynamo.decoder import Decoder
from dynamo.model import DynamoForCausalLM
from dynamo.sampler import Context, Decision, SamplingOptions, choose, top_candidates
from dynamo.text import StopStrings
from dynamo.trace import StepRecord


class Engine:
    """Streams one `StepRecord` per forward pass of a model.

    A DynaMo model without a table samples from the unmasked joint; a stock GPT-NeoX emits one token per pass.
    One engine serves any number of streams, at once and from several threads: each has its own state.

    tokenizer: for stop strings, and for its special tokens, which the repetition penalty never touches;
    without one these are the tokens that the model's own configuration names (begin, end, padding).
    """

    def __init__(
        self,
        model: GPTNeoXForCausalLM | DynamoForCausalLM,
        table: CooccurrenceTable | None = None,
        tokenizer: Any = None,
    ):
        self._decoder = Decoder(model)
        self._table = table
        self._tokenizer = tokenizer
        self.end_ids = end_of_text_ids(model)
        named = model.config.bos_token_id, model.config.pad_token_id
        special = tokenizer.all_special_ids if tokenizer is not None else [i for i in named if i is not None]
        self._special_ids = self.end_ids | set(special)
        if table is not None:
            table.check(vocab_size=self._decoder.vocab_size)

    @property
    def heads(self) -> int:
        return self._decoder.heads

    @property
    def max_length(self) -> int:
        """Most positions of prompt and reply together."""
        return self._decoder.max_length

    def stream(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]:
        """Decode from a prompt, (1, seq) or a list of ids; ends at end-of-text, a stop string or the length.

        `max_new_tokens` is cut to what the model's positions leave. Close the iterator to cancel. Raises
        ValueError, before anything is yielded, on an empty or too long prompt, unknown ids or a bad option.
        """
        options = options or SamplingOptions()
        prompt = self._checked_prompt(input_ids)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected 1 or more, got {max_new_tokens}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        self._check_table(options)
        stops = self._stop_strings(stop)
        return self._decode(prompt, options, min(max_new_tokens, self.max_length - len(prompt)), seed, stops)

    def _decode(
        self, prompt: list[int], options: SamplingOptions, limit: int, seed: int, stops: StopStrings | None
    ) -> Iterator[StepRecord]:
        state = self._decoder.new_state(len(prompt) + limit)
        context = Context(self._decoder.vocab_size, tuple(self._special_ids))
        context.add(prompt)
        # Heads above the highest order asked for are not run; those that threshold 1 would ignore are: their
        # cost is the honest cost of that lane.
        heads = min(options.max_order, self.heads)
        uniforms = random.Random(seed)
        pending, emitted = prompt, 0
        while pending:
            assert state.length + len(pending) == len(prompt) + emitted, (
                "only chosen tokens are fed, each once"
            )
            started = time.perf_counter()
            logits = self._decoder.forward(state, pending, heads)
            # Bringing the logits to the host is the step's one synchronisation.
            candidates = top_candidates(logits.float().cpu().numpy(), options)
            decision = choose(candidates, context, self._table, options, uniforms.random())
            tokens, ended = self._cut(decision.tokens[: limit - emitted], stops)
            seconds = time.perf_counter() - started
            context.add(list(tokens))
            prefill = emitted == 0
            emitted += len(tokens)
            pending = [] if ended or emitted == limit else list(tokens)
            yield _record(decision, tokens, seconds, prefill)

    def _cut(self, tokens: tuple[int, ...], stops: StopStrings | None) -> tuple[tuple[int, ...], bool]:
        """The tokens up to an end inside the chunk, and whether there was one."""
        end = next((count for count, token in enumerate(tokens, start=1) if token in self.end_ids), None)
        kept = stops.cut(tokens[:end]) if stops is not None else None
        cut = end if kept is None else kept
        return tokens[:cut], cut is not None

    def _checked_prompt(self, input_ids: torch.Tensor | Sequence[int]) -> list[int]:
        ids = torch.as_tensor(input_ids)
        if ids.ndim not in (1, 2) or (ids.ndim == 2 and ids.shape[0] != 1):
            raise ValueError(f"input_ids: expected one row, (seq,) or (1, seq), got {tuple(ids.shape)}")
        prompt = [int(token) for token in ids.flatten().tolist()]
        if not prompt:
            raise ValueError("input_ids: the prompt is empty; give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < self._decoder.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"input_ids: expected ids from 0 to {self._decoder.vocab_size - 1}, got {wrong}")
        if len(prompt) >= self.max_length:
            raise ValueError(
                f"input_ids: the prompt has {len(prompt)} tokens and the model reads {self.max_length}, "
                "reply included; shorten it"
            )
        return prompt

    def _check_table(self, options: SamplingOptions) -> None:
        if self._table is not None and options.mask_strength > 0:
            self._table.check(order=min(options.highest_order, self.heads))

    def _stop_strings(self, stop: Sequence[str]) -> StopStrings | None:
        if not stop:
            return None
        if self._tokenizer is None:
            raise ValueError(
                "stop: stop strings need a tokenizer; build the engine with Engine(.., tokenizer=..)"
            )
        return StopStrings(self._tokenizer, stop)


def end_of_text_ids(model: GPTNeoXForCausalLM | DynamoForCausalLM) -> frozenset[int]:
    """The ids that end a text, one or several, as the model's generation config declares them."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    if declared is None:
        return frozenset()
    return frozenset(declared if isinstance(declared, (list, tuple)) else [declared])


def _record(decision: Decision, tokens: tuple[int, ...], seconds: float, prefill: bool) -> StepRecord:
    return StepRecord(
        tokens=tokens,
        order=decision.order,
        seconds=seconds,
        prefill=prefill,
        probabilities=decision.probabilities[: len(tokens)],
        backoffs=decision.backoffs,
        kept_mass=decision.kept_mass,
        joint=decision.joint,
    )
