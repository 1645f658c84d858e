"""How much more often adjacent tokens occur together than their own frequencies foretell: the mask M.

The paper's co-occurrence mask (arXiv 2405.00888): M(x_1 .. x_m) = p(x_1 .. x_m) / (p(x_1) .. p(x_m)),
counted over the training text, 0 for a tuple that never occurs. The table keeps integer counts, so M is
exact, and keeps them as a trie: the tuples of order m are the sorted children of those of order m - 1, and a
tuple's position in its order is the handle to its own children. Finding those of a grid is then a gather.

It refuses to know tokenizers, models, thresholds and mask strengths: ids in, ratios out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

FORMAT, VERSION = "dynamo-cooccurrence", "1"
CHUNK_TOKENS = 2**21
KEY_BITS = 63  # a tuple is counted as one int64
MAX_VOCAB = 2**24
PADDING = 0.02  # by which a model's vocabulary may exceed its tokenizer's
BITMAP_BYTES = 32 * 2**20  # enough for vocabularies of up to 13,000
SEARCH_COST = 32  # looking up one cell of a grid takes as long as reading this many children
ONE = np.uint64(1)

Cells = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, rank in the head, position in the level; row-major


class CooccurrenceTable:
    """Counts of adjacent token tuples of orders 2 .. `order`, and their ratios M.

    Made by `count` or `load`. unigrams: (vocab,) counts of single tokens; levels: one per order from 2 on;
    min_count: tuples seen less often were dropped, in every order (single tokens never are); vocab_inferred:
    the vocabulary ends at the largest id seen; source: what was counted, free text; tokenizer: its
    fingerprint, "" where none was given. Nothing changes after that, so threads may share a table.
    """

    def __init__(
        self,
        unigrams: np.ndarray,
        levels: Sequence[Level],
        min_count: int = 1,
        vocab_inferred: bool = False,
        source: str = "",
        tokenizer: str = "",
    ):
        self.unigrams = unigrams
        self.levels = tuple(levels)
        self.min_count = min_count
        self.vocab_inferred = vocab_inferred
        self.source = source
        self.tokenizer = tokenizer
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
        """By order, how many tuples the stream has, dropped ones included."""
        return {m: level.total for m, level in enumerate(self.levels, start=2)}

    @property
    def sizes(self) -> dict[int, int]:
        """By order, how many distinct tuples the table has."""
        return {m: len(level.last) for m, level in enumerate(self.levels, start=2)}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{m}: {size:,}" for m, size in self.sizes.items())
        return (
            f"CooccurrenceTable(order={self.order}, vocab_size={self.vocab_size}, sizes={{{sizes}}}, "
            f"total_tokens={self.total_tokens:,}, min_count={self.min_count}, source={self.source!r})"
        )

    # -- asking

    def tuples(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Every tuple of an order, sorted, and its count: ids (n, order) int64, counts (n,) int64."""
        self._need_order(order)
        ids = np.arange(self.vocab_size)[:, None]
        for level in self.levels[: order - 1]:
            ids = np.column_stack([ids.repeat(level.fans, axis=0), level.last])
        return ids.astype(np.int64), self.levels[order - 2].counts.astype(np.int64)

    def ratio(self, ids: Any) -> Any:
        """M of tuples: integers (..., m), 2 <= m <= order, to float64 (...,); 0 where not in the table.

        A tensor gives a tensor on its device, anything else a numpy array. An id outside the vocabulary is a
        token never seen. Raises ValueError for other orders and for ids that are not integers.
        """
        if _is_tensor(ids):
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

    def log_ratio(self, ids: Any) -> Any:
        """log M, as `ratio`; -inf where not in the table."""
        ratio = self.ratio(ids)
        with np.errstate(divide="ignore"):
            return ratio.log() if _is_tensor(ratio) else np.log(ratio)

    def candidates(self, heads: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Every tuple of the grid heads[0] x .. x heads[m - 1] that is in the table, and its ratio M.

        heads: m integer arrays (k_i,), distinct within a head, 2 <= m <= order. Returns ranks (cells, m)
        intp, positions in the heads, row-major, each column contiguous; and ratios (cells,) float64.
        """
        self._need_order(len(heads))
        heads = [np.asarray(head, dtype=np.int64) for head in heads]
        if np.concatenate(heads).view(np.uint64).max(initial=0) >= self.vocab_size:
            return self._candidates_of_known(heads)
        row, rank, positions = (self._bitmap or self.levels[0]).extend(heads[0], heads[1])
        ranks = [row, rank]
        for level, head in zip(self.levels[1:], heads[2:], strict=False):
            row, rank, positions = level.extend(positions, head)
            ranks = [*(earlier.take(row) for earlier in ranks), rank]
        return np.array(ranks, dtype=np.intp).T, self._ratios[len(heads) - 2].take(positions)

    def _candidates_of_known(self, heads: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """`candidates` where the model's vocabulary is the larger one: padded, or not all of it seen."""
        known = [np.flatnonzero((head >= 0) & (head < self.vocab_size)) for head in heads]
        ranks, ratios = self.candidates([head[kept] for head, kept in zip(heads, known, strict=True)])
        return np.array([kept[rank] for kept, rank in zip(known, ranks.T, strict=True)]).T, ratios

    def check(self, vocab_size: int | None = None, order: int | None = None, tokenizer: str = "") -> None:
        """Raise ValueError unless the table serves such a vocabulary, tuples of `order`, and that tokenizer.

        A model's vocabulary may exceed the table's by 2 % of padding (the Pythia suite pads one tokenizer to
        50,304 .. 50,688), and by any number where `count` was not told the vocabulary.
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
                f"table holds tuples of up to {self.order} tokens, order {order} was asked: set max_order to "
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
    def _bitmap(self) -> PairBitmap | None:
        fits = PairBitmap.bytes_for(self.vocab_size) <= BITMAP_BYTES
        return PairBitmap.of(self.levels[0]) if fits else None

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

        blocks: 1-D integer arrays, lists or tensors, each one document; no tuple crosses to the next.
        min_count: drop rarer tuples, of every order. vocab_size: ids are below it; None: the largest id + 1.
        progress: show a bar. The stream is read once, `chunk_tokens` at a time; memory is bounded by a chunk
        (some 80 bytes a token) and the distinct tuples (16 bytes each, up to five times that in a merge).
        Raises ValueError for an empty stream, ids outside the vocabulary, and ids whose tuples do not fit 63
        bits (2,097,152 ids fit at order 3; 55,108 at order 4).
        """
        if order < 2 or min_count < 1:
            raise ValueError(f"order must be at least 2, min_count at least 1, got {order} and {min_count}")
        base = _largest_vocab(order)
        if vocab_size is not None and vocab_size > base:
            raise ValueError(_too_large(f"a vocabulary of {vocab_size}", order))
        unigrams = np.zeros(vocab_size or 0, np.int64)
        runs = [_SortedCounts() for _ in range(2, order + 1)]
        with tqdm(desc="counting", unit=" tokens", unit_scale=True, disable=not progress) as bar:
            for tokens, room in _chunks(blocks, order, chunk_tokens):
                _check_ids(tokens, vocab_size, order)
                singles = np.bincount(tokens[room > 0], minlength=len(unigrams))
                singles[: len(unigrams)] += unigrams
                unigrams, keys = singles, tokens
                for m, run in enumerate(runs, start=2):
                    keys = keys[:-1] * base + tokens[m - 1 :]
                    run.add(keys[room[: len(keys)] >= m])
                bar.update(np.count_nonzero(room))
        levels = _levels(runs, min_count, len(unigrams), base)
        return cls(unigrams, levels, min_count, vocab_size is None, source, tokenizer)

    # -- keeping

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file; whoever reads meanwhile sees the old file or the new, never a part."""
        path = Path(path)
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "order": self.order,
            "min_count": self.min_count,
            "vocab_size": self.vocab_size,
            "vocab_inferred": int(self.vocab_inferred),
            "total_tokens": self.total_tokens,
            "totals": json.dumps(list(self.totals.values())),
            "tokenizer": self.tokenizer,
            "source": self.source,
        }
        arrays = {"unigrams": _smallest(self.unigrams)}
        for m, level in enumerate(self.levels, start=2):
            arrays |= _packed(f"fans.{m}", level.fans) | _packed(f"counts.{m}", level.counts)
            arrays[f"last.{m}"] = level.last
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(arrays, part, metadata={key: str(value) for key, value in metadata.items()})
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> CooccurrenceTable:
        """Read what `save` wrote. Raises ValueError for a file that is not a whole, consistent table."""
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                return cls._from_arrays(arrays, file.metadata() or {})
        except (SafetensorError, KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path} is no usable co-occurrence table ({reason}): count it again: python -m dynamo count"
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> CooccurrenceTable:
        found = f"{metadata.get('format', 'unknown')} version {metadata.get('version', 'unknown')}"
        _require(found == f"{FORMAT} version {VERSION}", f"it is {found}, not {FORMAT} version {VERSION}")
        vocab_size, min_count = int(metadata["vocab_size"]), int(metadata["min_count"])
        unigrams, totals = arrays["unigrams"].astype(np.int64), json.loads(metadata["totals"])
        _require(unigrams.shape == (vocab_size,), f"{len(unigrams)} token counts, vocabulary {vocab_size}")
        _require(unigrams.sum() == int(metadata["total_tokens"]), "token counts do not add up to the total")
        _require(
            len(totals) + 1 == int(metadata["order"]), f"{len(totals)} levels, order {metadata['order']}"
        )
        levels, parents = [], vocab_size
        for m, total in enumerate(totals, start=2):
            fans, counts = _unpacked(f"fans.{m}", arrays), _unpacked(f"counts.{m}", arrays)
            level = Level(_starts(fans), arrays[f"last.{m}"], _smallest(counts), total, vocab_size)
            level.validate(parents, min_count)
            levels.append(level)
            parents = len(counts)
        inferred = metadata["vocab_inferred"] == "1"
        return cls(unigrams, levels, min_count, inferred, metadata["source"], metadata["tokenizer"])


@dataclass(frozen=True, eq=False)
class Level:
    """The tuples of one order, sorted: each is a child of the tuple one token shorter that it begins with.

    starts: (parents + 1,) int64, where a parent's children begin; last: (tuples,) their last tokens,
    ascending within a parent; counts: (tuples,); total: tuples in the stream, dropped ones included.
    """

    starts: np.ndarray
    last: np.ndarray
    counts: np.ndarray
    total: int
    vocab_size: int

    @property
    def fans(self) -> np.ndarray:
        """(parents,) how many children each parent has."""
        return np.diff(self.starts)

    def find(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Positions (n,) of the children `tokens` of `parents`; -1 for no such child, or a parent of -1."""
        if len(self.last) == 0:
            return np.full(len(parents), -1)
        low = self.starts.take(parents, mode="clip")
        end = high = self.starts.take(parents + 1)  # a parent of -1 has the empty range from 0 to 0
        for _ in range(int((end - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            smaller = self.last.take(middle, mode="clip") < tokens
            low, high = np.where(smaller, middle + 1, low), np.where(smaller, high, middle)
        found = (low < end) & (self.last.take(low, mode="clip") == tokens)
        return np.where(found, low, -1)

    def extend(self, parents: np.ndarray, head: np.ndarray) -> Cells:
        """The cells of the grid parents (n,) x head (k,) that are tuples of this level."""
        starts = self.starts.take(parents)
        fans = self.starts.take(parents + 1) - starts
        ends = fans.cumsum()
        if len(parents) and ends[-1] > SEARCH_COST * len(parents) * len(head):
            return self._search(parents, head)
        rank_of = np.full(self.vocab_size, -1, np.min_scalar_type(-len(head) - 1))
        rank_of[head] = np.arange(len(head))
        children = (starts - ends + fans).repeat(fans)
        children += np.arange(len(children))
        rank = rank_of.take(self.last.take(children))
        kept = (rank >= 0).nonzero()[0]
        rank, row = rank.take(kept), np.arange(len(parents)).repeat(fans).take(kept)
        # A parent's children stand by token id. Numpy's stable sort is a radix sort for up to 16 bits, and
        # those suffice for the usual grid.
        cells = row * len(head) + rank
        by_rank = cells.astype(np.min_scalar_type(len(parents) * len(head))).argsort(kind="stable")
        return row.take(by_rank), rank.take(by_rank), children.take(kept.take(by_rank))

    def _search(self, parents: np.ndarray, head: np.ndarray) -> Cells:
        positions = self.find(parents.repeat(len(head)), np.tile(head, len(parents)))
        cells = (positions >= 0).nonzero()[0]
        return *np.divmod(cells, len(head)), positions.take(cells)

    def validate(self, parents: int, min_count: int) -> None:
        """Raise ValueError where this cannot be the level under that many parents."""
        size, counted = len(self.last), int(self.counts.sum(dtype=np.int64))
        _require(len(self.starts) == parents + 1, f"children of {len(self.starts) - 1} tuples, not {parents}")
        _require(self.starts[-1] == size == len(self.counts), f"{self.starts[-1]} children, {size} tokens")
        largest = int(self.last.max(initial=0))
        _require(self.last.dtype.kind == "u" and largest < self.vocab_size, f"a token id of {largest}")
        begins = np.zeros(size + 1, bool)
        begins[self.starts] = True
        _require((begins[1:-1] | (self.last[1:] > self.last[:-1])).all(), "tuples out of order")
        _require(self.counts.min(initial=min_count) >= min_count, f"a count below {min_count}")
        complete = counted == self.total if min_count == 1 else counted <= self.total
        _require(complete, f"counts of {counted} tuples, not {self.total}")


@dataclass(frozen=True, eq=False)
class PairBitmap:
    """A bit for every pair of a small vocabulary: a grid of pairs is found without reading any children.

    words: (vocab * width,) uint64, a bit for each of 64 second tokens; before: (vocab * width,) pairs ahead
    of the word. A pair's position in its level is the number of bits set before its own.
    """

    width: int
    words: np.ndarray
    before: np.ndarray

    @staticmethod
    def bytes_for(vocab_size: int) -> int:
        return vocab_size * (vocab_size // 64 + 1) * (8 + 4)

    @classmethod
    def of(cls, pairs: Level) -> PairBitmap:
        width = pairs.vocab_size // 64 + 1
        first, second = np.arange(pairs.vocab_size).repeat(pairs.fans), pairs.last.astype(np.int64)
        words = np.zeros(pairs.vocab_size * width, np.uint64)
        np.bitwise_or.at(words, first * width + (second >> 6), _bit(second))
        through = np.bitwise_count(words).cumsum(dtype=np.int32)
        return cls(width, words, np.append(np.int32(0), through[:-1]))

    def extend(self, first: np.ndarray, second: np.ndarray) -> Cells:
        """The cells of the grid first (k_1,) x second (k_2,) that are pairs."""
        at, bits = (first * self.width)[:, None] + (second >> 6), _bit(second)  # (k_1, k_2), (k_2,)
        words = self.words.take(at)
        cells = ((words & bits) != 0).ravel().nonzero()[0]
        row = cells // max(len(second), 1)
        rank = cells - row * len(second)
        earlier = words.take(cells) & (bits - ONE).take(rank)
        return row, rank, self.before.take(at.take(cells)) + np.bitwise_count(earlier)


def _bit(ids: np.ndarray) -> np.ndarray:
    return ONE << (ids & 63).astype(np.uint64)


# -- counting


class _SortedCounts:
    """How often each key of a stream occurs, as sorted runs each at most half as long as the one before it.

    So few runs are kept, and a key is merged only a logarithmic number of times.
    """

    def __init__(self):
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []
        self.total = 0

    def add(self, keys: np.ndarray) -> None:
        self.total += len(keys)
        self.runs.append(_sum_equal(np.sort(keys), np.ones(len(keys), np.int64)))
        while len(self.runs) > 1 and 2 * len(self.runs[-1][0]) > len(self.runs[-2][0]):
            self._merge_last_two()

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, sorted, and their counts."""
        while len(self.runs) > 1:
            self._merge_last_two()
        return self.runs[0] if self.runs else (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _merge_last_two(self) -> None:
        keys, counts = map(np.concatenate, zip(self.runs.pop(), self.runs.pop(), strict=True))
        order = keys.argsort(kind="stable")  # linear: the two halves are sorted
        self.runs.append(_sum_equal(keys[order], counts[order]))


def _sum_equal(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(keys) == 0:
        return keys, counts
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(counts, first)


def _chunks(blocks: Iterable[Any], order: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens, and at each the room (how long a tuple may begin there); `size` to twice `size` at a time.

    A block longer than `size` is cut. Each piece is followed by the `order - 1` tokens that its last tuples
    reach into; they have no room themselves, since the next piece begins with them.
    """
    tokens, room, held = [], [], 0
    for block in blocks:
        ids = _token_ids(block)
        for begin in range(0, len(ids), size):
            piece = ids[begin : begin + size + order - 1].astype(np.int64)
            reach = np.arange(len(piece), 0, -1)
            reach[size:] = 0
            tokens.append(piece)
            room.append(reach)
            held += len(piece)
            if held >= size:
                yield np.concatenate(tokens), np.concatenate(room)
                tokens, room, held = [], [], 0
    if held:
        yield np.concatenate(tokens), np.concatenate(room)


def _token_ids(block: Any) -> np.ndarray:
    ids = np.asarray(block.cpu() if _is_tensor(block) else block)
    if ids.ndim == 1 and len(ids) == 0:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"each block must be 1-D integer token ids, got {ids.dtype} of shape {ids.shape}")
    return ids


def _levels(runs: list[_SortedCounts], min_count: int, vocab_size: int, base: int) -> list[Level]:
    levels, parents = [], np.arange(vocab_size)
    for run in runs:
        keys, counts = run.merged()
        kept = counts >= min_count
        keys, counts = keys[kept], counts[kept]
        leading, last = np.divmod(keys, base)
        parent = parents.searchsorted(leading)
        # Wherever a tuple occurs, so does what it begins with: at least as frequent, it was kept too.
        assert np.array_equal(parents.take(parent), leading), "a tuple was kept without what it begins with"
        starts = _starts(np.bincount(parent, minlength=len(parents)))
        last = last.astype(np.min_scalar_type(vocab_size))
        levels.append(Level(starts, last, _smallest(counts), run.total, vocab_size))
        parents = keys
    return levels


def _starts(fans: np.ndarray) -> np.ndarray:
    return np.append(0, fans.cumsum(dtype=np.int64))


def _largest_vocab(order: int) -> int:
    """The largest base whose numbers of `order` digits fit a key."""
    root = round(2 ** (KEY_BITS / order))
    return min(root - (root**order > 2**KEY_BITS), MAX_VOCAB)


def _check_ids(tokens: np.ndarray, vocab_size: int | None, order: int) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0:
        raise ValueError(f"token ids must not be negative, got {low}: leave padding and masked labels out")
    if vocab_size is not None and high >= vocab_size:
        raise ValueError(
            f"token ids must be below vocab_size {vocab_size}, got {high}: is it this tokenizer's?"
        )
    if high >= _largest_vocab(order):
        raise ValueError(_too_large(f"token id {high}", order))


def _too_large(what: str, order: int) -> str:
    return (
        f"{what} is too large for order {order}: a tuple is packed into {KEY_BITS} bits, so ids must be "
        f"below {_largest_vocab(order)}: count a lower order"
    )


def _smallest(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(counts.max(initial=0)))


def _packed(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Mostly small numbers, a byte each: one that does not fit is 255 there and whole in a second array."""
    large = values >= 255
    return {name: np.where(large, 255, values).astype(np.uint8), f"{name}.large": _smallest(values[large])}


def _unpacked(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    values, large = arrays[name].astype(np.int64), arrays[f"{name}.large"]
    escaped = values == 255
    _require(np.count_nonzero(escaped) == len(large), f"{name} and its large values do not match")
    values[escaped] = large
    return values


def _require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where torch was never imported nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)
