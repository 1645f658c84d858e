"""A tokenizer's own chat template, cut at the contents of a conversation.

A template is a program that writes markers around contents. Here it is run once for every sequence of roles,
on marks in place of contents, and what it wrote is cut at the marks. The ids of a conversation are those of
the template's text with the contents set between, so nothing that a user types is run through the template,
and a special token that a content spells is text. (Markers of some templates are plain text themselves, as
TinyLlama's `<|user|>`: those a user can spell.)

The same cut says which ids are an answer: those after the prompt that asks for it, up to the token that ends
it. Text is encoded up to there and from there, so the ids of a prompt begin the ids of its conversation.

Where a template strips the white space around contents, it is stripped here. A template that changes contents
in another way, leaves them out or does not take the roles is refused in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dynamo.common.validation import short_repr

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

# A content that shows whether it is kept as it is: it has what a template might escape.
_MARK = "Tx{}<&\"'>\nxT"
_MARKS = re.compile(re.escape(_MARK).replace(re.escape("{}"), r"(\d+)"))
# White space around a mark. What is left of it tells what was stripped, as `str.strip` takes it: nothing,
# line ends, all white space.
_LEFT, _RIGHT = "\n \t", "\t \n"
_LEFT_CUT = {_LEFT: "", _LEFT[1:]: "\n", "": None}
_RIGHT_CUT = {_RIGHT: "", _RIGHT[:-1]: "\n", "": None}


class Answer(NamedTuple):
    """The ids of one answer and of the token that ends it: [start, stop), without the assistant's marker."""

    start: int
    stop: int


@dataclass(frozen=True)
class EncodedChat:
    ids: list[int]
    answers: list[Answer]


@dataclass(frozen=True)
class _Content:
    """The place of a turn's content, and the characters that are stripped on both sides of it."""

    turn: int
    left: str | None
    right: str | None


@dataclass(frozen=True)
class _Piece:
    """What is encoded by itself: the template's text with places of contents, and the answer or none."""

    parts: tuple[str | _Content, ...]
    answer: bool


@dataclass(frozen=True)
class _Cut:
    """Conversations of one sequence of roles. markers: where one begins that no content but an answer may
    spell."""

    pieces: tuple[_Piece, ...]
    markers: re.Pattern[str]


