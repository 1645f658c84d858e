"""Rows as people have them, as conversations and texts.

Conversations stand under several names (`messages` of OpenAI, `conversations` of ShareGPT ..), with turns of
several spellings; a question with its answer is a conversation too (Alpaca, Dolly, prompt and completion); a
row that has neither is a `text`. A null is an absent field, and a row with a conversation *and* a text, which
often is the same conversation in somebody's template, is a conversation. What cannot be used is left out and
counted in a `Reading`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo.common.validation import clean, parse_json_values, short_repr
from dynamo.data.readers import DOCUMENT, read_values
from dynamo.data.reading import Reading

Turns = list[
    dict[str, str]
]  # `role` (user, assistant, system or tool) and `content`, as the template takes them

CONVERSATIONS = ("messages", "conversations", "conversation", "turns")
SYSTEM = ("system", "system_prompt")
# A question's column, columns of what it is about, and its answer's; the first pair that a row has.
PAIRS = (
    ("instruction", ("input", "context"), ("output", "response")),
    ("prompt", (), ("completion", "response")),
    ("question", ("context",), ("answer", "response")),
    ("query", (), ("response", "answer")),
    ("input", (), ("output",)),
)
RATINGS = ("rating", "score")
ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_KNOWN = {*CONVERSATIONS, *SYSTEM, *RATINGS, "history", "text"}
_KNOWN |= {name for question, more, answers in PAIRS for name in (question, *more, *answers)}
MOST_UNREAD = 20  # columns that are named


@dataclass(frozen=True)
class Row:
    """A conversation or a plain text, the place it was read from, and its rating where it has one."""

    content: Turns | str
    where: str = field(default="", compare=False)
    rating: float | None = None


class _Unusable(Exception):
    """Why a row is left out, and in which value that is seen."""

    def __init__(self, reason: str, value: Any = None):
        super().__init__(reason)
        self.detail = "" if value is None else f" ({short_repr(value)})"


def rows(path: str | Path, reading: Reading, answered: bool = True) -> Iterator[Row]:
    """The rows of a file that can be used; not `answered`: a question needs no answer, and each line of a
    plain text is one.

    Raises ValueError for a file that is damaged, of another kind, or without one such row, and where
    `reading` is strict for a row that cannot be used; OSError if there is no such file.
    """
    here = Reading(reading.strict)
    for value, where in read_values(path, here, DOCUMENT if answered else 1):
        row = _row(value, where, here, answered)
        if row is not None:
            yield row
    if here.left_out:
        here.check(path)
    reading.add(here)


def read_rows(path: str | Path) -> Iterator[Turns | str]:
    """`rows` of a file without their places and ratings, and without counts of what is left out."""
    return (row.content for row in rows(path, Reading()))


def conversations(found: Iterable[Row], reading: Reading) -> Iterator[Row]:
    """The conversations among rows; plain texts are left out."""
    for row in found:
        if isinstance(row.content, str):
            reading.leave_out("text that is no conversation", row.where, was_read=str)
        else:
            yield row


def _row(value: Any, where: str, reading: Reading, answered: bool) -> Row | None:
    parts: list[str] = []
    try:
        content = _content(value, parts, answered)
    except _Unusable as unusable:
        reading.leave_out(str(unusable), where, f"{where}: {unusable}{unusable.detail}")
        return None
    for part in parts:
        reading.leave_out_part(part, where)
    rating = None
    if isinstance(value, dict):
        rating = number(first_given(value, RATINGS))
        new = [str(name) for name in value if name not in _KNOWN and str(name) not in reading.unread]
        reading.unread += new[: MOST_UNREAD - len(reading.unread)]
    if isinstance(content, str):
        reading.texts += 1
    else:
        reading.conversations += 1
    return Row(content, where, rating)


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _content(value: Any, parts: list[str], answered: bool) -> Turns | str:
    """A row's conversation or text; names of what is left out of it are added to `parts`."""
    if isinstance(value, list):
        value = {"messages": value}
    elif isinstance(value, str):
        value = {"text": value}
    elif not isinstance(value, dict):
        raise _Unusable("a value that is no object", value)
    given = first_given(value, CONVERSATIONS)
    if "question_id" in value and isinstance(given, list) and len(given) == 1:  # a Vicuna question
        given = [{"role": "user", "content": given[0]}]
    turns = None if given is None or given in ([], "") else _turns(given, parts)
    turns = turns or _pair(value, parts, answered)
    if turns:
        return _with_system(value, turns, parts)
    text = value.get("text")
    if text is None and given is not None:
        raise _Unusable("an empty conversation", value)
    if text is None:
        raise _Unusable("no column that is read", ", ".join(map(str, value)))
    if not isinstance(text, str):
        raise _Unusable("a text that is no text", text)
    if not text.strip():
        raise _Unusable("an empty text")
    return clean(text)


