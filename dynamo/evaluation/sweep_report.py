"""A sweep on disk: what the page draws its curves from, with what the numbers depend on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo.common.files import write_json
from dynamo.common.validation import parse_json, require_int, settings, short_repr
from dynamo.evaluation.calibration import EVENTS, Reliability
from dynamo.evaluation.sweep import QUALITY, Point

FORMAT, VERSION = "dynamo-sweep", 1


@dataclass(frozen=True)
class SweepReport:
    """model: its name; options: sampling options but the threshold; prompts: how many; seeds: replies to
    each; machine: what it ran on (`dynamo.evaluation.machine`); base: the base loop's own figures; points:
    by threshold; calibration: curves on held-out text, empty without any.
    """

    model: str
    options: dict[str, Any]
    prompts: int
    seeds: int
    max_new_tokens: int
    machine: dict[str, Any]
    base: Point
    points: tuple[Point, ...]
    calibration: tuple[Reliability, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "options": self.options,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "max_new_tokens": self.max_new_tokens,
            "machine": self.machine,
            "quality": QUALITY,
            "base": self.base.to_json(),
            "points": [point.to_json() for point in self.points],
            "calibration": [curve.to_json() for curve in self.calibration],
        }

    @classmethod
    def from_json(cls, fields: Any) -> SweepReport:
        """Raises ValueError naming what is wrong."""
        found = (fields.get("format"), fields.get("version")) if isinstance(fields, dict) else ("", "")
        if found != (FORMAT, VERSION):
            version = " version ".join(map(short_repr, found))
            raise ValueError(f"expected {FORMAT} version {VERSION}, got {version}")
        try:
            report = cls(
                model=str(fields["model"]),
                options=settings(fields["options"]),
                prompts=require_int("prompts", fields["prompts"]),
                seeds=require_int("seeds", fields["seeds"]),
                max_new_tokens=require_int("max_new_tokens", fields["max_new_tokens"]),
                machine=settings(fields["machine"], "machine"),
                base=Point.from_json(fields["base"]),
                points=tuple(Point.from_json(point) for point in fields["points"]),
                calibration=tuple(Reliability.from_json(curve) for curve in fields["calibration"]),
            )
        except KeyError as error:
            raise ValueError(f"the field {error} is missing") from None
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"a field has the wrong type ({error})") from None
        report.validate()
        return report

    def validate(self) -> None:
        """Raises ValueError if the numbers contradict each other."""
        thresholds = [point.threshold for point in self.points]
        if self.base.threshold is not None or any(t is None or not 0 <= t <= 1 for t in thresholds):
            raise ValueError(f"thresholds: expected the base's null, then 0 to 1, got {thresholds}")
        for point in (self.base, *self.points):
            if point.passes < 1 or not point.passes <= point.tokens:
                raise ValueError(f"threshold {point.threshold}: {point.tokens} tokens, {point.passes} passes")
            if abs(sum(point.share_by_order.values()) - 1) > 1e-6:
                raise ValueError(f"threshold {point.threshold}: shares by order do not add up to 1")
        unknown = {curve.event for curve in self.calibration} - set(EVENTS)
        if unknown:
            raise ValueError(
                f"calibration: expected the events {', '.join(EVENTS)}, got {short_repr(unknown)}"
            )

    def write(self, path: str | os.PathLike) -> None:
        """The file is replaced at once: a reader sees the old one or the new one, never a part."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike) -> SweepReport:
        """Raises ValueError naming a file that is no sweep report, and OSError if there is none."""
        try:
            return cls.from_json(parse_json(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{path} is no sweep report ({error}); make it with: python -m dynamo sweep"
            ) from None
