"""Which exchanges of a written conversation are kept, and why others are not.

An answer that grew too long or came to repeat itself is kept up to the end of a sentence before that: heads
learn from every token, and its early end is one false label among some hundred true ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamo.data.text import TokenBytes, special_ids
from dynamo.pipelines.conversation_writer import LOOP_WINDOW, Conversation, ConverseOptions, is_loop

ENDS = {"cut": "not ended", "looped": "repetition loop"}  # what is wrong with a turn that did not end itself
LEAST_PART = 64  # tokens of an answer that is kept in part


class Kept(NamedTuple):
    """Exchanges that are kept, and their answers' tokens; what was wrong with the next one; why the last
    answer is only the first part of one. None where there is no such."""

    messages: list[dict[str, str]]
    tokens: int
    fault: str | None = None
    shortened: str | None = None


class Filter:
    """seen: first questions that are there already, in one form; a second conversation on one is dropped."""

    def __init__(self, tokenizer: Any, options: ConverseOptions):
        self._options = options
        self._bytes_of, self._special = TokenBytes(tokenizer), special_ids(tokenizer)
        self.seen: set[str] = set()

    def messages(self, row: Conversation, ended: str) -> Kept:
        """The good exchanges of a conversation up to the first bad one."""
        kept: list[dict[str, str]] = []
        tokens = 0
        for question, answer in zip(row.turns[::2], [*row.turns[1::2], ("assistant", [])], strict=False):
            asked, answered, end = question[1], answer[1], None
            if answer is row.turns[-1] or question is row.turns[-1]:
                end = ENDS.get(ended)
            if end and answered:
                answered = self._part(answered)
            texts = [self._decode(ids) for ids in (asked, answered)]
            fault = end if end and len(answered) < LEAST_PART else self._fault(asked, answered, texts)
            if not kept and fault is None:
                key = question_key(texts[0])
                fault = "duplicate" if key in self.seen else None
                self.seen.add(key)
            if fault:
                return Kept(kept, tokens, fault)
            kept += [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
            tokens += len(answered)
        return Kept(kept, tokens, shortened=end)

    def _part(self, answer: list[int]) -> list[int]:
        """The whole sentences and lines of an answer that did not end, before what it repeated."""
        while is_loop(answer[-LOOP_WINDOW:]) or is_loop(answer[-LOOP_WINDOW // 2 :]):
            answer = answer[:-LOOP_WINDOW]
        pieces = [*map(self._bytes_of, answer), b""]
        text = b"".join(pieces)
        for length in range(len(answer), 0, -1):
            line = text.rpartition(b"\n")[2].lstrip()
            ended = line.endswith((b".", b"!", b"?")) and not line[:-1].isdigit()  # "7." begins an item
            if ended or pieces[length].startswith(b"\n"):
                return answer[:length]
            text = text.removesuffix(pieces[length - 1])
        return []

    def _decode(self, ids: list[int]) -> str:
        """With broken characters in it, which are a fault."""
        return b"".join(map(self._bytes_of, ids)).decode(errors="replace")

    def _fault(self, question: list[int], answer: list[int], texts: list[str]) -> str | None:
        if len(question) < 2 or len(answer) < self._options.shortest_answer or not all(map(str.strip, texts)):
            return "too short"
        if any(token in self._special for token in (*question, *answer)) or "\ufffd" in "".join(texts):
            return "not text"
        return "repetition loop" if is_loop(answer) or is_loop(question) else None


def question_key(question: str) -> str:
    """What questions have in common that are the same but for case and white space."""
    return " ".join(question.casefold().split())
