"""A co-occurrence table as one safetensors file: integer counts, most of them in a byte.

A file is not trusted: types and shapes are checked before an array is read, and the parts must agree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dynamo.common.validation import parse_json, require_int, short_repr
from dynamo.cooccurrence.smoothing import Smoothing
from dynamo.cooccurrence.trie import Level, require, smallest, starts_of

FORMAT, VERSION = "dynamo-cooccurrence", "1"
COUNT_TYPES = ("U8", "U16", "U32", "U64")


class Counted(NamedTuple):
    """The contents of a table; the fields are those of `CooccurrenceTable`."""

    unigrams: np.ndarray
    levels: Sequence[Level]
    min_count: int
    vocab_inferred: bool
    source: str
    tokenizer: str
    smoothing: Smoothing | None = None


def write_table(counted: Counted, path: Path) -> None:
    """Write a table atomically: readers see the old file or the new, never a part."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "order": len(counted.levels) + 1,
        "min_count": counted.min_count,
        "vocab_size": len(counted.unigrams),
        "vocab_inferred": int(counted.vocab_inferred),
        "total_tokens": int(counted.unigrams.sum()),
        "totals": json.dumps([level.total for level in counted.levels]),
        "tokenizer": counted.tokenizer,
        "source": counted.source,
    }
    if counted.smoothing is not None:
        metadata["smoothing"] = counted.smoothing.to_text()
    arrays = {"unigrams": smallest(counted.unigrams)}
    for m, level in enumerate(counted.levels, start=2):
        arrays |= _packed(f"fans.{m}", level.fans) | _packed(f"counts.{m}", level.counts)
        arrays[f"last.{m}"] = level.last
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(arrays, part, metadata={key: str(value) for key, value in metadata.items()})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_table(path: Path) -> Counted:
    """Read a table. Raises ValueError for a file that is not a complete, consistent one."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = f"{metadata.get('format', 'unknown')} version {metadata.get('version', 'unknown')}"
            require(
                found == f"{FORMAT} version {VERSION}", f"it is {found[:80]}, not {FORMAT} version {VERSION}"
            )
            arrays = {name: _counts_of(file, name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return _consistent(arrays, metadata)
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is not a usable co-occurrence table ({reason}): count it again: python -m dynamo count"
        ) from error


def _consistent(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> Counted:
    vocab_size, min_count = int(metadata["vocab_size"]), int(metadata["min_count"])
    unigrams, totals = arrays["unigrams"].astype(np.int64), parse_json(metadata["totals"])
    require(isinstance(totals, list) and totals, f"totals of {short_repr(totals)}")
    require(unigrams.shape == (vocab_size,), f"{len(unigrams)} token counts, vocabulary {vocab_size}")
    require(unigrams.min(initial=0) >= 0, "a negative count")
    require(unigrams.sum() == int(metadata["total_tokens"]), "token counts do not add up to the total")
    require(unigrams.sum() > 0, "no tokens were counted")
    require(len(totals) + 1 == int(metadata["order"]), f"{len(totals)} levels, order {metadata['order']}")
    levels, parents = [], vocab_size
    for m, total in enumerate(totals, start=2):
        fans, counts = _unpacked(f"fans.{m}", arrays), _unpacked(f"counts.{m}", arrays)
        last = arrays[f"last.{m}"]
        require(not len(fans) or 0 <= fans.min() <= fans.max() <= len(last), "children out of range")
        total = require_int("totals", total, most=2**62)
        level = Level(starts_of(fans), last, smallest(counts), total, vocab_size)
        level.validate(parents, min_count)
        require((unigrams[last] > 0).all(), "a tuple of a token that never occurs")
        require(m > 2 or (unigrams[fans > 0] > 0).all(), "a tuple of a token that never occurs")
        levels.append(level)
        parents = len(counts)
    inferred = metadata["vocab_inferred"] == "1"
    smoothing = metadata.get("smoothing")  # files of older versions have none
    return Counted(
        unigrams,
        levels,
        min_count,
        inferred,
        metadata["source"],
        metadata["tokenizer"],
        None if smoothing is None else Smoothing.from_text(smoothing, len(levels) + 1),
    )


def _counts_of(file: Any, name: str) -> np.ndarray:
    """One array of a file; its claimed type and shape are checked before it is read."""
    claimed = file.get_slice(name)
    kind, shape = claimed.get_dtype(), claimed.get_shape()
    require(
        kind in COUNT_TYPES and len(shape) == 1, f"{short_repr(name)} is {kind} of shape {short_repr(shape)}"
    )
    return file.get_tensor(name)


def _packed(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Mostly small numbers, a byte each; larger ones are 255 there and stored in a second array."""
    large = values >= 255
    return {name: np.where(large, 255, values).astype(np.uint8), f"{name}.large": smallest(values[large])}


def _unpacked(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    values, large = arrays[name].astype(np.int64), arrays[f"{name}.large"]
    escaped = values == 255
    require(np.count_nonzero(escaped) == len(large), f"{name} and its large values do not match")
    values[escaped] = large
    return values
