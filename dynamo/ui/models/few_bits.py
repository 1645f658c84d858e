"""What copies of a pair's weights in fewer bits change, and how fast they were here: a table.

What they change was measured once and is shipped with the pair; speeds are those of whole answers on this
machine, and never estimated.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dynamo.ui.compare.chat import LANES
from dynamo.ui.models.footprint import LANE_NAMES, NOT_YET, Speeds

AS_SAVED = "as they are"
_NOTE = (
    "What fewer bits change. KL: how far the first head's distribution moves; loss: its own, on held-out "
    "conversations. Exact mode keeps the first head's distribution <em>of the weights that are loaded</em>. "
    "Loading others packs the pair anew, for every visitor."
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
    rows = [_row(AS_SAVED, ["–", "–"], speeds(""), loaded == "own")]
    for each in differences:
        if each.head == 1:
            changes = [f"{each.divergence.value:.4f}", f"{100 * each.rise.value:+.2f} %".replace("-", "−")]
            rows.append(_row(each.weights, changes, speeds(each.weights), loaded == each.weights))
    heads = ["KL, nats a token", "Loss", *(f"{LANE_NAMES[lane]}, tokens/s here" for lane in LANES)]
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    return (
        f'<div class="dm-models"><table class="dm-footprint"><caption>{_NOTE}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(weights: str, changes: list[str], speeds: Mapping[str, float], loaded: bool) -> str:
    rates = [f"{speeds[lane]:,.0f}" if lane in speeds else NOT_YET for lane in LANES]
    cells = "".join(f"<td>{each}</td>" for each in (*changes, *rates))
    name = html.escape(weights) + (" (loaded)" if loaded else "")
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'
