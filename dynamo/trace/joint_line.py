"""The joint of one pass as a line of a trace: what a reader needs to draw it and to move its threshold.

Grids are written as 16-bit logarithmic codes in base64, the largest chunks as their ranks and such a code:
about a kilobyte, while the joint itself may have 125,000 cells. `assets/common/joint.js` reads the same form.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dynamo.common.validation import number, require_int, short_repr
from dynamo.sampling.options import CORRECTIONS
from dynamo.sampling.records import Joint, StepRecord, largest_of_product

GRID_SIZE = 10
RECORDED_CHUNKS = 32
SMALLEST_RECORDED_CHUNK = 1e-3

LARGEST_ORDER = 16  # of a joint in a file: far above any sampler's
_LOG_RANGE = 16.0  # e^-16 is about 1e-7: two codes differ by 0.024 %, and anything smaller is drawn as zero
_LARGEST_CODE = 65535


class Chunk(NamedTuple):
    """One cell of a joint by the ranks of its tokens, and its normalised value before thresholds."""

    ranks: tuple[int, ...]
    value: float


@dataclass(frozen=True, eq=False)
class JointLine:
    """What a reader needs to draw the joint of one pass and to move its threshold.

    texts, probabilities: the ten likeliest candidates of the first and of the second head; grid: their joint
    values, later tokens summed out; chunks: the largest cells of all `order` tokens, on which thresholds are
    defined; floor: no cell that is missing from `chunks` is larger; third: the likeliest third tokens given
    the sampled pair (or the best pair), empty at order 2; picked: ranks of the sampled tokens, empty if the
    joint's order was given up; threshold: the run's eps_b: a cell of this joint must be above
    eps_b ** (order - 1); correction: what made the joint other than the product, as `SamplingOptions` names
    it ("table" also where there is none); given: for a correlator, how likely it holds each second token
    after each first, as the grid lists them.
    """

    index: int
    order: int
    threshold: float
    texts: tuple[tuple[str, ...], tuple[str, ...]]
    probabilities: tuple[tuple[float, ...], tuple[float, ...]]
    grid: np.ndarray
    chunks: tuple[Chunk, ...] = ()
    floor: float = 0.0
    third: tuple[tuple[str, float], ...] = ()
    picked: tuple[int, ...] = ()
    correction: str = "table"
    given: np.ndarray | None = None

    @classmethod
    def from_record(
        cls,
        index: int,
        record: StepRecord,
        threshold: float,
        label: Callable[[int], str],
        size: int = GRID_SIZE,
    ) -> JointLine | None:
        """The drawable part of a record's joint, None if the pass built none.

        label: names a token id; size: candidates shown of each of the first two heads.
        """
        joint = record.joint
        if joint is None:
            return None
        grid = joint.grid(size)
        picked = _picked_ranks(joint, record)
        pair = picked[:2] if len(picked) >= 2 else np.unravel_index(int(grid.argmax()), grid.shape)
        chunks, floor = _recorded_chunks(joint)
        shown = joint.candidates[:2, :size].tolist()
        return cls(
            index=index,
            order=joint.order,
            threshold=threshold,
            texts=tuple(tuple(label(token) for token in head) for head in shown),
            probabilities=tuple(tuple(head) for head in joint.probabilities[:2, :size].tolist()),
            grid=grid,
            chunks=chunks,
            floor=floor,
            third=tuple((label(token), share) for token, share in joint.third(int(pair[0]), int(pair[1]))),
            picked=picked,
            correction="table" if joint.correction == "none" else joint.correction,
            given=None if joint.given is None else joint.given[:size, :size],
        )

    def to_json(self) -> dict[str, Any]:
        cells = np.array([[*ranks, 0] for ranks, _ in self.chunks], dtype="<u2").reshape(-1, self.order + 1)
        cells[:, -1] = _to_codes(np.array([value for _, value in self.chunks]))
        fields = {
            "joint": self.index,
            "order": self.order,
            "threshold": self.threshold,
            "text": [list(head) for head in self.texts],
            "p": [[short(p) for p in head] for head in self.probabilities],
            "grid": _to_base64(_to_codes(self.grid)),
            "cells": _to_base64(cells),
            "floor": short(self.floor),
            "third": [[text, short(share)] for text, share in self.third],
            "picked": list(self.picked),
        }
        if self.correction != "table":
            fields["correction"] = self.correction
        if self.given is not None:
            fields["given"] = _to_base64(_to_codes(self.given))
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> JointLine:
        order = require_int("order", fields["order"], least=2, most=LARGEST_ORDER)
        texts = [tuple(str(text) for text in head) for head in fields["text"]]
        probabilities = tuple(tuple(number("p", p) for p in head) for head in fields["p"])
        if len(texts) != 2 or [*map(len, texts)] != [*map(len, probabilities)]:
            raise ValueError('"text" and "p" must hold two heads of as many candidates')
        rows, columns = texts
        correction = fields.get("correction", "table")
        if correction not in CORRECTIONS:
            raise ValueError(f'"correction": expected {", ".join(CORRECTIONS)}, got {short_repr(correction)}')
        cells = _from_base64(fields["cells"], "cells")
        if cells.size % (order + 1):
            raise ValueError(f'"cells" holds {cells.size} numbers, expected groups of {order + 1}')
        cells = cells.reshape(-1, order + 1)
        values = _from_codes(cells[:, -1])
        return cls(
            index=require_int("joint", fields["joint"]),
            order=order,
            threshold=number("threshold", fields["threshold"], 0, 1),
            texts=(rows, columns),
            probabilities=probabilities,
            grid=_grid(fields, "grid", len(rows), len(columns)),
            chunks=tuple(
                Chunk(tuple(ranks), float(value))
                for ranks, value in zip(cells[:, :-1].tolist(), values, strict=True)
            ),
            floor=number("floor", fields["floor"]),
            third=tuple(_candidate(each) for each in fields["third"]),
            picked=tuple(require_int("picked", rank) for rank in fields["picked"]),
            correction=correction,
            given=_grid(fields, "given", len(rows), len(columns)) if "given" in fields else None,
        )


def _grid(fields: dict[str, Any], name: str, rows: int, columns: int) -> np.ndarray:
    values = _from_codes(_from_base64(fields[name], name))
    if values.size != rows * columns:
        raise ValueError(f'"{name}" holds {values.size} values, expected {rows} x {columns}')
    return values.reshape(rows, columns)


def _candidate(fields: Any) -> tuple[str, float]:
    if not isinstance(fields, list) or len(fields) != 2:
        raise ValueError('"third" must hold pairs of a text and its share')
    return str(fields[0]), number("third", fields[1])


def _picked_ranks(joint: Joint, record: StepRecord) -> tuple[int, ...]:
    """Ranks of the tokens drawn from the joint among its candidates; empty if another order was sampled."""
    return tuple(
        int(np.flatnonzero(head == token)[0])
        for head, token in zip(joint.candidates, record.drawn, strict=False)
        if (head == token).any()
    )


def _recorded_chunks(joint: Joint) -> tuple[tuple[Chunk, ...], float]:
    """The largest cells by rank, and a bound on all others. (`Joint.top` gives the same by token ids.)"""
    ranks, values = joint.ranks, joint.values
    if ranks is None:
        ranks, values = largest_of_product(joint.probabilities, RECORDED_CHUNKS + 1)
    best = np.argsort(-values, kind="stable")
    count = min(RECORDED_CHUNKS, int((values > SMALLEST_RECORDED_CHUNK).sum()))
    floor = float(values[best[count]]) if count < len(best) else joint.floor
    return tuple(Chunk(tuple(ranks[i].tolist()), float(values[i])) for i in best[:count]), floor


def short(number: float) -> float | int:
    """Four significant digits; a whole number is written without a point, as JavaScript does."""
    rounded = float(f"{number:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _to_codes(values: np.ndarray) -> np.ndarray:
    """Probabilities as 16-bit codes, logarithmic from e^-16 (code 0) to 1 (code 65535)."""
    logs = np.log(np.maximum(values, math.exp(-_LOG_RANGE)))
    codes = np.rint(_LARGEST_CODE * (1 + logs / _LOG_RANGE))
    return codes.clip(0, _LARGEST_CODE).astype("<u2")


def _from_codes(codes: np.ndarray) -> np.ndarray:
    values = np.exp(_LOG_RANGE * (codes.astype(np.float64) / _LARGEST_CODE - 1))
    return np.where(codes == 0, 0.0, values)


def _to_base64(codes: np.ndarray) -> str:
    return base64.b64encode(codes.tobytes()).decode("ascii")


def _from_base64(text: str, name: str) -> np.ndarray:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f'"{name}" is not base64 ({error})') from None
    if len(raw) % 2:
        raise ValueError(f'"{name}" is cut off in the middle of a number')
    return np.frombuffer(raw, dtype="<u2")
