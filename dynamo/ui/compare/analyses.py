"""What the page asks of the evaluation room, as callables that `app.py` hands over.

The page and the evaluation never import each other; what is None is not offered on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynamo.spaces.limits import UNLIMITED, Limits

if TYPE_CHECKING:
    from dynamo.ui.compare.pair import ModelPair


class Opinion(Protocol):
    """What the base model thinks of one reply, token by token (`dynamo.evaluation.audit.Audit`)."""

    log_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]
    nats_per_token: float
    unlikely_share: float
    repetition: float


@dataclass(frozen=True)
class Analyses:
    """audit: prompt ids and reply ids to the base's opinion; split: where a pass's time goes; report: a
    finished sweep; sweep: runs one here over so many prompts, telling (done, total) after every reply, and
    yields the report so far. Reports and splits are JSON-able.
    """

    audit: Callable[[Sequence[int], Sequence[int]], Opinion] | None = None
    split: Callable[[], dict[str, Any]] | None = None
    report: dict[str, Any] | None = None
    sweep: Callable[[int, Callable[[int, int], None]], Iterator[dict[str, Any]]] | None = None


@dataclass(frozen=True)
class ModelOffer:
    """Which models a visitor may load.

    stage: a loaded pair to what runs and what may be found out about it; names: listed models, by name;
    any_model: whether any other may be loaded too, from a folder or the hub, which is never so on a public
    Space; ready: pairs that are loaded already; workshop: folder in which heads are trained, None for no
    training; dialogues: a text to train them on that this machine has, None without; device: where models go,
    None for the default; held: bytes of the pair to begin with.
    """

    stage: Callable[[Any], tuple[ModelPair, Analyses]]
    names: tuple[str, ...] = ()
    any_model: bool = False
    ready: Mapping[str, tuple[ModelPair, Analyses]] = field(default_factory=dict)
    workshop: Path | None = None
    dialogues: Path | None = None
    device: str | None = None
    held: int = 0


@dataclass(frozen=True)
class Offer:
    """What this host offers.

    notice: a sentence on top of the page, "" for none; recording: a trace that plays on a first visit; votes:
    folder of the blind votes, None for no voting; strip: whether one click may decode a prompt seven times;
    queue_size: visitors that may wait; limits: what one of them may ask for; models: what may be
    loaded instead, None for nothing.
    """

    notice: str = ""
    recording: Path | None = None
    votes: Path | None = None
    strip: bool = True
    queue_size: int = 20
    limits: Limits = UNLIMITED
    models: ModelOffer | None = None
