"""Corpora larger than memory: data files are tokenised once, and read from disk block by block.

Each data file becomes a flat file of ids and an array of document lengths in a folder; several processes
tokenise several files at once. Finished files are kept, so a killed run continues with the next one, and
training and counting share one folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dynamo.common.distributed import process_pool
from dynamo.common.files import replace_text
from dynamo.data import text
from dynamo.data.documents import encode_rows, fitted
from dynamo.data.reading import Reading
from dynamo.data.rows import rows

ROWS_AT_A_TIME = 512
ROWS_VERSION = 2  # to be raised when rows come to be understood differently, as files of ids are kept


@dataclass(frozen=True)
class TokenFile:
    """One data file's ids at `ids` (raw, of `dtype`) and its documents' lengths at `lengths`; reading: what
    became of its rows."""

    source: str
    ids: str
    lengths: str
    dtype: str
    documents: int
    tokens: int
    crc: int
    reading: dict[str, Any] = field(default_factory=dict)

    def read_ids(self) -> np.ndarray:
        """(tokens,), memory-mapped."""
        if self.tokens == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.ids, dtype=self.dtype, mode="r", shape=(self.tokens,))

    def read_documents(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The ids of its documents first .. last, in order."""
        ids, lengths = self.read_ids(), np.load(self.lengths)
        stop = int(lengths[:first].sum())
        for length in lengths[first:last].tolist():
            start, stop = stop, stop + length
            yield ids[start:stop]


class DiskCorpus:
    """The documents of token files, one after the other, as `dynamo.data.blocks.Corpus` wants them."""

    def __init__(self, files: Sequence[TokenFile]):
        self._files = list(files)
        self.lengths = np.concatenate([np.load(file.lengths) for file in self._files])
        self.crc = zlib.crc32(repr([(file.tokens, file.crc) for file in self._files]).encode())
        self._first = np.cumsum([0, *(file.documents for file in self._files)])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._maps = [file.read_ids() for file in self._files]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def __getitem__(self, index: int) -> np.ndarray:
        file = int(self._first.searchsorted(index, side="right")) - 1
        start = int(self._starts[index] - self._starts[self._first[file]])
        return self._maps[file][start : start + int(self.lengths[index])]


def tokenise(
    files: Sequence[Path],
    tokenizer: Any,
    folder: Path,
    workers: int = 1,
    progress: bool = False,
    reading: Reading | None = None,
) -> list[TokenFile]:
    """Every file as token documents in `folder`; those that exist already are reused.

    reading: counts what became of the rows. Raises ValueError for a file that cannot be read, naming the
    place, for one of which no row can be used, and if there is no document at all.
    """
    reading = reading or Reading()
    if workers < 1:
        raise ValueError(f"workers: expected 1 or more processes, got {workers}")
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_token_file, tokenizer=tokenizer, folder=folder, strict=reading.strict)
    if workers == 1 or len(files) == 1:
        made = list(map(make, tqdm(files, desc="tokenising", unit="file", disable=not progress)))
    else:
        # Not forked: the tokenizer library's threads would not survive it.
        with process_pool(min(workers, len(files)), "spawn") as pool:
            results = pool.map(make, files)
            made = list(tqdm(results, desc="tokenising", unit="file", total=len(files), disable=not progress))
    for file in made:
        reading.add(Reading.from_json(file.reading))
    reading.check(files)
    return made


def _token_file(source: Path, tokenizer: Any, folder: Path, strict: bool) -> TokenFile:
    state = source.stat()
    written_by = text.fingerprint(tokenizer), tokenizer.chat_template, ROWS_VERSION
    identity = (source.name, state.st_size, state.st_mtime_ns, *written_by)
    name = f"{source.name.split('.')[0]}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"
    metadata = folder / f"{name}.json"
    if metadata.is_file():
        fields = json.loads(metadata.read_text(encoding="utf-8"))
        return TokenFile(**fields | _places(folder, name))
    file = _write_ids(source, tokenizer, folder, name, Reading(strict))
    # Written last: if it exists, the two others are complete.
    replace_text(metadata, json.dumps(asdict(file)))
    return file


def _places(folder: Path, name: str) -> dict[str, str]:
    return {"ids": str(folder / f"{name}.ids"), "lengths": str(folder / f"{name}.lengths.npy")}


def _write_ids(source: Path, tokenizer: Any, folder: Path, name: str, reading: Reading) -> TokenFile:
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    places = _places(folder, name)
    part = folder / f"{name}.{os.getpid()}.part"
    lengths: list[int] = []
    crc = 0
    try:
        with open(part, "wb") as out:
            found = fitted(rows(source, reading), tokenizer, reading)
            while batch := list(itertools.islice(found, ROWS_AT_A_TIME)):
                for document in encode_rows([row.content for row in batch], tokenizer):
                    written = document.astype(dtype).tobytes()
                    crc = zlib.crc32(written, crc)
                    out.write(written)
                    lengths.append(len(document))
        os.replace(part, places["ids"])
    finally:
        part.unlink(missing_ok=True)
    np.save(places["lengths"], np.array(lengths, np.int64))
    return TokenFile(str(source), **places, dtype=dtype.name, documents=len(lengths),
                     tokens=sum(lengths), crc=crc, reading=reading.to_json())  # fmt: skip
