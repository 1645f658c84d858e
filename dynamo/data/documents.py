"""Rows as token documents: the ids of one conversation, built by the chat template, or of one plain text.

`dynamo.data.blocks` packs documents for training, `dynamo.data.instructions` lays out pairs for finetuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamo.data import text
from dynamo.data.readers import Turns, read_rows
from dynamo.model.loss import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_documents(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Every row of a file as token ids (int32), in memory; `dynamo.data.corpus` is for larger files.

    Conversations have their markers and end-of-turn tokens. Raises ValueError as `readers.read_rows`
    does, and if the file has no row.
    """
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path}: holds no conversation and no text")
    return encode_rows(rows, tokenizer)


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
