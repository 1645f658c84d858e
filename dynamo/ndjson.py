"""A run written down as NDJSON: the wire, the download, the recordings.

Four kinds of line, told apart by their first key: "format" (header), "pass", "joint", "end". Pass lines are
what a pane draws from, and a pane holds all of them in one growing string, so they stay under about 150
bytes. A joint is several times that; it has a line of its own, and a reader may skip it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

import numpy as np

from dynamo.trace import BackOff, Joint, StepRecord, largest_of_product

TRACE_FORMAT = 1
GRID_SIZE = 10
RECORDED_CHUNKS = 32
SMALLEST_RECORDED_CHUNK = 1e-3
END_REASONS = ("eos", "length", "stop", "cancelled", "error")

_LOG_RANGE = 16.0  # e^-16 is about 1e-7: two codes differ by 0.024 %, and anything smaller is drawn as zero
_LARGEST_CODE = 65535


@dataclass(frozen=True)
class Header:
    """First line of a run: who generated, from what. `lane` is "base" or "dynamo"; `run` names the run."""

    run: str
    lane: str
    model: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": TRACE_FORMAT,
            "run": self.run,
            "lane": self.lane,
            "model": self.model,
            "options": self.options,
            "prompt": self.prompt,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Header:
        if fields["format"] != TRACE_FORMAT:
            raise ValueError(
                f"trace format {fields['format']!r}, but this version reads {TRACE_FORMAT}; record it again"
            )
        return cls(
            run=str(fields["run"]),
            lane=str(fields["lane"]),
            model=str(fields["model"]),
            prompt=str(fields["prompt"]),
            options=dict(fields["options"]),
        )


@dataclass(frozen=True)
class PassLine:
    """One forward pass without its joint: what `StepRecord` says, plus the text of each token.

    texts: one piece per token; a token that only opens a character, and a special token, has the piece "".
    """

    index: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    order: int
    milliseconds: float
    probabilities: tuple[float, ...] = ()
    backoffs: tuple[BackOff, ...] = ()
    kept_mass: float | None = None
    prefill: bool = False

    @classmethod
    def of(cls, index: int, record: StepRecord, texts: Iterable[str]) -> PassLine:
        return cls(
            index=index,
            tokens=record.tokens,
            texts=tuple(texts),
            order=record.order,
            milliseconds=1000 * record.seconds,
            probabilities=record.probabilities,
            backoffs=record.backoffs,
            kept_mass=record.kept_mass,
            prefill=record.prefill,
        )

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "pass": self.index,
            "ids": list(self.tokens),
            "text": list(self.texts),
            "p": [_short(p) for p in self.probabilities],
            "ms": _short(self.milliseconds),
        }
        if self.order != len(self.tokens):
            fields["order"] = self.order
        if self.backoffs:
            fields["backoffs"] = [
                [order, reason, _short(best), _short(bar)] for order, reason, best, bar in self.backoffs
            ]
        if self.kept_mass is not None:
            fields["kept"] = _short(self.kept_mass)
        if self.prefill:
            fields["prefill"] = True
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PassLine:
        tokens = tuple(int(token) for token in fields["ids"])
        texts = tuple(str(text) for text in fields["text"])
        if not tokens or len(texts) != len(tokens):
            raise ValueError(
                f"a pass has one token or more and as many texts, got {len(tokens)} and {len(texts)}"
            )
        return cls(
            index=int(fields["pass"]),
            tokens=tokens,
            texts=texts,
            order=int(fields.get("order", len(tokens))),
            milliseconds=float(fields["ms"]),
            probabilities=tuple(float(p) for p in fields["p"]),
            backoffs=tuple(
                BackOff(int(order), str(reason), float(best), float(bar))
                for order, reason, best, bar in fields.get("backoffs", ())
            ),
            kept_mass=float(fields["kept"]) if "kept" in fields else None,
            prefill=bool(fields.get("prefill", False)),
        )


class Chunk(NamedTuple):
    """One cell of a joint by the ranks of its tokens, and its normalised value before thresholds."""

    ranks: tuple[int, ...]
    value: float


@dataclass(frozen=True, eq=False)
class JointLine:
    """What a reader needs to draw the joint of one pass, and to move its threshold without asking anyone.

    texts, probabilities: the ten likeliest candidates of the first and of the second head; grid: their joint
    values, later tokens summed out; chunks: the largest cells whole, so that thresholds can be applied to
    what they are defined on; floor: no cell that is missing from `chunks` is larger; third: the likeliest
    third tokens given the sampled pair (or the best pair), empty at order 2; picked: ranks of the sampled
    tokens, empty where the joint was given up; threshold: the run's eps_b, so that a cell of this joint has
    to be above eps_b ** (order - 1).
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

    @classmethod
    def of(
        cls, index: int, record: StepRecord, threshold: float, label: Callable[[int], str]
    ) -> JointLine | None:
        """The drawable part of a record's joint, None where the pass built none. `label` names a token id."""
        joint = record.joint
        if joint is None:
            return None
        grid = joint.grid(GRID_SIZE)
        picked = _picked_ranks(joint, record)
        pair = picked[:2] if len(picked) >= 2 else np.unravel_index(int(grid.argmax()), grid.shape)
        chunks, floor = _recorded_chunks(joint)
        shown = joint.candidates[:2, :GRID_SIZE].tolist()
        return cls(
            index=index,
            order=joint.order,
            threshold=threshold,
            texts=tuple(tuple(label(token) for token in head) for head in shown),
            probabilities=tuple(tuple(head) for head in joint.probabilities[:2, :GRID_SIZE].tolist()),
            grid=grid,
            chunks=chunks,
            floor=floor,
            third=tuple((label(token), share) for token, share in joint.third(int(pair[0]), int(pair[1]))),
            picked=picked,
        )

    def to_json(self) -> dict[str, Any]:
        cells = np.array([[*ranks, 0] for ranks, _ in self.chunks], dtype="<u2").reshape(-1, self.order + 1)
        cells[:, -1] = _to_codes(np.array([value for _, value in self.chunks]))
        return {
            "joint": self.index,
            "order": self.order,
            "threshold": self.threshold,
            "text": [list(head) for head in self.texts],
            "p": [[_short(p) for p in head] for head in self.probabilities],
            "grid": _to_base64(_to_codes(self.grid)),
            "cells": _to_base64(cells),
            "floor": _short(self.floor),
            "third": [[text, _short(share)] for text, share in self.third],
            "picked": list(self.picked),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> JointLine:
        order = int(fields["order"])
        rows, columns = (tuple(str(text) for text in head) for head in fields["text"])
        grid = _from_codes(_from_base64(fields["grid"], "grid"))
        if grid.size != len(rows) * len(columns):
            raise ValueError(f'"grid" holds {grid.size} values, expected {len(rows)} x {len(columns)}')
        cells = _from_base64(fields["cells"], "cells")
        if cells.size % (order + 1):
            raise ValueError(f'"cells" holds {cells.size} numbers, expected groups of {order + 1}')
        cells = cells.reshape(-1, order + 1)
        values = _from_codes(cells[:, -1])
        return cls(
            index=int(fields["joint"]),
            order=order,
            threshold=float(fields["threshold"]),
            texts=(rows, columns),
            probabilities=tuple(tuple(float(p) for p in head) for head in fields["p"]),
            grid=grid.reshape(len(rows), len(columns)),
            chunks=tuple(
                Chunk(tuple(ranks), float(value))
                for ranks, value in zip(cells[:, :-1].tolist(), values, strict=True)
            ),
            floor=float(fields["floor"]),
            third=tuple((str(text), float(share)) for text, share in fields["third"]),
            picked=tuple(int(rank) for rank in fields["picked"]),
        )


@dataclass(frozen=True)
class End:
    """Last line: why the run ended (one of `END_REASONS`), text that was held back, an error's sentence."""

    reason: str
    text: str = ""
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        fields = {"end": self.reason, "text": self.text, "message": self.message}
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> End:
        if fields["end"] not in END_REASONS:
            raise ValueError(f'"end" must be one of {", ".join(END_REASONS)}, got {fields["end"]!r}')
        return cls(fields["end"], str(fields.get("text", "")), str(fields.get("message", "")))


Line = Header | PassLine | JointLine | End
_KINDS: dict[str, type[Line]] = {"format": Header, "pass": PassLine, "joint": JointLine, "end": End}


@dataclass(frozen=True, eq=False)
class Trace:
    """One run read back. `end` is None where the file was cut off before its end line."""

    header: Header
    passes: tuple[PassLine, ...]
    joints: dict[int, JointLine] = field(default_factory=dict)
    end: End | None = None

    @property
    def text(self) -> str:
        tail = self.end.text if self.end else ""
        return "".join(piece for step in self.passes for piece in step.texts) + tail


def encode_line(line: Line) -> str:
    """One line of NDJSON, without its newline."""
    return json.dumps(line.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def decode_line(text: str) -> Line:
    """The reverse of `encode_line`. Raises ValueError saying what is wrong with the line."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    kind = next((key for key in _KINDS if isinstance(fields, dict) and key in fields), None)
    if kind is None:
        raise ValueError(f"expected an object with one of the keys {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].from_json(fields)
    except KeyError as error:
        raise ValueError(f'the "{kind}" line lacks the field {error}') from None
    except TypeError as error:
        raise ValueError(f'the "{kind}" line has a field of the wrong type ({error})') from None


def write_trace(file: TextIO, lines: Iterable[Line]) -> None:
    """Writes a run: a header, its passes each with its joint or without, an end."""
    for line in lines:
        file.write(encode_line(line) + "\n")


def read_trace(file: Iterable[str]) -> Trace:
    """Reads one run from lines of NDJSON. Raises ValueError that names the line and what is wrong with it."""
    header: Header | None = None
    passes: list[PassLine] = []
    joints: dict[int, JointLine] = {}
    end: End | None = None
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            line = decode_line(text)
            _check_place(line, header, len(passes), end)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        match line:
            case Header():
                header = line
            case PassLine():
                passes.append(line)
            case JointLine():
                joints[line.index] = line
            case End():
                end = line
    if header is None:
        raise ValueError("line 1: the trace is empty, expected a header line")
    return Trace(header, tuple(passes), joints, end)


def _check_place(line: Line, header: Header | None, passes: int, end: End | None) -> None:
    if header is None and not isinstance(line, Header):
        raise ValueError("expected a header line first")
    if header is not None and isinstance(line, Header):
        raise ValueError("a second header: one file holds one run")
    if end is not None:
        raise ValueError("a line after the end line")
    if isinstance(line, PassLine) and line.index != passes:
        raise ValueError(f"pass {line.index}, expected pass {passes}")
    if isinstance(line, JointLine) and not 0 <= line.index < passes:
        raise ValueError(f"the joint of pass {line.index}, which has not come yet")


def _picked_ranks(joint: Joint, record: StepRecord) -> tuple[int, ...]:
    """Where the tokens drawn from it stand among the candidates; empty where another order was sampled."""
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
    floor = float(values[best[count]]) if count < len(best) else 0.0
    return tuple(Chunk(tuple(ranks[i].tolist()), float(values[i])) for i in best[:count]), floor


def _short(number: float) -> float | int:
    """Four significant digits; a whole number loses its point, as JavaScript would write it."""
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
