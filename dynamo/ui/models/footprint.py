"""What the loaded pair takes and how fast it was, as a table; beside it a quantised pair as it was in full.

Bytes are counted when a pair is loaded, except for those in full, which are an estimate and labelled so.
Speeds are those of the last whole answer here, and never estimated: fewer bits are faster on one machine and
slower on another.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dynamo.ui.compare.chat import LANES

if TYPE_CHECKING:
    from dynamo.loading import Footprint

Speeds = Mapping[str, float]  # tokens per second of model time, by lane
NOT_YET, NOT_HERE = "after an answer", "not measured"
LANE_NAMES = {"base": "Base model", "dynamo": "DynaMo"}


def footprint_table(footprint: Footprint | None, speeds: Speeds, in_full: Speeds) -> str:
    """HTML; "" for a pair whose memory is not known. speeds: of this pair; in_full: of the same one as it is
    without quantisation, where it answered here before."""
    if footprint is None:
        return ""
    weights = footprint.weights + footprint.copies
    columns = {
        f"Loaded in {footprint.quantised or footprint.dtype}": _column(footprint, weights, speeds, NOT_YET)
    }
    if footprint.full is not None:
        full = f"As {footprint.dtype} (estimate)"
        columns[full] = _column(footprint, footprint.full, in_full, NOT_HERE)
    heads = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in columns)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{each[name]}</td>" for each in columns.values())
        + "</tr>"
        for name in next(iter(columns.values()))
    )
    return (
        '<table class="dm-footprint"><caption>Memory, and tokens/s (model time only) in the last answer'
        f"</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _column(footprint: Footprint, weights: int, speeds: Speeds, otherwise: str) -> dict[str, str]:
    parts = {
        "Weights, with packed copies": weights,
        "Caches of both lanes": footprint.caches,
        "Co-occurrence table": footprint.table,
        "Together": weights + footprint.caches + footprint.table,
    }
    sizes = {name: _megabytes(count) for name, count in parts.items()}
    return sizes | {f"{LANE_NAMES[lane]}, tokens/s": _speed(speeds.get(lane), otherwise) for lane in LANES}


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _speed(tokens_per_second: float | None, otherwise: str) -> str:
    return otherwise if tokens_per_second is None else f"{tokens_per_second:,.0f}"
