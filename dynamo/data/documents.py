"""Rows as token documents: the ids of one conversation, built by the chat template, or of one plain text.

`dynamo.data.blocks` packs documents for training, `dynamo.data.instructions` lays out pairs for finetuning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynamo.data import text
from dynamo.data.reading import Names, Reading
from dynamo.data.rows import Row, Turns
from dynamo.data.sources import read_all
from dynamo.model.loss import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", bound=Row)


def read_documents(
    names: Names, tokenizer: PreTrainedTokenizerBase, reading: Reading | None = None
) -> list[np.ndarray]:
    """Every row of data as token ids (int32), in memory; `dynamo.data.corpus` is for larger files.

    Conversations have their markers and end-of-turn tokens. Raises ValueError as `rows` does, and if there is
    no row.
    """
    reading = reading or Reading()
    found = [row.content for row in fitted(read_all(names, reading), tokenizer, reading)]
    reading.check(names)
    return encode_rows(found, tokenizer)


def fitted(found: Iterable[R], tokenizer: PreTrainedTokenizerBase, reading: Reading) -> Iterator[R]:
    """Rows as the tokenizer's chat template takes them: without the system and tool turns that it has no
    place for, and without conversations that it does not take at all.

    Raises ValueError for a conversation if the tokenizer has no chat template.
    """
    template = cache(lambda: text.chat_template(tokenizer))
    refusal = cache(lambda roles: template().refusal(roles))
    unmarked = cache(lambda: {role for role in ("system", "tool") if _written_as_another(tokenizer, role)})
    for row in found:
        if isinstance(row.content, str):
            yield row
            continue
        for refused in (set(), {"system"}, {"tool"}, {"system", "tool"}):
            unplaced = refused | unmarked()
            turns = [turn for turn in row.content if turn["role"] not in unplaced]
            if turns and not refusal(tuple(turn["role"] for turn in turns)):
                for turn in row.content:
                    if turn["role"] in unplaced:
                        part = f"{turn['role']} turns that the chat template has no place for"
                        reading.leave_out_part(part, row.where)
                yield replace(row, content=turns) if unplaced else row
                break
        else:
            why = refusal(tuple(turn["role"] for turn in row.content))
            reason = "turns that the chat template does not take"
            reading.leave_out(reason, row.where, f"{row.where}: {why}", was_read=list)


def _written_as_another(tokenizer: PreTrainedTokenizerBase, role: str) -> bool:
    """Whether a template writes a role as if it were the user's or the assistant's."""

    def written(as_role: str) -> str | None:
        roles = (as_role, "user") if role == "system" else ("user", as_role)
        turns = [{"role": each, "content": f"{n}"} for n, each in enumerate(roles)]
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # a template is anybody's program, and may refuse any roles
            return None

    own = written(role)
    return own is not None and own in (written("user"), written("assistant"))


def encode_rows(rows: Sequence[Turns | str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Rows as token ids (int32), in their order."""
    texts = iter(text.encode_plain(tokenizer, [row for row in rows if isinstance(row, str)]))
    turns = [row for row in rows if not isinstance(row, str)]
    chats = iter(text.encode_many(tokenizer, turns) if turns else ())
    ids = (next(texts) if isinstance(row, str) else next(chats).ids for row in rows)
    return [np.asarray(document, dtype=np.int32) for document in ids]


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of different lengths as two arrays (rows, longest), int64; padding has no label.

    Rows are padded on the right, where no token of a causal model attends to it, so no mask is needed.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), IGNORED_LABEL, np.int64)
    for row, (own_ids, own_labels) in enumerate(rows):
        ids[row, : len(own_ids)] = own_ids
        labels[row, : len(own_labels)] = own_labels
    return ids, labels


def text_bytes_per_token(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes behind each id, (vocab,); special tokens have none."""
    special, bytes_of = text.special_ids(tokenizer), text.TokenBytes(tokenizer)
    return np.array([0 if i in special else len(bytes_of(i)) for i in range(len(tokenizer))])
