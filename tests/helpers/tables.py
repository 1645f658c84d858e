"""Co-occurrence tables of tiny corpora."""

from __future__ import annotations

import numpy as np
from conftest import DIALOGUES

from dynamo import CooccurrenceTable
from dynamo.data import text


def table_for(tokenizer):
    blocks = [text.encode_turns(tokenizer, turns).ids for turns in DIALOGUES]
    return CooccurrenceTable.count(blocks, order=3, vocab_size=300)


def random_table(seed=0, vocab=300, order=3):
    """Nearly uniform pairs, so that the mask leaves much; triples are sparse."""
    rng = np.random.default_rng(seed)
    return CooccurrenceTable.count([rng.integers(0, vocab, 200_000)], order=order, vocab_size=vocab)
