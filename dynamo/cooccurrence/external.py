"""Counting token tuples of corpora larger than memory: sorted runs on disk, merged a range of keys at a time.

Slices of the token files are counted by several processes, each writing its tuples sorted and summed. Then
the keys are divided into ranges, so that the entries of all runs in one range fit in memory, and the ranges
are merged, again by several processes. Rare tuples are dropped there, so only the table itself is ever held
in memory at once. The counts equal those of `dynamo.cooccurrence.counting`. Intermediate results stay on
disk, so a killed run goes on with the next slice, or the next range.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dynamo.common.distributed import process_pool
from dynamo.cooccurrence.counting import check_ids, chunks, largest_vocab, levels_of, sum_equal, tuple_keys
from dynamo.cooccurrence.sorted_runs import Merged, Run, SliceCounts, save_last
from dynamo.cooccurrence.trie import Level

SLICE_TOKENS = 2**22  # about 80 bytes a token while it is counted
MERGE_ENTRIES = 2**22  # about 60 bytes an entry while they are merged
HISTOGRAM = 2**16
SAMPLES = 2**10


class TokenFile(Protocol):
    """One file of token documents to count (`dynamo.data.corpus` writes them)."""

    ids: str  # path; a run's files are named after it
    lengths: str  # path of the documents' lengths, (documents,)
    tokens: int
    crc: int

    def read_documents(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]: ...


class _MergedCounts:
    """The merged tuples of one order that occur often enough, read on demand (`counting.Counts`)."""

    def __init__(self, parts: Sequence[Merged], total: int, min_count: int):
        self.total = total
        self._parts, self._min_count = parts, min_count

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for part in self._parts:
            found = np.load(part.run.counts)
            kept = found >= self._min_count
            counts.append(found[kept])
            keys.append(np.load(part.run.keys, mmap_mode="r")[kept])
        return np.concatenate(keys), np.concatenate(counts)


def count_files(
    files: Sequence[TokenFile],
    order: int,
    vocab_size: int,
    min_count: int = 1,
    max_bytes: int | None = None,
    workers: int = 1,
    work: Path | None = None,
    progress: bool = False,
    slice_tokens: int = SLICE_TOKENS,
    merge_entries: int = MERGE_ENTRIES,
) -> tuple[np.ndarray, list[Level], int]:
    """Counts of single tokens (vocab,), the levels of orders 2 .. `order`, and the minimum count used.

    max_bytes: raise the minimum count until the table's file fits. workers: processes. work: a folder for
    this count's intermediate files, up to 24 bytes a token at order 3, which lets a killed count go on and
    which the caller removes (None: a temporary folder). Raises ValueError for options out of range, ids
    outside the vocabulary, and a `max_bytes` that no minimum count satisfies.
    """
    if order < 2 or min_count < 1 or workers < 1:
        raise ValueError(
            f"order, min_count, workers: expected at least 2, 1 and 1, got {order}, {min_count}, {workers}"
        )
    base = largest_vocab(order)
    check_ids(np.array([0, vocab_size - 1]), vocab_size, order)
    with tempfile.TemporaryDirectory(prefix="counting-") if work is None else nullcontext(work) as folder:
        here = Path(folder) / "runs"
        sizes = (slice_tokens, SLICE_TOKENS, merge_entries)
        subject = [(file.ids, file.tokens, file.crc) for file in files], order, vocab_size, min_count, sizes
        _resume_or_begin(here, json.dumps(subject))
        with _mapper(workers) as mapped:
            task = partial(_count_slice, order=order, vocab_size=vocab_size, folder=here)
            unigrams, totals = np.zeros(vocab_size, np.int64), np.zeros(order - 1, np.int64)
            runs: list[list[Run]] = [[] for _ in range(order - 1)]
            with tqdm(total=sum(f.tokens for f in files), unit=" tokens", unit_scale=True, desc="counting",
                      disable=not progress) as bar:  # fmt: skip
                for result in mapped(task, list(_slices(files, slice_tokens))):
                    unigrams += result.unigrams
                    totals += result.totals
                    for own, more in zip(runs, result.runs, strict=True):
                        own += more
                    bar.update(int(result.unigrams.sum()))
            merged = [
                _merged(here / f"merged-{m + 2}", own, min_count, merge_entries, mapped, progress)
                for m, own in enumerate(runs)
            ]
        if max_bytes is not None:
            histograms = [sum((part.histogram for part in parts), np.zeros(HISTOGRAM, np.int64))
                          for parts in merged]  # fmt: skip
            min_count = fitting_min_count(histograms, vocab_size, max_bytes, min_count)
        found = [
            _MergedCounts(parts, total, min_count)
            for parts, total in zip(merged, totals.tolist(), strict=True)
        ]
        return unigrams, levels_of(found, min_count, vocab_size, base), min_count


def _resume_or_begin(folder: Path, subject: str) -> None:
    """Keep a folder's results if they are of the same subject, otherwise empty it."""
    metadata = folder / "subject.json"
    if not (metadata.is_file() and metadata.read_text(encoding="utf-8") == subject):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        metadata.write_text(subject, encoding="utf-8")


