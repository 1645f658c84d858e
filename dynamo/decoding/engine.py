"""The decode loop: one for the baseline, for DynaMo (paper, Algorithm 1) and for exact mode.

A pass reads the tokens chosen by the pass before and chooses the next ones; what differs between lanes is
how many heads the model has, which table it brings, and whether it verifies. Only chosen tokens are ever fed,
each once: `cached + pending == prompt + emitted` at every step. Exact mode is the stated exception: it feeds
drafts behind them, and takes back the positions of those that it rejects.

The engine speaks token ids and `StepRecord`s. It knows no text, except to look for stop strings.
"""

from __future__ import annotations

import numbers
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dynamo.common.validation import short_repr
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data import text
from dynamo.decoding.built_from import BuiltFrom
from dynamo.decoding.cache import CachePool, KVCache, within_memory
from dynamo.decoding.offloaded import decoder_for
from dynamo.decoding.sequence import TokenSequence
from dynamo.sampling.correlated import Correlators
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import warm_up


class Engine:
    """Streams one `StepRecord` per forward pass of a model.

    A DynaMo model without a table samples from the unmasked joint; a base emits one token per pass.
    One engine serves any number of streams, at once and from several threads: each has its own cache.

    tokenizer: for stop strings, for its tokens that end a text, and for its special tokens, which the
    repetition penalty never touches; without one these are the tokens that the model's own configuration
    names (begin, end, padding). weights: "own", or copies of a float32 model's on CPU in 8 bits ("int8") or 4
    ("int4"): a little other, and exact mode then has the distribution of these. Raises ValueError for what is
    no such model, a table of another vocabulary, and weights that this model cannot have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        table: CooccurrenceTable | None = None,
        tokenizer: Any = None,
        weights: str = "own",
    ):
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"model: expected a DynaMo or base model, got {type(model).__name__}; of a pair give the "
                "parts: Engine(pair.dynamo, pair.table, pair.tokenizer); merge peft's adapters first "
                "(merge_and_unload)"
            )
        self._decoder = decoder_for(model, weights)
        self._built_from = BuiltFrom(model, copied=self._decoder.packed)
        self._pool = CachePool(lambda capacity: self._decoder.new_cache(capacity), self.max_length)
        self._table = table
        self._correlators = Correlators.from_model(model, copied=self._decoder.packed)
        self._tokenizer = tokenizer
        self.end_ids = end_of_text_ids(model, tokenizer)
        self._special_ids = unpenalised_ids(model, tokenizer)
        if table is not None:
            table.check(vocab_size=self._decoder.vocab_size)
        warm_up(self._decoder.heads, self._decoder.vocab_size, table)
        if self._correlators is not None:
            self._correlators.warm_up()

    @property
    def heads(self) -> int:
        return self._decoder.heads

    @property
    def max_length(self) -> int:
        """Most positions of prompt and reply together."""
        return self._decoder.max_length

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    def bytes_per_weight(self) -> float:
        """How many bytes a forward pass reads of one weight."""
        return self._decoder.bytes_per_weight()

    def stream(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]:
        """Decode from a prompt, (1, seq) or a list of ids; ends at end-of-text, a stop string or the length.

        The last token completes the stop string and may hold more: `IncrementalDecoder(tokenizer, stop)`
        gives the text up to where it begins. `max_new_tokens` is cut to what the model's positions leave.
        Close the iterator to cancel. Raises ValueError, before anything is yielded, on an empty or too long
        prompt, unknown ids or a bad option, and where the model's weights have changed since the engine was
        built; and in the middle of a run where memory runs out, after which the engine works as before.
        """
        self._built_from.check()
        options = options or SamplingOptions()
        sequence = self._sequence(input_ids, options, max_new_tokens, seed, stop)
        return within_memory(self._decode(sequence, self._run(options)), self.device)

    def stream_batch(
        self,
        prompts: Sequence[torch.Tensor | Sequence[int]],
        options: SamplingOptions | None = None,
        max_new_tokens: int = 128,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, StepRecord]]:
        """Decode several prompts in the same forward passes; yields (index of the prompt, record) pairs.

        Each prompt's records are those of `stream` with its seed (0, 1, 2 .. by default) up to the rounding
        of float sums, except for `seconds`: the share of its row in the pass, so that all records' seconds
        add up to the run's. Rows go on by different numbers of tokens, and leave when their text has ended.
        Prompts are read one by one, each yielding its prefill record; then every pass yields one record for
        each row that is left. Raises as `stream` does, before anything is yielded.
        """
        self._built_from.check()
        options = options or SamplingOptions()
        if not len(prompts):
            raise ValueError("prompts: expected one or more, got none")
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"seeds: expected one for each of {len(prompts)} prompts, got {len(seeds)}")
        sequences = [
            self._sequence(prompt, options, max_new_tokens, seed, stop)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return within_memory(self._decode_batch(sequences, self._run(options)), self.device)

    def _sequence(
        self,
        input_ids: torch.Tensor | Sequence[int],
        options: SamplingOptions,
        max_new_tokens: int,
        seed: int,
        stop: Sequence[str],
    ) -> TokenSequence:
        prompt = checked_prompt(input_ids, self._decoder.vocab_size, self.max_length)
        max_new_tokens = checked_count("max_new_tokens", max_new_tokens, 1)
        self._check_correction(options)
        return TokenSequence(
            prompt,
            options,
            min(max_new_tokens, self.max_length - len(prompt)),
            checked_count("seed", seed, 0),
            self._table,
            self._decoder.vocab_size,
            self._special_ids,
            self.end_ids,
            self._stop_strings(stop),
            self._correlators if options.correction == "correlator" else None,
            self._drafted(options),
        )

    def _drafted(self, options: SamplingOptions) -> NDArray[np.int64] | None:
        """The tokens that exact mode drafts, as many candidates as the first head has or more; None: any."""
        few = options.exact_vocabulary if options.exact and self._run(options) > 1 else 0
        return self._decoder.drafted(max(few, options.top_k)) if few else None

    def _run(self, options: SamplingOptions) -> int:
        """How many heads to run: none above the highest order asked for. Those that threshold 1 would ignore
        are run: their cost is the honest cost of that lane.
        """
        return min(options.max_order, self.heads)

    def _decode(self, sequence: TokenSequence, heads: int) -> Iterator[StepRecord]:
        with self._pool.lease(sequence.prompt_length + sequence.limit) as cache:
            while sequence.pending:
                yield self._pass(sequence, cache, heads)

    def _pass(self, sequence: TokenSequence, cache: KVCache, heads: int) -> StepRecord:
        assert cache.length == sequence.cached, f"{cache.length} positions cached, {sequence.cached} expected"
        started = time.perf_counter()
        states = self._decoder.read(cache, sequence.pending, heads, sequence.queries)
        logits = self._decoder.by_position(states)
        # Bringing the candidates to the host is the step's one synchronisation.
        record = sequence.advance(logits, lambda: time.perf_counter() - started, states)
        cache.crop(sequence.rejected)
        return record

    def _decode_batch(self, sequences: list[TokenSequence], heads: int) -> Iterator[tuple[int, StepRecord]]:
        capacity = max(sequence.prompt_length + sequence.limit for sequence in sequences)
        cache = self._decoder.new_batch(len(sequences), capacity)
        rows = list(enumerate(sequences))
        for (index, sequence), row_cache in zip(rows, cache.rows, strict=True):
            yield index, self._pass(sequence, row_cache, heads)
        while True:
            for place in reversed(range(len(rows))):
                if not rows[place][1].pending:
                    cache.drop(place)
                    rows[place] = rows[-1]
                    rows.pop()
            if not rows:
                return
            started = time.perf_counter()
            pending, queries = zip(
                *((sequence.pending, sequence.queries) for _, sequence in rows), strict=True
            )
            states = self._decoder.read_batch(cache, pending, heads, queries)
            logits = self._decoder.logits(states)  # at once: the output embedding is read once for all rows
            records, end = [], 0
            for (index, sequence), row_cache, count in zip(rows, cache.rows, queries, strict=True):
                end += count
                own = slice(end - count, end)
                by_position = logits[:, own].transpose(0, 1)
                records.append((index, sequence.advance(by_position, lambda: 0.0, states[:, own])))
                row_cache.crop(sequence.rejected)
            seconds = (time.perf_counter() - started) / len(rows)
            for index, record in records:
                yield index, replace(record, seconds=seconds)

    def _check_correction(self, options: SamplingOptions) -> None:
        order = min(options.highest_order, self.heads)
        if order == 1 or options.correction == "none":
            return
        if options.correction == "correlator":
            if self._correlators is None:
                raise ValueError(
                    "correction: this checkpoint has no correlator; train heads with one (train "
                    "--correlator-rank 256), or take table, smoothed or none"
                )
            return
        if self._table is not None and options.mask_strength > 0:
            self._table.check(order=order)
        if self._table is None and options.correction == "smoothed":
            raise ValueError(
                "correction: smoothed counts need a co-occurrence table; count one (python -m dynamo count), "
                "or take none"
            )

    def _stop_strings(self, stop: Sequence[str]) -> text.StopStrings | None:
        if not stop:
            return None
        if self._tokenizer is None:
            raise ValueError(
                "stop: stop strings need a tokenizer; build the engine with Engine(.., tokenizer=..)"
            )
        return text.StopStrings(self._tokenizer, stop)


def checked_prompt(input_ids: torch.Tensor | Sequence[int], vocab_size: int, max_length: int) -> list[int]:
    """One row of ids, (seq,) or (1, seq), as a list. Raises ValueError unless a model can answer it."""
    if isinstance(input_ids, str | Mapping):  # what goes into a tokenizer, and what comes out of it
        raise ValueError(
            f"input_ids: expected token ids, got {type(input_ids).__name__}; encode text with "
            "dynamo.data.text.encode_prompt, and of a tokenizer's output give its .input_ids"
        )
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"input_ids: expected one row of token ids, got {short_repr(input_ids)}") from None
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise ValueError(f"input_ids: expected whole numbers, got {ids.dtype}")
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and ids.shape[0] != 1):
        raise ValueError(f"input_ids: expected one row, (seq,) or (1, seq), got {tuple(ids.shape)}")
    prompt = [int(token) for token in ids.flatten().tolist()]
    if not prompt:
        raise ValueError("input_ids: the prompt is empty; give at least one token")
    wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise ValueError(f"input_ids: expected ids from 0 to {vocab_size - 1}, got {wrong}")
    if len(prompt) >= max_length:
        raise ValueError(
            f"input_ids: the prompt has {len(prompt)} tokens and the model reads {max_length}, "
            "reply included; shorten it"
        )
    return prompt


def checked_count(name: str, value: Any, least: int) -> int:
    """A whole number, any library's. Raises ValueError naming it for anything else and for less."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number, got {short_repr(value)}")
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, got {short_repr(value)}")
    return int(value)


def unpenalised_ids(model: PreTrainedModel, tokenizer: Any = None) -> frozenset[int]:
    """Special tokens, which no repetition penalty touches: the tokenizer's or, without one, those that the
    model's configuration names; and whatever ends a text.
    """
    named = model.config.bos_token_id, model.config.pad_token_id
    special = text.special_ids(tokenizer) if tokenizer is not None else {i for i in named if i is not None}
    return end_of_text_ids(model) | special


def end_of_text_ids(model: PreTrainedModel, tokenizer: Any = None) -> frozenset[int]:
    """The ids that end a text: those that the model's generation config declares, one or several, and the
    tokenizer's (`dynamo.data.text.end_ids`)."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    if not isinstance(declared, (list, tuple)):
        declared = [] if declared is None else [declared]
    return frozenset(declared) | (text.end_ids(tokenizer) if tokenizer is not None else frozenset())
