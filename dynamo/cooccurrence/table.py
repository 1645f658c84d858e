"""The co-occurrence mask M: how much more often adjacent tokens occur together than by chance.

The paper's co-occurrence mask (arXiv 2405.00888): M(x_1 .. x_m) = p(x_1 .. x_m) / (p(x_1) .. p(x_m)),
counted over the training text, 0 for a tuple that never occurs. The table keeps integer counts, so M is
exact, and keeps them as a trie (`dynamo.cooccurrence.trie`).

It knows no tokenizers, models, thresholds or mask strengths: ids in, ratios out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynamo.cooccurrence.counting import count_tuples
from dynamo.cooccurrence.smoothing import SmoothedCounts, Smoothing, fit
from dynamo.cooccurrence.table_file import Counted, read_table, write_table
from dynamo.cooccurrence.trie import Level, is_tensor, nodes_of, side_by_side

CHUNK_TOKENS = 2**21
PADDING = 0.02  # by which a model's vocabulary may exceed its tokenizer's


class CooccurrenceTable:
    """Counts of adjacent token tuples of orders 2 .. `order`, and their ratios M.

    Made by `count` or `load`. unigrams: (vocab,) counts of single tokens; levels: one per order from 2 on;
    min_count: tuples seen less often were dropped, in every order (single tokens never are); vocab_inferred:
    the vocabulary ends at the largest id seen; source: what was counted, free text; tokenizer: its
    fingerprint, "" where none was given; smoothing: how `smoothed` smooths, usual values where nothing was
    fitted. Nothing changes after that, so threads may share a table.
    """

    def __init__(
        self,
        unigrams: np.ndarray,
        levels: Sequence[Level],
        min_count: int = 1,
        vocab_inferred: bool = False,
        source: str = "",
        tokenizer: str = "",
        smoothing: Smoothing | None = None,
    ):
        self.unigrams = unigrams
        self.levels = tuple(levels)
        self.min_count = min_count
        self.vocab_inferred = vocab_inferred
        self.source = source
        self.tokenizer = tokenizer
        self.smoothing = smoothing
        self.total_tokens = int(unigrams.sum())
        if self.total_tokens == 0:
            raise ValueError("no tokens were counted: blocks must yield some (was a generator read before?)")

    @property
    def order(self) -> int:
        return len(self.levels) + 1

    @property
    def vocab_size(self) -> int:
        return len(self.unigrams)

    @property
    def totals(self) -> dict[int, int]:
        """Tuples in the stream by order, dropped ones included."""
        return {m: level.total for m, level in enumerate(self.levels, start=2)}

    @property
    def sizes(self) -> dict[int, int]:
        """Distinct tuples in the table by order."""
        return {m: len(level.last) for m, level in enumerate(self.levels, start=2)}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{m}: {size:,}" for m, size in self.sizes.items())
        return (
            f"CooccurrenceTable(order={self.order}, vocab_size={self.vocab_size}, sizes={{{sizes}}}, "
            f"total_tokens={self.total_tokens:,}, min_count={self.min_count}, source={self.source!r})"
        )

    # -- lookup

    def tuples(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Every tuple of an order, sorted, and its count: ids (n, order) int64, counts (n,) int64."""
        self._need_order(order)
        ids = np.arange(self.vocab_size)[:, None]
        for level in self.levels[: order - 1]:
            ids = np.column_stack([ids.repeat(level.fans, axis=0), level.last])
        return ids.astype(np.int64), self.levels[order - 2].counts.astype(np.int64)

    def ratio(self, ids: Any) -> Any:
        """M of tuples: integers (..., m), 2 <= m <= order, to float64 (...,); 0 where not in the table.

        A tensor gives a tensor on its device, anything else a numpy array. Ids outside the vocabulary
        count as never seen. Raises ValueError for other orders and for ids that are not integers.
        """
        if is_tensor(ids):
            return sys.modules["torch"].as_tensor(self.ratio(ids.cpu().numpy()), device=ids.device)
        ids = np.asarray(ids)
        if ids.ndim == 0 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers of shape (..., m), got {ids.dtype} of shape {ids.shape}")
        self._need_order(ids.shape[-1])
        columns = ids.reshape(-1, ids.shape[-1]).T.astype(np.int64)  # (m, tuples)
        positions = np.where((columns[0] >= 0) & (columns[0] < self.vocab_size), columns[0], -1)
        for level, tokens in zip(self.levels, columns[1:], strict=False):
            positions = level.find(positions, tokens)
        seen = positions >= 0
        ratio = np.zeros(len(positions))
        ratio[seen] = self._ratios[len(columns) - 2][positions[seen]]
        return ratio.reshape(ids.shape[:-1])

    def candidates(self, heads: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Every tuple of the grid heads[0] x .. x heads[m - 1] that is in the table, and its ratio M.

        heads: m integer arrays (k_i,), distinct within a head, 2 <= m <= order. Returns ranks (cells, m)
        intp, positions in the heads, row-major, each column contiguous; and ratios (cells,) float64.
        """
        self._need_order(len(heads))
        heads = [np.asarray(head, dtype=np.int64) for head in heads]
        # The model's vocabulary may exceed the table's: padding, or tokens that were never seen.
        known = [np.flatnonzero((head >= 0) & (head < self.vocab_size)) for head in heads]
        columns, positions = [known[0]], heads[0][known[0]]
        for level, head, kept in zip(self.levels, heads[1:], known[1:], strict=False):
            row, rank, positions = level.extend(positions, head[kept])
            columns = [*(earlier[row] for earlier in columns), kept[rank]]
        ranks = np.array(columns)
        by_rank = np.lexsort(ranks[::-1])
        return ranks.take(by_rank, axis=1).T, self._ratios[len(heads) - 2][positions[by_rank]]

    def trie(self, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The trie for compiled loops: first, last and counts as in `trie.nodes_of`, and rarity (vocab,),
        total tokens over each token's own count.

        M of a tuple is its count times its tokens' rarity, over the number of tuples of its order. Raises
        ValueError for an order that the table does not hold.
        """
        self._need_order(order)
        return self._trie

    @cached_property
    def smoothed(self) -> SmoothedCounts:
        """The counts with shorter contexts filling in for missing evidence (ours, not the paper's)."""
        return SmoothedCounts(self.unigrams, self.levels, self.smoothing or Smoothing.default(self.order))

    def fitted(self, blocks: Iterable[Any]) -> CooccurrenceTable:
        """The same counts, smoothed as held-out blocks (documents of token ids) are likeliest.

        Raises ValueError where the blocks hold no tuple of some order, or ids outside the vocabulary.
        """
        smoothing = fit(self.unigrams, self.levels, blocks)
        return CooccurrenceTable(*self._counted()._replace(smoothing=smoothing))

    def _counted(self) -> Counted:
        return Counted(*(getattr(self, name) for name in Counted._fields))

    def check(self, vocab_size: int | None = None, order: int | None = None, tokenizer: str = "") -> None:
        """Raise ValueError unless the table fits the vocabulary size, the order and the tokenizer.

        A model's vocabulary may exceed the table's by 2 % of padding (the Pythia suite pads one tokenizer to
        50,304 .. 50,688), and by any number if `count` was not given `vocab_size`.
        """
        remedy = "count a table with this model's tokenizer: python -m dynamo count"
        if vocab_size is not None:
            allowed = vocab_size if self.vocab_inferred else self.vocab_size * (1 + PADDING)
            if not self.vocab_size <= vocab_size <= allowed:
                raise ValueError(
                    f"table counts a vocabulary of {self.vocab_size}, the model has {vocab_size}: {remedy}"
                )
        if tokenizer and self.tokenizer and tokenizer != self.tokenizer:
            raise ValueError(f"table counts tokens of {self.tokenizer}, the model has {tokenizer}: {remedy}")
        if order is not None and order > self.order:
            raise ValueError(
                f"table holds tuples of up to {self.order} tokens, got order {order}: set max_order to "
                f"{self.order} or less, or count a table of order {order}: python -m dynamo count"
            )

    def _need_order(self, order: int) -> None:
        if not 2 <= order <= self.order:
            raise ValueError(f"table holds tuples of 2 to {self.order} tokens, got tuples of {order}")

    @cached_property
    def _ratios(self) -> tuple[np.ndarray, ...]:
        """M of every tuple, by order, as `tuples` lists them."""
        p = self.unigrams / self.total_tokens
        independent, ratios = p, []
        for level in self.levels:
            independent = independent.repeat(level.fans) * p[level.last]
            ratios.append(level.counts / max(level.total, 1) / independent)
        return tuple(ratios)

    @cached_property
    def _trie(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        # A token that was never counted is in no tuple, so its rarity is never used.
        rarity = self.total_tokens / np.maximum(self.unigrams, 1)
        return side_by_side([*nodes_of(self.levels), rarity])

    # -- counting

    @classmethod
    def count(
        cls,
        blocks: Iterable[Any],
        order: int = 3,
        min_count: int = 1,
        vocab_size: int | None = None,
        progress: bool = False,
        *,
        source: str = "",
        tokenizer: str = "",
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> CooccurrenceTable:
        """Count the adjacent tuples of orders 2 .. `order` in a stream of token blocks.

        blocks: 1-D integer arrays, lists or tensors, each one document; no tuple spans two of them.
        min_count: drop rarer tuples, of every order. vocab_size: ids are below it; None: the largest id + 1.
        progress: show a bar. The stream is read once, `chunk_tokens` at a time; memory is bounded by a chunk
        (about 80 bytes a token) and the distinct tuples (16 bytes each, up to five times that in a merge).
        Raises ValueError for an empty stream, ids outside the vocabulary, and ids whose tuples do not fit 63
        bits (2,097,152 ids fit at order 3; 55,108 at order 4).
        """
        if order < 2 or min_count < 1:
            raise ValueError(f"order must be at least 2, min_count at least 1, got {order} and {min_count}")
        unigrams, levels = count_tuples(blocks, order, min_count, vocab_size, progress, chunk_tokens)
        return cls(unigrams, levels, min_count, vocab_size is None, source, tokenizer)

    # -- files

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file atomically: readers see the old file or the new, never a part."""
        write_table(self._counted(), Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike) -> CooccurrenceTable:
        """Read what `save` wrote. Raises ValueError for a file that is not a complete, consistent table."""
        return cls(*read_table(Path(path)))