class _mapper:
    """`map` over a pool of processes for the length of a block; in this process for one worker."""

    def __init__(self, workers: int):
        # Fork where possible: these workers need only numpy, and a spawned one would import models first.
        method = "fork" if "fork" in get_all_start_methods() else "spawn"
        self._pool = process_pool(workers, method) if workers > 1 else None

    def __enter__(self) -> Callable[..., Iterator[Any]]:
        return map if self._pool is None else self._pool.map

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _slices(files: Sequence[TokenFile], size: int) -> Iterator[tuple[TokenFile, int, int]]:
    """Ranges of documents, first to last (exclusive), of about `size` tokens together."""
    for file in files:
        ends = np.cumsum(np.load(file.lengths))
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(ends.searchsorted(before + size, side="right")))
            yield file, first, last
            first = last


def _count_slice(where: tuple[TokenFile, int, int], order: int, vocab_size: int, folder: Path) -> SliceCounts:
    file, first, last = where
    place = folder / f"{Path(file.ids).stem}-{first}"
    done = Path(f"{place}.npz")
    if not done.is_file():
        unigrams = np.zeros(vocab_size, np.int64)
        entries = []
        totals = np.zeros(order - 1, np.int64)
        for n, (tokens, room) in enumerate(chunks(file.read_documents(first, last), order, SLICE_TOKENS)):
            check_ids(tokens, vocab_size, order)
            unigrams += np.bincount(tokens[room > 0], minlength=vocab_size)
            entries.append([])
            for m, keys in enumerate(tuple_keys(tokens, room, order, largest_vocab(order))):
                totals[m] += len(keys)
                found = sum_equal(np.sort(keys), np.ones(len(keys), np.uint32))
                entries[n].append(Run.write(_run_of(place, m, n), *found).entries)
        save_last(done, unigrams=unigrams, totals=totals, entries=np.array(entries).reshape(-1, order - 1))
    with np.load(done) as stored:
        runs = [
            [Run(_run_of(place, m, n), int(count)) for n, count in enumerate(column)]
            for m, column in enumerate(stored["entries"].T)
        ]
        return SliceCounts(stored["unigrams"], stored["totals"], runs)


def _run_of(place: Path, m: int, n: int) -> Path:
    return Path(f"{place}-{m + 2}-{n}")


