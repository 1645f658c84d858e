"""Co-occurrence tables of tiny corpora, and a pair with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import DIALOGUES, tiny_base, tiny_dynamo

from dynamo import CooccurrenceTable
from dynamo.data import text
from dynamo.loading import TABLE_FILE
from dynamo.training.trainer import save_model


def table_for(tokenizer):
    blocks = [text.encode_turns(tokenizer, turns).ids for turns in DIALOGUES]
    return CooccurrenceTable.count(blocks, order=3, vocab_size=300)


def random_table(seed=0, vocab=300, order=3):
    """Nearly uniform pairs, so that the mask leaves much; triples are sparse."""
    rng = np.random.default_rng(seed)
    return CooccurrenceTable.count([rng.integers(0, vocab, 200_000)], order=order, vocab_size=vocab)


def save_pair(folder: Path, tokenizer, table: CooccurrenceTable | None = None) -> Path:
    """A pair of random models in a folder, by default with the dialogues' table."""
    save_model(tiny_base(seed=1), tokenizer, folder / "base")
    save_model(tiny_dynamo(seed=2), tokenizer, folder / "dynamo")
    (table or table_for(tokenizer)).save(folder / "dynamo" / TABLE_FILE)
    return folder
