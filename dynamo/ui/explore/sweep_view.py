"""A sweep's report in the words and rows of the page: provenance, table, CSV.

A report is the JSON that `python -m dynamo sweep` writes; nothing here knows how it was measured, nor gradio.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from dynamo.common.bidi import in_html

Report = Mapping[str, Any]

# Label of a measure's button, and what to make of it.
MEASURES = {
    "nats_per_token": (
        "Nats per token",
        "How much the replies surprise the base model. Lower is not automatically better: thresholds cut the "
        "tail, and dull text scores low. The dotted line is the base model's own replies.",
    ),
    "share_below_1_percent": (
        "Unlikely tokens",
        "Tokens that the base model gives less than 1 %: what it would hardly have written itself. It writes "
        "some too, the dotted line.",
    ),
    "share_outside_top_50": (
        "Outside the top 50",
        "Tokens that are not among the base model's 50 likeliest: it could not have sampled them here.",
    ),
    "repetition": ("Repetition", "4-grams that stood in the same reply before; short replies have few."),
    "distinct_2": (
        "Diversity",
        "Different pairs of tokens over all pairs, in the replies to one prompt: 1 repeats nothing.",
    ),
}


UNKNOWN_MACHINE = dict.fromkeys(("device", "dtype", "torch", "transformers", "date"), "unknown")


# What a low threshold costs most is shown first.
_FIRST = ("distinct_2", "share_below_1_percent")


def measures(report: Report) -> list[tuple[str, str]]:
    """(label, name) of the measures that a report has, as choices."""
    names = sorted(report["quality"], key=lambda name: (*_FIRST, name).index(name))
    return [(MEASURES.get(name, (name.replace("_", " "),))[0], name) for name in names]


def measure_in_words(report: Report, measure: str) -> str:
    """What a measure is and how to read it, HTML."""
    words = MEASURES[measure][1] if measure in MEASURES else str(report["quality"][measure])
    return f'<div class="dm-explore"><p>{in_html(words)}</p></div>'


def thresholds(report: Report) -> list[float]:
    return sorted(point["threshold"] for point in report["points"])


def provenance(report: Report, *, here: bool) -> str:
    """What was run on what, HTML. here: measured by this visitor, not shipped."""
    machine = UNKNOWN_MACHINE | report["machine"]
    threads = f", {_plural(machine.get('threads'), 'thread')}" if machine.get("device_type") == "cpu" else ""
    facts = [
        f"model {report['model']}",
        f"{report['prompts']} prompts, {_plural(report['seeds'], 'seed')}, "
        f"replies of at most {report['max_new_tokens']} tokens",
        f"{machine['device']}{threads}, {machine['dtype']}",
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        str(machine["date"]),
    ]
    return _marked(f"{'; '.join(facts)}. Intervals: 95 %, over prompts.", here)


def calibration_provenance(report: Report, *, here: bool) -> str:
    """The same for its calibration."""
    positions = max((curve["positions"] for curve in report["calibration"]), default=0)
    return _marked(
        f"model {report['model']}; {positions} positions; {(UNKNOWN_MACHINE | report['machine'])['date']}.",
        here,
    )


def _marked(text: str, here: bool) -> str:
    badge = "measured here" if here else "shipped"
    return f'<div class="dm-explore"><p><span class="dm-badge">{badge}</span>{in_html(text)}</p></div>'


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the points, the base model's own first, for people."""
    orders = _orders(report)
    headers = ["threshold", "speed-up", "tokens per pass", f"passes of {' / '.join(orders)}, %", "backed off"]
    headers += [label for label, _ in measures(report)]
    rows = []
    for point in (report["base"], *report["points"]):
        shares = " / ".join(f"{100 * point['share_by_order'].get(order, 0):.0f}" for order in orders)
        rows.append(
            [
                "base" if point["threshold"] is None else f"{point['threshold']:g}",
                _interval(point["speed_up"], "×"),
                _interval(point["tokens_per_forward"]),
                shares,
                f"{100 * point['backoff_rate']:.0f} %",
                *(
                    _interval(point["quality"][name], "" if name == "nats_per_token" else " %")
                    for _, name in measures(report)
                ),
            ]
        )
    return headers, rows


def to_csv(report: Report) -> str:
    """The points with every digit, one line each, the base model's own first with an empty threshold."""
    orders, names = _orders(report), list(report["quality"])
    estimates = ["speed_up", "tokens_per_forward", *names]
    header = ["threshold", "replies", "tokens", "passes", "tokens_per_second", "backoff_rate"]
    header += [f"share_{order}" for order in orders]
    header += [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(header)
    for point in (report["base"], *report["points"]):
        cells = [point[name] for name in header[:6]]
        cells += [point["share_by_order"].get(order, 0.0) for order in orders]
        for name in estimates:
            estimate = point["quality"][name] if name in names else point[name]
            cells += [estimate[end] for end in ("value", "low", "high")]
        writer.writerow(cells)
    return written.getvalue()


def _orders(report: Report) -> list[str]:
    most = max((int(order) for point in report["points"] for order in point["share_by_order"]), default=1)
    return [str(order) for order in range(1, most + 1)]


def _interval(estimate: Mapping[str, float], unit: str = "") -> str:
    scale, digits = (100, 1) if "%" in unit else (1, 2)
    value, low, high = (f"{scale * estimate[end]:.{digits}f}" for end in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
