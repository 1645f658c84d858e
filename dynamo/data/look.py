"""A look at data before the work: what is understood, what is left out, two rows as the model reads them."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamo.data import text
from dynamo.data.documents import encode_rows, fitted
from dynamo.data.reading import Reading
from dynamo.data.sources import data_files, read_all

ROWS_AT_A_TIME = 512
SAMPLES = 2
SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class Look:
    """turns: by role; tokens: of all rows, with `median` and `longest` of one; blocks: of `block_size` tokens
    that training cuts an epoch into; fitting: rows that are no longer than a block, which finetuning cuts
    rows at; within: share of the tokens that are left after that cut; samples: place and text of rows, with
    the template's markers; markers_added: whether the tokenizer lacks them, and training would add some."""

    files: list[str]
    reading: Reading
    turns: dict[str, int]
    tokens: int
    median: int
    longest: int
    block_size: int
    blocks: int
    fitting: int
    within: float
    samples: list[tuple[str, str]]
    markers_added: bool

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reading": self.reading.to_json()}

    def sentences(self) -> list[str]:
        """For people, after what the reading says."""
        turns = ", ".join(f"{count:,} of {role}" for role, count in self.turns.items())
        said = [f"turns: {turns}"] if turns else []
        said.append(f"tokens: {self.tokens:,}; a row has {self.median:,} (median) to {self.longest:,}")
        said.append(
            f"blocks of {self.block_size}: train makes {self.blocks:,} an epoch; finetune, which cuts rows "
            f"there, reads {100 * self.within:.0f} % of the tokens, and {self.fitting:,} of "
            f"{self.reading.rows:,} rows whole"
        )
        if self.markers_added:
            said.append(text.MARKERS_ADDED)
        return said


def look(names: Sequence[str], tokenizer: Any, block_size: int, reading: Reading) -> Look:
    """Read data as `train` would, with its tokens counted. Raises ValueError and OSError as reading does."""
    if block_size < 2:
        raise ValueError(f"block_size: expected 2 or more tokens, got {block_size}")
    lacks_template = not text.has_chat_template(tokenizer)
    if lacks_template:
        tokenizer = copy.deepcopy(tokenizer)
        text.add_chat_template(tokenizer)
    files = data_files(names)
    rows = fitted(read_all(files, reading), tokenizer, reading)
    turns: Counter[str] = Counter()
    lengths: list[int] = []
    samples: list[tuple[str, str]] = []
    while batch := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        for row, ids in zip(batch, encode_rows([each.content for each in batch], tokenizer), strict=True):
            lengths.append(len(ids))
            if not isinstance(row.content, str):
                turns.update(turn["role"] for turn in row.content)
            if len(samples) < SAMPLES:
                cut = " .." if len(ids) > SAMPLE_TOKENS else ""
                samples.append((row.where, tokenizer.decode(ids[:SAMPLE_TOKENS]) + cut))
    reading.check(names)
    of_rows = np.array(lengths)
    tokens = int(of_rows.sum())
    return Look(
        files=list(map(str, files)),
        reading=reading,
        turns=dict(turns),
        tokens=tokens,
        median=int(np.median(of_rows)),
        longest=int(of_rows.max()),
        block_size=block_size,
        blocks=(tokens + len(of_rows)) // block_size,  # a token stands between documents
        fitting=int((of_rows <= block_size).sum()),
        within=float(np.minimum(of_rows, block_size).sum() / max(tokens, 1)),
        samples=samples,
        markers_added=lacks_template and bool(turns),
    )
