"""A language model that is a table: five tokens, three heads, every probability known for every prefix."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.decoding.engine import Engine

VOCAB, END, START = 5, 4, [0, 1]


def logits_after(prefix) -> np.ndarray:
    """A small language model as a table: three heads, correlated enough for drafts to be kept sometimes."""
    rng = np.random.default_rng([7, *prefix])
    logits = 1.3 * rng.normal(size=(3, VOCAB))
    for head in range(1, 3):
        follower = np.random.default_rng([7, *prefix, int(logits[head - 1].argmax())])
        logits[head] = 0.7 * logits[head] + 1.3 * follower.normal(size=VOCAB)
    return logits


@dataclass
class TableState:
    tokens: list[int] = field(default_factory=list)

    capacity = 64

    @property
    def length(self) -> int:
        return len(self.tokens)

    @length.setter
    def length(self, length: int) -> None:
        del self.tokens[length:]

    def crop(self, positions: int) -> None:
        del self.tokens[len(self.tokens) - positions :]


class TableDecoder:
    """`Decoder` over `logits_after`; remembers what it was fed."""

    vocab_size, max_length, heads, device = VOCAB, 64, 3, torch.device("cpu")

    def __init__(self):
        self.fed: list[int] = []

    def new_cache(self, capacity: int) -> TableState:
        return TableState()

    def read(self, state, tokens, heads, queries) -> torch.Tensor:
        """Logits in the place of states."""
        state.tokens += tokens
        self.fed.append(len(tokens))
        after = [logits_after(state.tokens[: state.length - back]) for back in reversed(range(queries))]
        return torch.tensor(np.stack(after, axis=1)[:heads])

    def by_position(self, states):
        return states.transpose(0, 1)

    def drafted(self, few: int):
        """The last first, so that places are not ids."""
        return np.arange(VOCAB)[::-1][:few].copy() if few else None


class TableCorrelator:
    """Conditionals: each head's own probabilities, weighted anew for every text before them."""

    def attach(self, candidates, logits=None, states=None, options=None):
        return candidates._replace(given=TableConditionals(candidates))


class TableConditionals:
    def __init__(self, candidates):
        self.candidates = candidates

    def factors(self, tokens):
        ids, f = (each[tokens.shape[1]] for each in self.candidates[:2])
        weights = np.array(
            [np.random.default_rng([9, *row]).gamma(0.5, size=VOCAB) for row in tokens.tolist()]
        )
        p = f * weights[:, ids]
        return 0.9 * p / p.sum(axis=1, keepdims=True)

    def later(self, order):
        return 0.9 ** max(order - 2, 0)


@pytest.fixture(scope="module")
def table():
    """Most pairs and half of the triples of 0 to 2; 3 begins pairs but no triple; nothing follows the end."""
    rng = np.random.default_rng(3)
    documents = [[*rng.integers(0, 3, 5), END] for _ in range(10)]
    documents += [[first, 3, second] for first in range(3) for second in (0, 1, END)]
    return CooccurrenceTable.count(documents, vocab_size=VOCAB)


@pytest.fixture
def engine(table):
    engine = Engine(tiny_dynamo(), None)
    engine._decoder, engine._table, engine._correlators = TableDecoder(), table, TableCorrelator()
    engine.end_ids = engine._special_ids = frozenset({END})
    return engine
