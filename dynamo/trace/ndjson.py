"""A run as NDJSON: what the page receives, downloads and records.

There are four kinds of line, with different first keys: "format" (header), "pass", "joint", "end". A pane is
drawn from pass lines and holds all of them in one growing string, so they stay under about 150 bytes. A joint
takes several times as much; it has its own line (`dynamo.trace.joint_line`), which a reader may skip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

from dynamo.common.validation import number, parse_json, require_int, settings, short_repr
from dynamo.sampling.records import BackOff, StepRecord
from dynamo.trace.joint_line import JointLine, short

TRACE_FORMAT = 1
END_REASONS = ("eos", "length", "stop", "cancelled", "error")


@dataclass(frozen=True)
class Header:
    """First line of a run: which model generated, from what.

    run: the run's id; lane: "base" or "dynamo", or "blind" if the visitor must not know; prompt: the user's
    last message; engine: how the lane decodes ("loop", "generate", "threshold-1", "dynamo"), "" for its
    lane's usual way; recorded: where and when, in words, if this is not a live run.
    """

    run: str
    lane: str
    model: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    recorded: str = ""

    def to_json(self) -> dict[str, Any]:
        fields = {
            "format": TRACE_FORMAT,
            "run": self.run,
            "lane": self.lane,
            "model": self.model,
            "options": self.options,
            "prompt": self.prompt,
        }
        rare = {"engine": self.engine, "recorded": self.recorded}
        return fields | {name: value for name, value in rare.items() if value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Header:
        if fields["format"] != TRACE_FORMAT:
            raise ValueError(
                f"trace format {short_repr(fields['format'])}, but this version reads {TRACE_FORMAT}; "
                "record it again"
            )
        return cls(
            run=str(fields["run"]),
            lane=str(fields["lane"]),
            model=str(fields["model"]),
            prompt=str(fields["prompt"]),
            options=settings(fields["options"]),
            engine=str(fields.get("engine", "")),
            recorded=str(fields.get("recorded", "")),
        )


@dataclass(frozen=True)
class PassLine:
    """One forward pass without its joint: what `StepRecord` says, plus the text of each token.

    texts: one piece per token, "" for a special token and for one that only begins a character; best: the
    largest value of the last joint tried, before thresholds, None if none was built; drafted, rejected: exact
    mode's proposals for the next pass, and the texts of those that this pass rejected; refused: of the first
    of these, its probability under the first head and as a draft, None in files of older versions; exact:
    whether the pass ran in that mode; anchored: whether its chunk grew from a first token drawn alone (no
    `best` then).
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
    best: float | None = None
    drafted: tuple[int, ...] = ()
    rejected: tuple[str, ...] = ()
    refused: tuple[float, float] | None = None
    exact: bool = False
    anchored: bool = False

    @classmethod
    def from_record(
        cls, index: int, record: StepRecord, texts: Iterable[str], rejected: Iterable[str] = ()
    ) -> PassLine:
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
            best=None if record.joint is None or record.anchored else record.joint.best,
            drafted=record.drafted,
            rejected=tuple(rejected),
            refused=record.refused,
            exact=record.exact,
            anchored=record.anchored,
        )

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @property
    def marked(self) -> str:
        """The pass's text, in brackets if it was decided on as a chunk of several tokens."""
        text = "".join(self.texts)
        return f"[{text}]" if self.order > 1 and text else text

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "pass": self.index,
            "ids": list(self.tokens),
            "text": list(self.texts),
            "p": [short(p) for p in self.probabilities],
            "ms": short(self.milliseconds),
        }
        if self.order != len(self.tokens):
            fields["order"] = self.order
        if self.backoffs:
            fields["backoffs"] = [
                [order, reason, short(best), short(bar), *([True] if at_most else [])]
                for order, reason, best, bar, at_most in self.backoffs
            ]
        if self.kept_mass is not None:
            fields["kept"] = short(self.kept_mass)
        if self.best is not None:
            fields["best"] = short(self.best)
        if self.drafted:
            fields["drafted"] = list(self.drafted)
        if self.rejected:
            fields["rejected"] = list(self.rejected)
        if self.refused is not None:
            fields["refused"] = [short(p) for p in self.refused]
        if self.exact:
            fields["exact"] = True
        if self.anchored:
            fields["anchored"] = True
        if self.prefill:
            fields["prefill"] = True
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PassLine:
        tokens = tuple(require_int("ids", token) for token in fields["ids"])
        texts = tuple(str(text) for text in fields["text"])
        if not tokens or len(texts) != len(tokens):
            raise ValueError(
                f"a pass has one token or more and as many texts, got {len(tokens)} and {len(texts)}"
            )
        return cls(
            index=require_int("pass", fields["pass"]),
            tokens=tokens,
            texts=texts,
            order=require_int("order", fields.get("order", len(tokens)), least=1),
            milliseconds=number("ms", fields["ms"], least=0),
            probabilities=tuple(number("p", p) for p in fields["p"]),
            backoffs=tuple(_backoff(each) for each in fields.get("backoffs", ())),
            kept_mass=number("kept", fields["kept"]) if "kept" in fields else None,
            prefill=bool(fields.get("prefill", False)),
            best=number("best", fields["best"]) if "best" in fields else None,
            drafted=tuple(require_int("drafted", token) for token in fields.get("drafted", ())),
            rejected=tuple(str(text) for text in fields.get("rejected", ())),
            refused=_refused(fields["refused"]) if "refused" in fields else None,
            exact=bool(fields.get("exact", False)),
            anchored=bool(fields.get("anchored", False)),
        )


