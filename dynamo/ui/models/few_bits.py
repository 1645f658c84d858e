"""What copies of a pair's weights in fewer bits change, and how fast they were here: a table.

What they change was measured once and is shipped with the pair; speeds are those of whole answers on this
machine, and never estimated.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Protocol

from dynamo.ui.compare.chat import LANES
from dynamo.ui.models.footprint import LANE_NAMES, Speeds

AS_SAVED = "as they are"
_CAPTION = "What fewer bits change, and tokens/s (model time only) in the last answer here"
_NOTE = (
    "KL: how far a head's distribution moves, in nats a token; loss: the first head's, on held-out "
    "conversations. Exact mode keeps the first head's distribution <em>of the weights that are loaded</em>; "
    "where the other heads move, fewer drafts are kept. Loading other weights packs the pair anew, for every "
    "visitor."
)


class Value(Protocol):
    value: float


class Difference(Protocol):
    """Of one head's distribution at `weights`, in nats a token, and of its loss, as a share
    (`dynamo.evaluation.few_bits`)."""

    weights: str
    head: int
    divergence: Value
    rise: Value


def few_bits_table(
    differences: Sequence[Difference], speeds: Callable[[str], Speeds], loaded: str | None
) -> str:
    """HTML; "" where nothing was measured. speeds: those of the pair in such weights, "" for its own; loaded:
    the weights that are loaded of it, None where it is not."""
    if not differences:
        return ""
    columns = [_column(AS_SAVED, ["–"] * 3, speeds(""), loaded == "own")]
    for weights in dict.fromkeys(each.weights for each in differences):
        first, *others = sorted((e for e in differences if e.weights == weights), key=lambda each: each.head)
        changes = [
            f"{first.divergence.value:.4f}",
            f"{max((each.divergence.value for each in others), default=0):.4f}",
            f"{100 * first.rise.value:+.2f} %".replace("-", "−"),
        ]
        columns.append(_column(weights, changes, speeds(weights), loaded == weights))
    names = [
        "",
        "KL, first head",
        "KL, other heads",
        "Loss",
        *(f"{LANE_NAMES[lane]}, tokens/s" for lane in LANES),
    ]
    head, *rows = zip(names, *columns, strict=True)
    cells = "".join(f'<th scope="col">{each}</th>' for each in head[1:])
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{each}</td>" for each in values)}</tr>'
        for name, *values in rows
    )
    return (
        f'<div class="dm-models"><table class="dm-footprint dm-few-bits"><caption>{_CAPTION}</caption>'
        f"<thead><tr><td></td>{cells}</tr></thead><tbody>{body}</tbody></table><p>{_NOTE}</p></div>"
    )


def _column(weights: str, changes: list[str], speeds: Speeds, loaded: bool) -> list[str]:
    rates = [f"{speeds[lane]:,.0f}" if lane in speeds else "not yet" for lane in LANES]
    return [html.escape(weights) + (" (loaded)" if loaded else ""), *changes, *rates]
