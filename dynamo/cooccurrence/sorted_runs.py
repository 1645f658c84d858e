"""Sorted runs of token tuples on disk, as counting out of core leaves them (`dynamo.cooccurrence.external`).

A run is two arrays; what is told of it is written last, so that a kill leaves it told of and whole, or not
told of.
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
    """One cut's tuples of one order; histogram: how many have a count of 0, 1, .. 65,535 or more."""

    run: Run
    histogram: np.ndarray


@dataclass(frozen=True)
class SliceCounts:
    """runs: by order, from 2."""

    unigrams: np.ndarray
    totals: np.ndarray
    runs: list[list[Run]]


def save_last(path: Path, **arrays: np.ndarray) -> None:
    """Its presence says that whatever else belongs to it is whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)