class PassSpeed(NamedTuple):
    """How fast a run's passes were, but for the one that reads the prompt.

    timings: of how many passes; passes_per_second: their mean speed, 1 over the seconds of each; error: the
    standard error of that, as a share of it.
    """

    timings: int
    passes_per_second: float
    error: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> PassSpeed | None:
        """From the seconds of each pass; None where there are none. A pass that took no time has no speed."""
        speeds = [1 / each for each in seconds if each > 0]
        if not speeds:
            return None
        average = fmean(speeds)
        error = stdev(speeds, average) / math.sqrt(len(speeds)) / average if len(speeds) > 1 else 0.0
        return cls(len(speeds), average, error)

    @classmethod
    def from_json(cls, fields: Any) -> PassSpeed:
        timings, speed, error = fields
        if number("timed", speed, least=0) == 0:
            raise ValueError('"timed" must have passes a second above 0')
        return cls(require_int("timed", timings, least=1), float(speed), number("timed", error, least=0))


@dataclass(frozen=True)
class End:
    """Last line: why the run ended (one of `END_REASONS`), text held back until then, an error's message.

    timed: where the run was timed again after it had ended, its `RunCounts.pass_speed` by those timings. The
    end line then comes a second time, with what stood in the first.
    """

    reason: str
    text: str = ""
    message: str = ""
    timed: PassSpeed | None = None

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"end": self.reason, "text": self.text, "message": self.message}
        if self.timed:
            timings, *speed = self.timed
            fields["timed"] = [timings, *map(short, speed)]
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> End:
        if fields["end"] not in END_REASONS:
            reasons = ", ".join(END_REASONS)
            raise ValueError(f'"end" must be one of {reasons}, got {short_repr(fields["end"])}')
        timed = PassSpeed.from_json(fields["timed"]) if "timed" in fields else None
        return cls(fields["end"], str(fields.get("text", "")), str(fields.get("message", "")), timed)


Line = Header | PassLine | JointLine | End
_KINDS: dict[str, type[Line]] = {"format": Header, "pass": PassLine, "joint": JointLine, "end": End}


@dataclass(frozen=True, eq=False)
class Trace:
    """One run read back. `end` is None if the file was cut off before its end line."""

    header: Header
    passes: tuple[PassLine, ...]
    joints: dict[int, JointLine] = field(default_factory=dict)
    end: End | None = None

    @property
    def wire(self) -> str:
        """The run as NDJSON without its joints, as a pane of the page holds it."""
        ends = [self.end] if self.end else []
        if self.end and self.end.timed:
            ends.insert(0, replace(self.end, timed=None))
        return encode_lines([self.header, *self.passes, *ends])

    @property
    def tokens(self) -> list[int]:
        return [token for line in self.passes for token in line.tokens]

    @property
    def text(self) -> str:
        tail = self.end.text if self.end else ""
        return "".join(piece for step in self.passes for piece in step.texts) + tail


def encode_line(line: Line) -> str:
    """One line of NDJSON, without its newline."""
    return json.dumps(line.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode_lines(lines: Iterable[Line]) -> str:
    """Lines of NDJSON: of a run, a header, its passes, each followed by its joint or not, and an end."""
    return "".join(encode_line(line) + "\n" for line in lines)


def decode_line(text: str) -> Line:
    """The inverse of `encode_line`. Raises ValueError saying what is wrong with the line."""
    try:
        fields = parse_json(text)
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


def _backoff(fields: Any) -> BackOff:
    if not isinstance(fields, list) or len(fields) not in (4, 5):
        raise ValueError(f'"backoffs" holds {short_repr(fields)}, expected order, reason, best and threshold')
    order, reason, best, bar, *at_most = fields
    return BackOff(
        require_int("backoffs", order, least=1),
        str(reason),
        number("backoffs", best),
        number("backoffs", bar),
        at_most == [True],
    )


def _refused(fields: Any) -> tuple[float, float]:
    if not isinstance(fields, list) or len(fields) != 2:
        raise ValueError(f'"refused" holds {short_repr(fields)}, expected two probabilities')
    p, q = (number("refused", each, 0, 1) for each in fields)
    return p, q


def read_trace(file: Iterable[str]) -> Trace:
    """Reads one run from lines of NDJSON. Raises ValueError that names the line and what is wrong with it."""
    runs = read_runs(file)
    if len(runs) != 1:
        raise ValueError(f"the file holds {len(runs)} runs, expected one")
    return runs[0]


def read_runs(file: Iterable[str]) -> list[Trace]:
    """Reads consecutive runs, each from its header line on. Raises as `read_trace` does."""
    runs: list[_Run] = []
    for count, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            line = decode_line(text)
            if isinstance(line, Header):
                runs.append(_Run(line))
            elif not runs:
                raise ValueError("expected a header line first")
            else:
                runs[-1].add(line)
        except ValueError as error:
            raise ValueError(f"line {count}: {error}") from None
    if not runs:
        raise ValueError("line 1: the trace is empty, expected a header line")
    return [run.trace() for run in runs]


class _Run:
    """A run while it is read: refuses lines in the wrong order."""

    def __init__(self, header: Header):
        self._header = header
        self._passes: list[PassLine] = []
        self._joints: dict[int, JointLine] = {}
        self._end: End | None = None

    def add(self, line: PassLine | JointLine | End) -> None:
        if self._end is not None and not isinstance(line, End):
            raise ValueError("a line after the end line")
        match line:
            case PassLine():
                if line.index != len(self._passes):
                    raise ValueError(f"pass {line.index}, expected pass {len(self._passes)}")
                self._passes.append(line)
            case JointLine():
                if not 0 <= line.index < len(self._passes):
                    raise ValueError(f"the joint of pass {line.index}, which has not come yet")
                self._joints[line.index] = line
            case End():
                self._end = line

    def trace(self) -> Trace:
        return Trace(self._header, tuple(self._passes), self._joints, self._end)
