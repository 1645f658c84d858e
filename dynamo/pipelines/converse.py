"""A chat model writes conversations, as data for its own token heads: no data set, no licence but its own.

What is written goes to one file for training and two that are held out, row by whole row; beside them the
settings, the counts and the conversations under way, so a killed run goes on with the same ones.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynamo.common.files import drop_cut_line, write_json
from dynamo.pipelines.conversation_filter import Filter, Kept, question_key
from dynamo.pipelines.conversation_writer import ConversationWriter, ConverseOptions

SPLITS = ("train", "dev", "test")
FIRST_GUESS = 200.0  # answer tokens of a conversation, before one has ended
HELD_OUT = 50  # one conversation of so many goes to dev, and one to test


def split_of(number: int) -> str:
    """The part that a conversation belongs to, whatever the run."""
    return {0: "dev", 1: "test"}.get(number * 2654435761 % 2**32 // 97 % HELD_OUT, "train")


def part_file(output: Path, split: str) -> Path:
    """talks.jsonl for training, talks.dev.jsonl and talks.test.jsonl beside it."""
    return output if split == "train" else output.with_name(f"{output.stem}.{split}{output.suffix}")


def converse(
    model: Any,
    tokenizer: Any,
    output: str | Path,
    tokens: int = 0,
    options: ConverseOptions | None = None,
    questions: Sequence[str] | None = None,
    source: str = "",
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write conversations until the kept ones hold `tokens` answer tokens, or answer every question once.

    model: a causal LM of transformers, whose attention is replaced; output: a .jsonl file,
    with .dev and .test files and a .json of settings and counts beside it, from which a killed run goes on.
    Returns what the .json holds. Raises ValueError for options out of range, for a tokenizer without a chat
    template, and for an output made with other settings.
    """
    options = options or ConverseOptions()
    output = Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(f"output: expected a .jsonl file, got {output}")
    if tokens < 1 and questions is None:
        raise ValueError(f"tokens: expected 1 or more answer tokens, got {tokens}")
    writer = ConversationWriter(model, tokenizer, options, questions)
    run = ConverseRun(output, {"model": source, **asdict(options), "questions": len(questions or [])})
    kept = Filter(tokenizer, options)
    kept.seen |= run.seen()
    bar = tqdm(
        total=None if questions is not None else tokens, initial=run.counts["answer_tokens"], unit="tok",
        desc="conversing", disable=not progress, mininterval=5, smoothing=0.02,
    )  # fmt: skip
    count = None if questions is None else len(questions)
    with bar:
        while not run.is_over(count, tokens):  # again where what was dropped left too few
            for row, ended in writer.finished(run.numbers(count, tokens)):
                found = kept.messages(row, ended)
                run.take(row.number, found)
                bar.set_postfix(run.dropped, refresh=False)
                bar.update(found.tokens)
                run.check_yield(4 * options.rows)
                if stop():
                    return run.write_state()
    return run.write_state()


class ConverseRun:
    """A run's files: rows appended whole, and beside them the settings, counts, and what is under way."""

    def __init__(self, output: Path, settings: dict[str, Any]):
        self._output, self._settings = output, settings
        self._state = output.with_suffix(".json")
        self.counts: Counter[str] = Counter(answer_tokens=0, conversations=0)
        self.dropped: Counter[str] = Counter()
        self._shortened: Counter[str] = Counter()
        self._begun: set[int] = set()
        self._next = 0
        self._seconds, self._since = 0.0, time.monotonic()
        self._done: set[int] = set()
        self._go_on() if self._state.exists() else self._begin()

    def _begin(self) -> None:
        if any(part_file(self._output, split).exists() for split in SPLITS):
            raise ValueError(f"output: {self._output} exists, but no {self._state.name} to go on from")
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self.write_state()

    def _go_on(self) -> None:
        then = json.loads(self._state.read_text(encoding="utf-8"))
        changed = [name for name in self._settings if then["settings"].get(name) != self._settings[name]]
        if changed:
            raise ValueError(
                f"output: {self._output} was begun with other settings ({', '.join(changed)}); use the same "
                "to go on, or another file"
            )
        self._begun, self._next = set(then["under_way"]), then["next"]
        self.dropped.update(then["dropped"])
        self._shortened.update(then.get("shortened", {}))  # which older files lack
        self._seconds = then["seconds"]
        for row in self._rows():
            self._done.add(row["id"])
            self.counts["conversations"] += 1
            self.counts["answer_tokens"] += row["answer_tokens"]

    def _rows(self) -> Iterator[dict[str, Any]]:
        for split in SPLITS:
            path = part_file(self._output, split)
            if path.exists():
                drop_cut_line(path)
                with path.open(encoding="utf-8") as lines:
                    yield from map(json.loads, lines)

    def seen(self) -> set[str]:
        """First questions that are there already, by their keys."""
        return {question_key(row["messages"][0]["content"]) for row in self._rows()}

    def numbers(self, count: int | None, tokens: int) -> Iterator[int]:
        """Numbers of conversations to write: first those that a kill left under way, then as many as are
        expected to hold what is still missing."""
        yield from sorted(self._begun - self._done)
        while self._next < count if count is not None else self._expected() < tokens:
            number, self._next = self._next, self._next + 1
            self._begun.add(number)
            yield number

    def is_over(self, count: int | None, tokens: int) -> bool:
        """Whether all is written and nothing is under way."""
        if self._begun - self._done:
            return False
        return self._next >= count if count is not None else self.counts["answer_tokens"] >= tokens

    def _expected(self) -> float:
        """Answer tokens once what is under way has ended as what was tried before it did."""
        tried = self.counts["conversations"] + self.dropped.total()
        each = (self.counts["answer_tokens"] or FIRST_GUESS) / max(1, tried)
        return self.counts["answer_tokens"] + each * len(self._begun)

    def take(self, number: int, kept: Kept) -> None:
        if kept.messages:
            row = {"id": number, "messages": kept.messages, "answer_tokens": kept.tokens}
            path = part_file(self._output, split_of(number))
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.counts["conversations"] += 1
            self.counts["answer_tokens"] += kept.tokens
        if kept.fault:
            self.dropped[kept.fault] += 1
        if kept.shortened:
            self._shortened[kept.shortened] += 1
        self._begun.discard(number)
        self.write_state()

    def check_yield(self, tried: int) -> None:
        """Raises ValueError where not one of the first `tried` conversations could be kept."""
        if self.dropped.total() >= tried and not self.counts["conversations"]:
            raise ValueError(
                f"model: none of its first {tried} conversations can be kept ({dict(self.dropped)}); is it a "
                "chat model, and are longest_answer and longest_turn long enough for it?"
            )

    def state(self) -> dict[str, Any]:
        seconds = self._seconds + time.monotonic() - self._since
        return {
            "settings": self._settings, **self.counts, "dropped": dict(self.dropped),
            "shortened": dict(self._shortened), "seconds": round(seconds, 1), "next": self._next,
            "under_way": sorted(self._begun),
        }  # fmt: skip

    def write_state(self) -> dict[str, Any]:
        state = self.state()
        write_json(self._state, state)
        return state
