"""Figures of finished lanes: a row of the strip of thresholds, and a lane's share of the audit card."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import stdev
from typing import Any

from dynamo.trace.ndjson import PassLine
from dynamo.ui.compare.pair import Opinion
from dynamo.ui.compare.presenter import RecordedRun

UNKNOWN = 1e9  # an error of one token alone


def strip_row(
    threshold: float,
    lane: RecordedRun,
    passes: list[PassLine],
    audit: Callable[..., Opinion] | None,
) -> dict[str, Any]:
    row = {
        "threshold": threshold,
        "text": [list(line.texts) for line in passes],
        "passes": lane.passes,
        "tokens": len(lane.tokens),
        "ms": round(1000 * lane.seconds, 2),
    }
    if audit is not None:
        opinion = audit(lane.prompt_ids, lane.tokens)
        row |= {"nats": opinion.nats_per_token, "below": opinion.unlikely_share}
    return row


def audit_figures(opinion: Opinion, top_k: int) -> dict[str, float]:
    """error: the standard error of `nats` over the answer's tokens."""
    surprises = opinion.log_probabilities
    return {
        "tokens": len(opinion.ranks),
        "nats": opinion.nats_per_token,
        "error": stdev(surprises) / math.sqrt(len(surprises)) if len(surprises) > 1 else UNKNOWN,
        "below_1_percent": opinion.unlikely_share,
        "outside_top_k": sum(rank >= top_k for rank in opinion.ranks) / max(1, len(opinion.ranks)),
        "repetition": opinion.repetition,
    }