class ChatTemplate:
    """A tokenizer's template; it is read once, so make another after a change of the tokenizer.

    roles: those that the template has markers for, where it does not refuse others itself. Raises ValueError
    for a tokenizer without a template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, roles: Collection[str] = ROLES):
        if not tokenizer.chat_template:
            raise ValueError(
                "tokenizer: it has no chat template, so nothing says how a conversation is written; "
                "`train` and `finetune` give it markers (dynamo.data.text.add_chat_template)"
            )
        self._tokenizer = tokenizer
        self._roles = roles
        added = tokenizer.added_tokens_decoder.values()
        special = {*tokenizer.all_special_tokens, *(each.content for each in added if each.special)}
        self._words = {each.content for each in added} - special
        self._special_names = special
        self._special = _any_of(special)
        self._spelled = _begin_of_any(special)
        self._cuts: dict[tuple[tuple[str, ...], bool], _Cut] = {}
        one, other, both = self._ids(["\n", "x", "\nx"])
        self._spaced = one + other != both  # a space stands before every text, as SentencePiece has it

    def encode(
        self, conversations: Sequence[Sequence[dict[str, str]]], ask: bool = False
    ) -> list[EncodedChat]:
        """Ids of conversations (`role`, `content`) by one call of the tokenizer, and where answers are.

        ask: go on to where the assistant speaks. Raises ValueError for turns that the template does not take.
        """
        texts: list[str] = []
        contexts: list[str] = []  # what stands before each text
        plans = []  # for each piece of a conversation, whether it is an answer and how many texts it is
        for turns in conversations:
            cut = self._cut(tuple(turn["role"] for turn in turns), ask)
            context, plan = "", []
            for piece in cut.pieces:
                found = self._texts(piece, turns, cut.markers)
                for text in found:
                    contexts.append(context)
                    context = self._context_after(text)
                texts += found
                plan.append((piece.answer, len(found)))
            plans.append(plan)
        encoded = iter(self._ids_after(contexts, texts))
        chats = []
        for plan in plans:
            chat = EncodedChat([], [])
            for answer, count in plan:
                start = len(chat.ids)
                for _ in range(count):
                    chat.ids.extend(next(encoded))
                if answer:
                    chat.answers.append(Answer(start, len(chat.ids)))
            chats.append(chat)
        return chats

    def lead(self, roles: Sequence[str], ask: bool = False) -> list[int]:
        """Ids that lead from the content before the last to the last one of turns of these roles; ask: from
        the last one to where the assistant speaks.

        Raises ValueError for turns that the template does not take or whose contents it moves.
        """
        parts = self._render(tuple(roles), ask)
        if [part.turn for part in parts[1::2]] != list(range(len(roles))):
            raise ValueError("tokenizer: its chat template does not keep contents in their order")
        place = -1 if ask else -3
        context = self._context_after("x") if len(parts) + place > 0 else ""
        return self._ids_after([context], [parts[place]])[0]

    def refusal(self, roles: Sequence[str]) -> str:
        """Why the template does not take turns of these roles; "" if it does."""
        try:
            self._cut(tuple(roles), False)
        except ValueError as error:
            return str(error)
        return ""

    def end_of_answer(self) -> str:
        """The special token that ends an answer; "" where none does."""
        end = self._special.search(self._render(("user", "assistant"), False)[-1])
        return end.group() if end else ""

    # -- what the template writes

    def _cut(self, roles: tuple[str, ...], ask: bool) -> _Cut:
        if (roles, ask) not in self._cuts:
            parts = self._render(roles, ask)
            literals = "".join(parts[::2])
            written = {word for word in self._words if word in literals}
            self._cuts[roles, ask] = _Cut(
                tuple(self._pieces(roles, parts)), _begin_of_any(self._special_names | written)
            )
        return self._cuts[roles, ask]

    def _render(self, roles: tuple[str, ...], ask: bool) -> list:
        """The template's texts and the places of contents between them: [str, _Content, str, .., str]."""
        unknown = [role for role in roles if role not in self._roles]
        if unknown:
            raise ValueError(
                f"role: expected one that the chat template has a marker for ({', '.join(self._roles)}), "
                f"got {short_repr(unknown[0])}"
            )
        marks = [_MARK.format(turn) for turn in range(len(roles))]
        found = _MARKS.split(self._written(roles, marks, ask))
        literals, turns = found[::2], list(map(int, found[1::2]))
        if sorted(turns) != list(range(len(roles))):
            turn = next((turn for turn in range(len(roles)) if turns.count(turn) != 1), 0)
            raise ValueError(
                "messages: the model's chat template leaves out, repeats or changes the content of turn "
                f"{turn + 1} ({roles[turn]}) of {_named(roles)}"
            )
        padded = self._written(roles, [_LEFT + mark + _RIGHT for mark in marks], ask)
        parts: list[str | _Content] = [literals[0]]
        end = len(literals[0]) if padded.startswith(literals[0]) else len(padded)
        for turn, after in zip(turns, literals[1:], strict=True):
            left, end = _read(padded, end, {kept + marks[turn]: cut for kept, cut in _LEFT_CUT.items()})
            right, end = _read(padded, end, {kept + after: cut for kept, cut in _RIGHT_CUT.items()})
            parts += [_Content(turn, left, right), after]
        if end != len(padded):
            raise ValueError(f"messages: the model's chat template changes contents of {_named(roles)}")
        return parts

    def _written(self, roles: tuple[str, ...], contents: list[str], ask: bool) -> str:
        turns = [{"role": role, "content": each} for role, each in zip(roles, contents, strict=True)]
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template is anybody's program
            said = short_repr(str(error), 200)
            raise ValueError(
                f"messages: the model's chat template does not take {_named(roles)}: {said}"
            ) from None

    def _pieces(self, roles: tuple[str, ...], parts: list) -> list[_Piece]:
        """What the template writes, cut where answers begin and end."""
        pieces: list[_Piece] = []
        gathered: list[str | _Content] = []
        starts: dict[str, int] = {}  # the same text before an answer ends where it ended before
        answering = False

        def finish() -> None:
            if gathered:
                pieces.append(_Piece(tuple(gathered), answering))
                gathered.clear()

        for place in range(0, len(parts), 2):
            literal, content = parts[place], parts[place + 1] if place + 1 < len(parts) else None
            if answering:
                end = self._special.search(literal)
                stop = end.end() if end else 0
                gathered.append(literal[:stop])
                literal = literal[stop:]
                finish()
                answering = False
            else:
                stop = 0
            if content is not None and roles[content.turn] == "assistant":
                if parts[place] not in starts:
                    starts[parts[place]] = self._answer_start(roles, parts, place)
                start = max(0, starts[parts[place]] - stop)
                gathered.append(literal[:start])
                finish()
                answering = True
                literal = literal[start:]
            gathered.append(literal)
            if content is not None:
                gathered.append(content)
        finish()
        return pieces

    def _answer_start(self, roles: tuple[str, ...], parts: list, place: int) -> int:
        """Where in the text before an answer the prompt ends that asks for it."""
        literal, turn = parts[place], parts[place + 1].turn
        try:
            prompt = self._render(roles[:turn], True)
        except ValueError:  # no template takes no turns
            prompt = []
        if prompt and prompt[:-1] == parts[:place] and literal.startswith(prompt[-1]):
            return len(prompt[-1])
        return len(literal.rstrip(" "))  # a space belongs to the word that follows

    # -- ids

    def _texts(self, piece: _Piece, turns: Sequence[dict[str, str]], markers: re.Pattern[str]) -> list[str]:
        """A piece with its contents, as texts to be encoded one by one: special tokens that contents spell
        are broken in two."""
        texts = [""]
        for part in piece.parts:
            if isinstance(part, str):
                texts[-1] += part
                continue
            turn = turns[part.turn]
            content = valid(turn["content"]).lstrip(part.left).rstrip(part.right)
            spelled = self._spelled if turn["role"] == "assistant" else markers
            start = 0
            for found in spelled.finditer(content):
                texts[-1] += content[start : found.end()]
                texts.append("")
                start = found.end()
            texts[-1] += content[start:]
        return [text for text in texts if text]

    def _context_after(self, text: str) -> str:
        """What to encode a text after that follows this one, so that it gets no space of its own where the
        whole has none."""
        if not self._spaced:
            return ""
        return next((name for name in self._special_names if text.endswith(name)), "\n")

    def _ids_after(self, contexts: list[str], texts: list[str]) -> list[list[int]]:
        if not self._spaced:
            return self._ids(texts)
        different = sorted(set(contexts))
        lengths = dict(zip(different, map(len, self._ids(different)), strict=True))
        encoded = self._ids([context + text for context, text in zip(contexts, texts, strict=True)])
        return [ids[lengths[context] :] for context, ids in zip(contexts, encoded, strict=True)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=False, split_special_tokens=False)["input_ids"]


def valid(content: str) -> str:
    """The text itself; lone surrogates, which have no UTF-8, become question marks."""
    return content.encode("utf-8", errors="replace").decode()


def _named(roles: Sequence[str]) -> str:
    return f"turns of {', '.join(roles[:6])}{', ..' if len(roles) > 6 else ''}"


def _read(text: str, at: int, known: dict[str, str | None]) -> tuple[str | None, int]:
    """Which of these a text goes on with, and where it ends; past the text's end where it is none."""
    for begin, value in known.items():
        if text.startswith(begin, at):
            return value, at + len(begin)
    return None, len(text) + 1


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _begin_of_any(words: Collection[str]) -> re.Pattern[str]:
    """The first character of every place that spells one of these words."""
    longer = sorted(word for word in words if len(word) > 1)
    return re.compile(
        "|".join(f"{re.escape(word[0])}(?={re.escape(word[1:])})" for word in longer) or r"(?!)"
    )
