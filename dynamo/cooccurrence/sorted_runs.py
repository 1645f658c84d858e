"""Sorted runs of token tuples on disk, made by counting out of core (`dynamo.cooccurrence.external`).

A run is two arrays. Its metadata is written last, so a kill leaves a complete run or none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Run:
    """One slice's tuples of one order, sorted, on disk."""

    place: Path
    entries: int

    @property
    def keys(self) -> Path:
        return Path(f"{self.place}.keys.npy")

    @property
    def counts(self) -> Path:
        return Path(f"{self.place}.counts.npy")

    @classmethod
    def write(cls, place: Path, keys: np.ndarray, counts: np.ndarray) -> Run:
        run = cls(place, len(keys))
        np.save(run.keys, keys)
        np.save(run.counts, counts)
        return run

    def remove(self) -> None:
        for path in (self.keys, self.counts):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Merged:
    """The tuples of one order in one range of keys; histogram: how many have a count of 0, 1, .. 65,535 or
    more."""

    run: Run
    histogram: np.ndarray


@dataclass(frozen=True)
class SliceCounts:
    """Counts of one slice. unigrams: (vocab,); totals: (orders,) tuples; runs: by order, from 2."""

    unigrams: np.ndarray
    totals: np.ndarray
    runs: list[list[Run]]


def save_last(path: Path, **arrays: np.ndarray) -> None:
    """Write metadata atomically; the file's presence means that the arrays it describes are complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)
