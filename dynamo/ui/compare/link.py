"""A race that somebody shared as a link: what its lines say, checked.

The page's script packs the traces of both lanes, without their joints, into the fragment of an address, which
browsers do not send; the page that opens it sends the lines here. An answer too long for a link is left out:
the headers alone say prompt, seed and settings. Anyone may have made all of it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dynamo.common.validation import short_repr
from dynamo.trace.ndjson import Trace, read_runs
from dynamo.ui.compare.chat import LANES, LONGEST_CHAT
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.compare.settings import LONGEST_ANSWER, RANGES, Settings, orders, shown

FROM_A_LINK = "from a link, nobody checked it"
SET_UP = "The link's message and settings are set up."
LONGEST_MODEL_NAME = 80


@dataclass(frozen=True)
class Link:
    """traces: by lane, without passes where the answer was too long; status: what the page says of it."""

    traces: dict[str, Trace]
    settings: Settings
    status: str

    @property
    def prompt(self) -> str:
        return self.traces["dynamo"].header.prompt

    @property
    def opponent(self) -> str:
        return self.traces["base"].header.engine


def read_link(lines: Any, names: Sequence[str], pair: ModelPair) -> Link:
    """The link's race, to be set up on a page of this pair. names: of the settings that have a control.

    Raises ValueError in a sentence for what is no race, and for settings that the page's controls do not
    take.
    """
    if not isinstance(lines, str) or len(lines) > LONGEST_CHAT:
        raise ValueError(f"link: expected at most {LONGEST_CHAT:,} characters of traces")
    try:
        runs = read_runs(lines.split("\n"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"link: {error}") from None
    traces = {run.header.lane: _marked(run) for run in runs}
    if set(traces) != set(LANES) or len({trace.header.prompt for trace in traces.values()}) > 1:
        raise ValueError("link: expected what both lanes answer to one message")
    header = traces["dynamo"].header
    settings = _settings(header.options, names, pair)
    return Link(traces, settings, _status(header.model, header.options, settings, pair))


def _marked(run: Trace) -> Trace:
    """Whatever the link says of itself, the page says where it comes from."""
    model = run.header.model[:LONGEST_MODEL_NAME]
    return replace(run, header=replace(run.header, model=model, recorded=FROM_A_LINK))


def _settings(options: dict[str, Any], names: Sequence[str], pair: ModelPair) -> Settings:
    values = {**shown(pair.options), "max_new_tokens": LONGEST_ANSWER, "seed": 0, **options}
    values["blur"] = values["blur"] != 1
    settings = Settings.from_controls(names, [values[name] for name in names], pair.options)
    for name, (low, high) in {**RANGES, "max_order": orders(pair.heads)}.items():
        value = getattr(settings, name, getattr(settings.options, name, None))
        if not low <= value <= high:
            raise ValueError(f"link: {name}: expected {low} to {high} on this page, got {short_repr(value)}")
    return settings


def _status(model: str, options: dict[str, Any], settings: Settings, pair: ModelPair) -> str:
    if model != pair.name:
        return f"{SET_UP} The answer was {model}'s; here {pair.name} will give another."
    if not asdict(settings.options).items() <= options.items() or options.get("bits", 0) != pair.bits:
        return f"{SET_UP} {model} is set up differently here, and may give another answer."
    return SET_UP
