"""Which exchanges of a written conversation are kept, and why others are not."""

from __future__ import annotations

from typing import Any

from dynamo.data.text import TokenBytes, special_ids
from dynamo.pipelines.conversation_writer import Conversation, ConverseOptions, is_loop

ENDS = {"cut": "not ended", "looped": "repetition loop"}  # what is wrong with a turn that did not end itself


class Filter:
    """seen: first questions that are there already, in one form; a second conversation on one is dropped."""

    def __init__(self, tokenizer: Any, options: ConverseOptions):
        self._options = options
        self._bytes_of, self._special = TokenBytes(tokenizer), special_ids(tokenizer)
        self.seen: set[str] = set()

    def messages(self, row: Conversation, ended: str) -> tuple[list[dict[str, str]], int, str | None]:
        """The good exchanges of a conversation up to the first bad one, their answers' tokens, and what was
        wrong with that one."""
        kept: list[dict[str, str]] = []
        tokens = 0
        for question, answer in zip(row.turns[::2], [*row.turns[1::2], ("assistant", [])], strict=False):
            last = answer is row.turns[-1] or question is row.turns[-1]
            texts = [self._decode(ids) for _, ids in (question, answer)]
            fault = ENDS.get(ended) if last else None
            fault = fault or self._fault(question[1], answer[1], texts)
            if not kept and fault is None:
                key = question_key(texts[0])
                fault = "duplicate" if key in self.seen else None
                self.seen.add(key)
            if fault:
                return kept, tokens, fault
            kept += [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
            tokens += len(answer[1])
        return kept, tokens, None

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
