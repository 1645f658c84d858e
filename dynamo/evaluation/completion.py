"""Texts for the sentence-completion and Vicuna benchmarks (paper, section 4): prompts x seeds x thresholds.

Every prompt and seed is written by the base's own loop and by DynaMo at each threshold. The first seed's
texts are decoded alone and timed, one lane right after the other, so that speed-ups are those of a single
text and come from the same minutes of the same machine; the other seeds' are decoded together and not timed.
`dynamo.evaluation.judge` has the texts judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamo.common import validation
from dynamo.data import text
from dynamo.data.readers import parse_line, read_lines
from dynamo.decoding.engine import Engine
from dynamo.evaluation.replies import BATCH, check_batch, decode_together
from dynamo.loading import Pair
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

KEY = ("prompt_id", "seed", "threshold")


@dataclass(frozen=True)
class Prompt:
    """kind: the sentence type, or the question's category; chat: whether it is a message to answer."""

    id: str
    kind: str
    text: str
    chat: bool = False


# All ten are the paper's.
PAPER_PROMPTS = tuple(
    Prompt(f"paper-{number}", kind, each)
    for number, (kind, each) in enumerate(
        (
            ("simple declarative", "I am a student at the"),
            ("simple declarative", "This is going to be a very"),
            ("compound declarative", "He wanted to play, but"),
            ("W/H interrogative", "How can we"),
            ("W/H interrogative", "What will"),
            ("Y/N interrogative", "Will you"),
            ("affirmative imperative", "Please explain"),
            ("negative imperative", "Do not"),
            ("exclamatory", "Wow! I can't believe that"),
            ("exclamatory", "This is amazing! We"),
        ),
        start=1,
    )
)
# The Vicuna benchmark's thresholds; the sentence-completion benchmark's are 0, 0.02 .. 1.
VICUNA_THRESHOLDS = (1.0, 0.75, 0.5, 0.25, 0.0)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a JSONL file: `prompt` to complete, or a Vicuna question (`question_id`, one of `turns`).

    Raises ValueError naming file and line for anything else, and for an id given twice.
    """
    prompts: dict[str, Prompt] = {}
    for line, where in read_lines(path):
        prompt = _prompt(parse_line(line, where), where)
        if prompt.id in prompts:
            raise ValueError(f"{where}: the id {prompt.id} is given twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"prompts: {path} holds none")
    return list(prompts.values())


def _prompt(row: Any, where: str) -> Prompt:
    if isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"].strip():
        named = row.get("id")
        number = where.rsplit(" ", 1)[-1]
        return Prompt(
            str(f"line-{number}" if named is None else named), str(row.get("kind") or ""), row["prompt"]
        )
    turns = row.get("turns") if isinstance(row, dict) else None
    one = isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], str)
    if not one or not turns[0].strip():
        raise ValueError(f"{where}: expected 'prompt', or 'question_id' and 'turns' of one question")
    if row.get("question_id") is None:
        raise ValueError(f"{where}: the question has no 'question_id'")
    return Prompt(f"question-{row['question_id']}", str(row.get("category") or ""), turns[0], chat=True)


def encode(prompt: Prompt, tokenizer: Any) -> list[int]:
    """The prompt's ids. Raises ValueError for a question if the tokenizer has no chat template."""
    if prompt.chat:
        return text.encode_chat(tokenizer, [{"role": "user", "content": prompt.text}])
    return text.encode_plain(tokenizer, [prompt.text])[0]


def complete(
    pair: Pair,
    prompts: Sequence[Prompt],
    thresholds: Sequence[float],
    seeds: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int,
    finished: Callable[[tuple[str, int, float | None]], bool],
    batch: int = BATCH,
) -> Iterator[dict[str, Any]]:
    """One row for every text that is not finished; threshold None is the base's own loop.

    finished: whether (prompt id, seed, threshold) is there already; batch: how many texts of one prompt and
    threshold are decoded at once, all but the first seed's; with 1 every text is timed. Raises ValueError
    for thresholds out of range and for a batch below 1.
    """
    check_batch(batch)
    if not prompts:
        return
    lanes = {None: options} | {each: replace(options, threshold=each) for each in thresholds}
    base = Engine(pair.base, None, pair.tokenizer)
    dynamo = Engine(pair.dynamo, pair.table, pair.tokenizer)
    encoded = [encode(prompt, pair.tokenizer) for prompt in prompts]
    for engine in (base, dynamo):  # a reply each to warm up
        RunCounts.fold(engine.stream(encoded[0], options, min(max_new_tokens, 16)))
    timed = len(seeds) if batch == 1 else 1
    for prompt, ids in zip(prompts, encoded, strict=True):
        for seed in seeds[:timed]:
            for threshold, own in lanes.items():
                if not finished((prompt.id, seed, threshold)):
                    engine = base if threshold is None else dynamo
                    run = RunCounts.fold(engine.stream(ids, own, max_new_tokens, seed))
                    yield {**_row(prompt, seed, threshold, run, pair.tokenizer), **_clock(run)}
        for threshold, own in lanes.items():
            engine = base if threshold is None else dynamo
            missing = [seed for seed in seeds[timed:] if not finished((prompt.id, seed, threshold))]
            replies = decode_together(engine, [ids] * len(missing), missing, own, max_new_tokens, batch)
            for seed, run in zip(missing, replies, strict=True):
                yield {**_row(prompt, seed, threshold, run, pair.tokenizer), **NO_CLOCK}


def check_key(row: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError unless a row names a text as `KEY` does."""
    if not isinstance(row["prompt_id"], str):
        validation.require_int("prompt_id", row["prompt_id"])  # of an instruction example
    validation.require_int("seed", row["seed"], most=2**53)
    if row["threshold"] is not None:
        validation.number("threshold", row["threshold"], 0, 1)


def check_text(row: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError unless a row is a text with its clocks."""
    check_key(row)
    for name in ("prompt", "text"):
        validation.message(name, row[name])
    if not isinstance(row["chat"], bool):
        raise TypeError(f'"chat" must be true or false, got {validation.short_repr(row["chat"])}')
    validation.require_int("decode_tokens", row["decode_tokens"])
    validation.number("decode_seconds", row["decode_seconds"], 0)
    if not isinstance(row["settings"], dict):
        raise TypeError(f'"settings" must be names and values, got {validation.short_repr(row["settings"])}')
    validation.require_int("heads", row["settings"]["heads"], 1)


def _row(
    prompt: Prompt, seed: int, threshold: float | None, run: RunCounts, tokenizer: Any
) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id,
        "seed": seed,
        "threshold": threshold,
        "kind": prompt.kind,
        "chat": prompt.chat,
        "prompt": prompt.text,
        "text": text.decode(tokenizer, run.tokens),
        "tokens": len(run.tokens),
        "passes": run.passes,
    }


# Of a text that was not timed: it adds nothing to pooled tokens per second.
NO_CLOCK = {"decode_tokens": 0, "decode_seconds": 0.0, "prefill_seconds": 0.0}


def _clock(run: RunCounts) -> dict[str, float]:
    return {name: getattr(run, name) for name in NO_CLOCK}