def first_given(row: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of some columns that a row has; None is not having it."""
    for name in names:
        if (value := row.get(name)) is not None:
            return value
    return None


def _turns(given: Any, parts: list[str]) -> Turns:
    if isinstance(given, str):  # a table's cell
        try:
            (given,) = parse_json_values(given)
        except ValueError:
            raise _Unusable("a conversation that is no list", given) from None
    if not isinstance(given, list):
        raise _Unusable("a conversation that is no list", given)
    turns = [made for turn in given if (made := _turn(turn, parts))]
    if not any(turn["role"] in ("user", "assistant") for turn in turns):
        raise _Unusable("a conversation without a turn of user or assistant", given)
    return turns


def _turn(turn: Any, parts: list[str]) -> dict[str, str] | None:
    """None for a turn that holds no text of its own."""
    if not isinstance(turn, dict):
        raise _Unusable("a turn that is no object", turn)
    name = first_given(turn, ("role", "from"))
    if name == "function_call":  # of ShareGPT's agents
        parts.append("tool calls")
        return None
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise _Unusable("a turn of an unknown role", turn)
    calls = turn.get("tool_calls") or turn.get("function_call")
    if calls:
        parts.append("tool calls")
    if turn.get("weight") == 0:  # of OpenAI: a reply that is not to be learnt
        parts.append("weights of 0, as every reply is learnt")
    content = _text(first_given(turn, ("content", "value", "text")), turn, parts)
    if content.strip():
        return {"role": role, "content": content}
    if not calls and role in ("user", "assistant"):
        raise _Unusable("an empty reply" if role == "assistant" else "an empty turn", turn)
    return None


def _text(content: Any, turn: Any, parts: list[str]) -> str:
    """A turn's text: a string, or a list of parts of which the texts are joined."""
    if content is None:
        return ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise _Unusable("a turn that is no text", turn)
        return clean(content)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(clean(text))
        else:
            parts.append("parts of turns that are not text")
    return "".join(texts)


def _pair(row: dict[str, Any], parts: list[str], answered: bool) -> Turns | None:
    """A question with its answer, or not `answered` alone; None for a row without these columns."""
    names = [
        names for names in PAIRS
        if row.get(names[0]) is not None and (set(names[2]) & row.keys() or not answered)
    ]  # fmt: skip
    if not names:
        return None
    question, more, answers = names[0]
    asked, answer = row[question], first_given(row, answers) if answered else []
    if isinstance(asked, list) and isinstance(answer, list):  # each a part of one conversation
        return _turns([*asked, *answer], parts)
    asked, answer, *about = (_text(each, row, parts) for each in (asked, answer, *map(row.get, more)))
    asked = "\n\n".join(each for each in (asked, *about) if each.strip())
    if answered and not answer.strip():
        raise _Unusable("an empty reply")
    if not asked:
        raise _Unusable("an empty question")
    turns = [*_history(row), {"role": "user", "content": asked}]
    return [*turns, {"role": "assistant", "content": answer}] if answered else turns


def _history(row: dict[str, Any]) -> Turns:
    """Earlier rounds: [[question, answer], ..]."""
    turns = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise _Unusable("a history that is no list of questions and answers", pair)
        for role, content in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": clean(content)})
    return turns


def _with_system(row: dict[str, Any], turns: Turns, parts: list[str]) -> Turns:
    given = _text(first_given(row, SYSTEM), row, parts)
    if not given.strip() or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": given}, *turns]
