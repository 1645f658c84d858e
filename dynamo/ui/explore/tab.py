"""The Explore tab: what the back-off threshold buys and what it costs, measured over many prompts.

It shows a sweep's report (`dynamo.ui.explore.sweep_view` words it, `dynamo.charts` draws it), shipped with
the pair or run here (`dynamo.ui.explore.sweep_run`), and what visitors voted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.sampling.sampler import SamplingOptions
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.components import ASSETS
from dynamo.ui.explore import sweep_view
from dynamo.ui.explore.sweep_run import RunSweep, Updates, run_section
from dynamo.ui.explore.sweep_view import Report
from dynamo.ui.wiring import QUIET

log = logging.getLogger(__name__)

EXPLORE, COMPARE = "Explore", "compare"  # label of this tab, id of the other

_INTRO = """<div class="dm-explore"><h2>What the threshold buys, and what it costs</h2>
<p>The same prompts at every back-off threshold, in turn with the base model on the same machine.</p></div>"""
_EMPTY = """<div class="dm-explore"><p class="dm-empty">No sweep for this model yet; run
<code>python -m dynamo sweep</code></p></div>"""
_SPEED = """<div class="dm-explore"><h3>Quality against speed</h3></div>"""
_SHARES = """<div class="dm-explore"><h3>How many tokens a pass emits</h3></div>"""
_CALIBRATION = """<div class="dm-explore"><h2>Is its confidence honest?</h2>
<p>DynaMo backs off by the largest value of the joint. At random positions of held-out text: how often were
the tokens of that cell what the text says next (filled), and what the base model would have written (open)?
On the dashed line a confidence of 60 % is right 60 times in 100; "off by" is the mean distance
from it.</p></div>"""
_VOTES = """<div class="dm-explore"><h2>Blind votes</h2>
<p>Of the visitors who preferred one answer in a blind duel of the pair that is loaded, how many preferred
DynaMo's, with 95 % Wilson intervals. Above the dashed line DynaMo is preferred.</p></div>"""
_DOWNLOAD = (ASSETS / "explore" / "download.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class ExploreTab:
    """use: the event that carries a threshold to Compare, has set its slider and switched the tab; outputs:
    what `show` updates, so that the tab is about another pair's sweep, None where it has none.
    """

    use: Any
    outputs: list[Any]
    show: Callable[[Report | None], Updates]


def explore_tab(
    report: Report | None,
    run_sweep: RunSweep | None,
    threshold: gr.Slider,
    tabs: gr.Tabs,
    book: VoteBook | None = None,
    model: Callable[[], str | None] = lambda: None,
    bits: Callable[[], int | None] = lambda: None,
) -> ExploreTab:
    """Builds the tab inside a `gr.Tab("Explore")`.

    report: the sweep to begin with; run_sweep: what may measure one here (`dynamo.ui.explore.sweep_run`);
    threshold, tabs: Compare's slider and the page's tabs, Compare having the id "compare"; book: votes to
    chart; model: the name of the pair that is loaded now, whose votes they are, None for all; bits: of its
    weights, 0 where they are not quantised, None for all.
    """
    kept = gr.State(report)
    votes = partial(_votes_chart, book, model, bits)
    parts = _Parts.build(report, votes() if book else None, voting=book is not None)
    parts.measure.input(
        lambda report, measure, at: (_speed_quality(report, measure, at), _told(report, measure)),
        [kept, parts.measure, threshold],
        [parts.speed, parts.note],
        **QUIET,
    )
    tabs.select(_redraw(votes), [kept, parts.measure, threshold], [parts.speed, parts.votes], **QUIET)
    use = parts.use.click(
        lambda chosen: (chosen, gr.Tabs(selected=COMPARE)), parts.chosen, [threshold, tabs], **QUIET
    )
    parts.download.click(None, parts.csv, None, js=_DOWNLOAD, api_visibility="private")
    if run_sweep is not None:
        run_section(
            run_sweep,
            [parts.measure, threshold],
            [kept, *parts.reporting()],
            lambda report, measure, at: {kept: report, **parts.measured(report, measure, at)},
        )

    def show(report: Report | None) -> Updates:
        if report is not None:
            about = parts.measured(report, None, None, here=False)
        else:
            about = {parts.empty: gr.update(visible=True), parts.content: gr.update(visible=False)}
        return {kept: report, parts.votes: votes(), **about}

    return ExploreTab(use, [kept, parts.votes, *parts.reporting()], show)


@dataclass(frozen=True)
class _Parts:
    """What events read or write."""

    empty: gr.HTML
    content: gr.Column
    caption: gr.HTML
    measure: gr.Radio
    note: gr.HTML
    speed: gr.Plot
    shares: gr.Plot
    chosen: gr.Dropdown
    use: gr.Button
    download: gr.Button
    csv: gr.Textbox
    table: gr.Dataframe
    honest: gr.Column
    positions: gr.HTML
    calibration: gr.Plot
    votes: gr.Plot

    @classmethod
    def build(cls, report: Report | None, votes: Any, voting: bool) -> _Parts:
        values = _values(report, here=False) if report else {}
        parts: dict[str, Any] = {}

        def place(name: str, kind: type, **options: Any) -> None:
            parts[name] = kind(**{**options, **values.get(name, {})})

        gr.HTML(_INTRO)
        parts["empty"] = gr.HTML(_EMPTY, visible=report is None)
        with gr.Column(visible=report is not None) as parts["content"]:
            place("caption", gr.HTML)
            place("measure", gr.Radio, label="Quality measure", elem_id="measure")
            place("note", gr.HTML)
            with gr.Row():
                with gr.Column(min_width=320):
                    gr.HTML(_SPEED)
                    place("speed", gr.Plot, show_label=False, elem_id="sweep-speed")
                with gr.Column(min_width=320):
                    gr.HTML(_SHARES)
                    place("shares", gr.Plot, show_label=False, elem_id="sweep-shares")
            with gr.Row(elem_classes="dm-use"):
                place(
                    "chosen",
                    gr.Dropdown,
                    label="Threshold ε",
                    min_width=140,
                    scale=0,
                    elem_id="sweep-threshold",
                )
                parts["use"] = gr.Button(
                    "Use this threshold in Compare", min_width=300, scale=0, size="md", elem_id="sweep-use"
                )
                parts["download"] = gr.Button(
                    "Download CSV", min_width=180, scale=0, size="md", elem_id="sweep-csv"
                )
            place("csv", gr.Textbox, visible=False)
            place(
                "table",
                gr.Dataframe,
                label="The same numbers",
                interactive=False,
                pinned_columns=1,
                elem_id="sweep-table",
            )
            with gr.Column(visible=bool(report and report["calibration"])) as parts["honest"]:
                gr.HTML(_CALIBRATION)
                place("positions", gr.HTML)
                place("calibration", gr.Plot, show_label=False, elem_id="calibration")
        with gr.Column(visible=voting):
            gr.HTML(_VOTES)
            place("votes", gr.Plot, value=votes, show_label=False, elem_id="votes-chart")
        return cls(**parts)

    def measured(
        self, report: Report, measure: str | None, at: float | None, here: bool = True
    ) -> dict[Any, Any]:
        """Updates of everything that shows a report; here: for one that is being measured here."""
        values = _values(report, here=here, measure=measure, at=at)
        return {
            self.empty: gr.update(visible=False),
            self.content: gr.update(visible=True),
            **({self.honest: gr.update(visible=True)} if report["calibration"] else {}),
            **{getattr(self, name): gr.update(**value) for name, value in values.items()},
        }

    def reporting(self) -> list[Any]:
        """What `measured` may update."""
        others = (self.use, self.download, self.votes)
        return [part for part in vars(self).values() if part not in others]


def _values(
    report: Report, *, here: bool, measure: str | None = None, at: float | None = None
) -> dict[str, dict[str, Any]]:
    """What each part of `_Parts` shows of a report, as keywords of its component."""
    choices = sweep_view.measures(report)
    measure = measure or choices[0][1]
    thresholds = sweep_view.thresholds(report)
    headers, rows = sweep_view.table(report)
    at = SamplingOptions().threshold if at is None else at
    nearest = min(thresholds, key=lambda threshold: abs(threshold - at), default=None)
    curves = report["calibration"]
    calibration = {
        "calibration": {"value": charts.calibration(curves)},
        "positions": {"value": sweep_view.calibration_provenance(report, here=here)},
    }
    return {
        "caption": {"value": sweep_view.provenance(report, here=here)},
        "measure": {"choices": choices, "value": measure},
        "note": {"value": _told(report, measure)},
        "speed": {"value": _speed_quality(report, measure, at)},
        "shares": {"value": charts.sweep_shares(report["points"])},
        "chosen": {"choices": [(f"{t:g}", t) for t in thresholds], "value": nearest},
        "csv": {"value": sweep_view.to_csv(report)},
        "table": {"value": rows, "headers": headers},
        **(calibration if curves else {}),  # a sweep without keeps that of the one before
    }


def _speed_quality(report: Report | None, measure: str, at: float | None) -> Any:
    if not report:
        return None
    return charts.sweep_speed_quality(report["points"], measure, at, report["base"])


def _told(report: Report | None, measure: str) -> str:
    return sweep_view.measure_in_words(report, measure) if report else ""


def _redraw(votes: Callable[[], Any]) -> Callable[..., tuple[Any, Any]]:
    """For whoever comes to this tab: Compare's slider may have moved, others may have voted."""

    def redraw(report: Report | None, measure: str, at: float, event: gr.SelectData) -> tuple[Any, Any]:
        if event.value != EXPLORE:
            return gr.skip(), gr.skip()
        return _speed_quality(report, measure, at), votes()

    return redraw


def _votes_chart(
    book: VoteBook | None, model: Callable[[], str | None], bits: Callable[[], int | None] = lambda: None
) -> Any:
    if book is None:
        return None
    try:
        return charts.votes_chart([standing.to_json() for standing in book.summary(model(), bits())])
    except (ValueError, OSError) as error:
        log.warning("no chart of the votes: %s", error)
        return None