def _merged(
    place: Path,
    runs: Sequence[Run],
    min_count: int,
    entries: int,
    mapped: Callable[..., Iterator[Any]],
    progress: bool,
) -> list[Merged]:
    """The tuples of one order, merged by ranges of keys; its runs are removed."""
    done = Path(f"{place}.npz")
    if not done.is_file():
        jobs = [(Path(f"{place}-{n}"), *cut) for n, cut in enumerate(_cuts(runs, entries))]
        merging = mapped(partial(_merge, runs=runs, min_count=min_count), jobs)
        list(tqdm(merging, total=len(jobs), desc=place.name, unit="cut", disable=not progress))
        save_last(done, cuts=np.array(len(jobs)))
    for run in runs:
        run.remove()
    with np.load(done) as stored:
        return [_stored(Path(f"{place}-{n}")) for n in range(int(stored["cuts"]))]


def _stored(place: Path) -> Merged:
    with np.load(f"{place}.npz") as stored:
        histogram = np.zeros(HISTOGRAM, np.int64)
        histogram[stored["values"]] = stored["tuples"]
        return Merged(Run(place, int(stored["entries"])), histogram)


def _cuts(runs: Sequence[Run], entries: int) -> list[tuple[int, int]]:
    """Ranges [low, high) of keys that each hold about `entries` entries of all runs together."""
    total = sum(run.entries for run in runs)
    pieces = -(-total // entries)
    if pieces <= 1:
        return [(0, 2**63 - 1)]
    # One stride for all runs: the sample's quantiles are then those of all entries together.
    stride = max(1, total // (SAMPLES * pieces))
    sample = np.sort(np.concatenate([np.load(run.keys, mmap_mode="r")[::stride] for run in runs]))
    inner = np.unique(sample[np.arange(1, pieces) * len(sample) // pieces]).tolist()
    edges = [0, *(edge for edge in inner if edge > 0), 2**63 - 1]
    return list(pairwise(edges))


def _merge(job: tuple[Path, int, int], runs: Sequence[Run], min_count: int) -> None:
    place, low, high = job
    done = Path(f"{place}.npz")
    if done.is_file():
        return
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for run in runs:
        stored = np.load(run.keys, mmap_mode="r")
        start, stop = np.searchsorted(stored, [low, high])
        keys.append(np.asarray(stored[start:stop]))
        counts.append(np.load(run.counts, mmap_mode="r")[start:stop].astype(np.int64))
    together = np.concatenate(keys)
    by_key = together.argsort(kind="stable")  # near linear: it finds the sorted runs
    together, sums = sum_equal(together[by_key], np.concatenate(counts)[by_key])
    kept = sums >= min_count
    run = Run.write(place, together[kept], sums[kept])
    histogram = np.bincount(sums[kept].clip(max=HISTOGRAM - 1))
    values = histogram.nonzero()[0]
    save_last(done, entries=np.array(run.entries), values=values, tuples=histogram[values])


def fitting_min_count(
    histograms: Sequence[np.ndarray], vocab_size: int, max_bytes: int, min_count: int = 1
) -> int:
    """The smallest minimum count, from `min_count` on, whose table's file takes at most `max_bytes`.

    histograms: by order from 2, how many tuples have a count of 0, 1, .. (the last: or more). The estimate is
    an upper bound. Raises ValueError if not even the highest count fits.
    """
    at_least = np.stack([histogram[::-1].cumsum()[::-1] for histogram in histograms])  # (orders, counts)
    id_bytes = np.min_scalar_type(vocab_size).itemsize
    size = np.full(at_least.shape[1], 8 * vocab_size + 2**14, np.int64)  # single tokens and the header
    parents = np.full(at_least.shape[1], vocab_size)
    for tuples in at_least:
        large = np.minimum(tuples, tuples[255])  # counts that take more than their byte
        size += tuples * (id_bytes + 1) + 8 * large + parents + 8 * np.minimum(parents, tuples // 255)
        parents = tuples
    fits = np.flatnonzero(size <= max_bytes)
    fits = fits[fits >= min_count]
    if not len(fits):
        raise ValueError(
            f"max_mb: no minimum count makes the table as small as {max_bytes / 1e6:g} MB (smallest "
            f"{size.min() / 1e6:.1f}); allow more, or count a lower order"
        )
    return int(fits[0])
