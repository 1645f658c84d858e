"""Documents as training blocks: an endless sequence in which every block is a function of its number.

The documents of an epoch are laid end to end, each followed by the end-of-text token, in an order that is a
function of (seed, epoch) alone, and cut into blocks of one length. So a killed run resumes at the very token
where it stopped without any sampler state, and every process of a run finds its own blocks. Only the
documents' lengths are held in memory; documents may come from memory or disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np


class Corpus(Protocol):
    """lengths: (documents,) int64; crc: checksum of all ids, in order."""

    lengths: np.ndarray
    crc: int

    def __getitem__(self, index: int) -> np.ndarray: ...


class Documents:
    """A corpus in memory."""

    def __init__(self, documents: Sequence[np.ndarray]):
        self._documents = documents
        self.lengths = np.fromiter(map(len, documents), np.int64, len(documents))

    @cached_property
    def crc(self) -> int:
        crc = 0
        for document in self._documents:
            crc = zlib.crc32(np.asarray(document, dtype=np.int32).tobytes(), crc)
        return crc

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


class TokenBlocks:
    """An endless, seekable sequence of blocks (block_size,) of documents, reshuffled every epoch."""

    def __init__(
        self,
        documents: Corpus | Sequence[np.ndarray],
        separator: int,
        block_size: int = 512,
        seed: int = 0,
    ):
        self._documents = documents if hasattr(documents, "lengths") else Documents(documents)
        if block_size < 2:
            raise ValueError(f"block_size: expected 2 or more tokens, got {block_size}")
        self._separator = separator
        self._seed = seed
        self.block_size = block_size
        self.tokens_per_epoch = int(self._documents.lengths.sum()) + len(self._documents.lengths)
        self.blocks_per_epoch = self.tokens_per_epoch // block_size
        if self.blocks_per_epoch == 0:
            raise ValueError(
                f"block_size: {block_size} is longer than all {self.tokens_per_epoch} tokens of the data; "
                "use a smaller block_size or more data"
            )
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def fingerprint(self) -> str:
        """A hash of the sequence: of block size, seed, separator and documents."""
        shape = (self.block_size, self._seed, self._separator, self._documents.crc)
        lengths = np.ascontiguousarray(self._documents.lengths, dtype=np.int64)
        return f"{zlib.crc32(lengths.tobytes(), zlib.crc32(repr(shape).encode())):08x}"

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks start .. start + count of the sequence, as ids and labels: (count, block_size) int64 each,
        and equal, as every token is a target."""
        ids = np.stack([self._block(index) for index in range(start, start + count)])
        return ids, ids

    def _block(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.blocks_per_epoch)
        order, ends = self._order(epoch)
        begin = position * self.block_size
        number = int(ends.searchsorted(begin, side="right"))
        skipped = begin - int(ends[number - 1]) if number else begin
        block = np.full(self.block_size, self._separator, np.int64)
        filled = 0
        while filled < self.block_size:
            ids = self._documents[order[number]][skipped : skipped + self.block_size - filled]
            block[filled : filled + len(ids)] = ids
            # After a document one place is left for the separator, which is there already.
            filled += len(ids) + (skipped + len(ids) == self._documents.lengths[order[number]])
            number, skipped = number + 1, 0
        return block

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of documents, and where each ends, separator included: (documents,) each."""
        if self._epoch is None or self._epoch[0] != epoch:
            lengths = self._documents.lengths
            order = np.random.default_rng((self._seed, epoch)).permutation(len(lengths))
            self._epoch = epoch, order, np.cumsum(lengths[order] + 1)
        return self._epoch[1:]
