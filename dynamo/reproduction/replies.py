"""Two questions beyond the paper's tables: is the joint's confidence honest, and do replies stay with their
context when several tokens are emitted at once?"""

from __future__ import annotations

from typing import Any

from dynamo.charts.lines import lines
from dynamo.charts.sweeps import calibration as calibration_figure
from dynamo.data.sources import read_conversations
from dynamo.data.text import has_chat_template
from dynamo.decoding.engine import Engine
from dynamo.evaluation import calibration, next_turns
from dynamo.reproduction.estimates import curve, with_interval
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace
from dynamo.sampling.options import SamplingOptions

THRESHOLDS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
DEFAULTS = SamplingOptions()
JUDGED = DEFAULTS.threshold
HONEST = 0.05
TEMPERATURES = (DEFAULTS.temperature, 1.0)
NAMES = {
    "chrf": "chrF",
    "numbers_in_context": "numbers found in the context, %",
    "names_in_context": "names found in the context, %",
}


def measure_calibration(workspace: Workspace) -> dict[str, Any]:
    pair = workspace.pair
    orders = range(2, min(pair.dynamo.config.num_token_heads, pair.table.order if pair.table else 3) + 1)
    curves = {}
    for temperature in TEMPERATURES:
        workspace.progress(f"calibration: temperature {temperature:g}")
        curves[f"{temperature:g}"] = [
            curve.to_json()
            for curve in calibration.measure_calibration(
                pair.dynamo, pair.table, pair.base, workspace.documents,
                SamplingOptions(temperature=temperature), tuple(orders), workspace.sizes.positions,
                seed=workspace.seed,
            )
        ]  # fmt: skip
    return {"curves": curves}


def show_calibration(result: dict[str, Any]) -> Shown:
    curves = result["curves"]
    rows = tuple(
        (temperature, curve["order"], curve["meaning"], curve["positions"], _mean(curve, "confidence"),
         _mean(curve, "accuracy"), curve["expected_calibration_error"])
        for temperature, measured in curves.items()
        for curve in measured
    )  # fmt: skip
    columns = ("temperature", "tokens", "right is what", "positions", "mean confidence", "share right",
               "calibration error")  # fmt: skip
    own = {name: [c for c in measured if c["event"] == "text"] for name, measured in curves.items()}
    judged = own[f"{DEFAULTS.temperature:g}"]
    finding = Finding(
        "holds" if all(each["expected_calibration_error"] <= HONEST for each in judged) else "differs",
        "Expected calibration error against held-out text: "
        + "; ".join(
            f"at temperature {temperature} " + ", ".join(_error_in_words(curve) for curve in measured)
            for temperature, measured in own.items()
        )
        + ".",
    )
    table = Table("The joint's largest cell before thresholds", columns, rows)
    figures = {
        f"Reliability of the joint's confidence at temperature {temperature}": calibration_figure(measured)
        for temperature, measured in curves.items()
    }
    return Shown((table,), finding, figures)


def _error_in_words(curve: dict[str, Any]) -> str:
    return (
        f"{curve['expected_calibration_error']:.3f} for {curve['order']} tokens (confident "
        f"{_mean(curve, 'confidence'):.2f}, right {_mean(curve, 'accuracy'):.2f})"
    )


def _mean(curve: dict[str, Any], name: str) -> float:
    """Over all positions of a curve."""
    return sum(each["count"] * each[name] for each in curve["bins"]) / max(1, curve["positions"])


def measure_next_turns(workspace: Workspace) -> dict[str, Any]:
    pair = workspace.pair
    chats = list(read_conversations(workspace.validation))
    if not chats or not has_chat_template(pair.tokenizer):
        return {"places": 0, "rows": []}
    places = next_turns.places(chats, workspace.sizes.documents or len(chats), workspace.seed)
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    rows = next_turns.answer_places(engine, pair.tokenizer, places, THRESHOLDS, seed=workspace.seed)
    return {"places": len(places), "rows": [row.to_json() for row in rows]}


def show_next_turns(result: dict[str, Any]) -> Shown:
    if not result["rows"]:
        reason = "The held-out file has no conversations, or the model no chat template."
        return Shown((), Finding("cannot be tested here", reason))
    true, *rows = result["rows"]
    judged = next(row for row in rows if row["threshold"] == JUDGED)
    worse = [NAMES[name] for name, each in judged["against_one"].items() if each["high"] < 0]
    differences = ", ".join(
        f"{NAMES[name]} {_scaled(name, each)}" for name, each in judged["against_one"].items()
    )
    finding = Finding(
        "differs" if worse else "holds",
        f"At threshold {JUDGED:g} less those of threshold 1 on the same {result['places']} places: "
        f"{differences}. Worse beyond doubt: {', '.join(worse) or 'none'}.",
    )
    columns = ("replies", "tokens a pass", *NAMES.values())
    table = Table(
        f"Replies at {result['places']} places of held-out dialogues, 95 % intervals over places",
        columns,
        tuple(
            (
                _label(row),
                row["tokens_per_forward"],
                *(_scaled(name, row["measures"][name]) for name in NAMES),
            )
            for row in (true, *rows)
        ),
    )
    x = [row["threshold"] for row in rows]
    figures = {
        f"{title} against the threshold": lines(
            [curve(title, x, [row["measures"][name] for row in rows], _times(name))], "threshold", title
        )
        for name, title in NAMES.items()
    }
    return Shown((table,), finding, figures)


def _label(row: dict[str, Any]) -> str:
    return "the true turns" if row["threshold"] is None else f"threshold {row['threshold']:g}"


def _times(name: str) -> float:
    return 1 if name == "chrf" else 100


def _scaled(name: str, estimate: dict[str, float]) -> str:
    return with_interval(estimate, _times(name))


CALIBRATION = Experiment(
    name="calibration",
    title="Open question: is the joint's confidence honest?",
    paper="It thresholds the joint's largest value as if it were a probability, and does not check it.",
    rule="Holds if at the default temperature the expected calibration error against held-out text is at "
    f"most {HONEST:g} for every number of tokens.",
    run=measure_calibration,
    show=show_calibration,
    depends=("validation", "documents", "positions", "seed"),
    version=2,
)
NEXT_TURNS = Experiment(
    name="next-turns",
    title="Beyond the paper: replies against the true next turns",
    paper="Texts up to the same-quality speed-up are as good as the base's to a judge. So at the default "
    "threshold replies should be as near to the true turns, and stay as close to their context, as one token "
    "at a time.",
    rule=f"Holds if at threshold {JUDGED:g} none of chrF, the share of numbers and the share of names found "
    "in the context is below threshold 1's with its whole 95 % interval (paired over places).",
    run=measure_next_turns,
    show=show_next_turns,
    depends=("validation", "dialogues", "seed"),
)
