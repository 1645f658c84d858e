"""The Explore tab: what the back-off threshold buys and what it costs, measured over many prompts.

It shows a sweep's report (`dynamo.ui.explore.sweep_view` words it, `dynamo.charts` draws it), shipped with
the pair or run here (`dynamo.ui.explore.sweep_run`), and what visitors voted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.sampling.options import SamplingOptions
from dynamo.ui.compare.votes import Standing
from dynamo.ui.components import ASSETS, IN_BROWSER, QUIET
from dynamo.ui.explore import sweep_view
from dynamo.ui.explore.sweep_run import RunSweep, Updates, run_section
from dynamo.ui.explore.sweep_view import Report

log = logging.getLogger(__name__)

EXPLORE, COMPARE = "Explore", "compare"  # label of this tab, id of the other

_INTRO = """<div class="dm-explore"><h2>What the threshold buys, and what it costs</h2>
<p>The same prompts at every back-off threshold, in turn with the base model on the same machine.</p></div>"""
_EMPTY = """<div class="dm-explore"><p class="dm-empty">No sweep for this model yet; run
<code>python -m dynamo sweep</code></p></div>"""
_SPEED = """<div class="dm-explore"><h3>Quality against speed: arrows point to higher thresholds</h3></div>"""
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


class ExploreTab:
    """Builds the tab inside a `gr.Tab("Explore")`; its attributes are what events read or write.

    report: the sweep to begin with; run_sweep: what may measure one here (`dynamo.ui.explore.sweep_run`);
    threshold, tabs: Compare's slider and the page's tabs, Compare having the id "compare"; standings: the
    votes on the pair that is loaded now, None without voting.
    """

    def __init__(
        self,
        report: Report | None,
        run_sweep: RunSweep | None,
        threshold: gr.Slider,
        tabs: gr.Tabs,
        standings: Callable[[], list[Standing]] | None = None,
    ):
        self._standings = standings
        self.kept = gr.State(report)
        self._build(report)
        self._connect(threshold, tabs)
        if run_sweep is not None:
            run_section(
                run_sweep,
                [self.measure, threshold],
                [self.kept, *self._reporting()],
                lambda report, measure, at: {self.kept: report, **self._measured(report, measure, at)},
            )

    @property
    def outputs(self) -> list[Any]:
        """What `show` may update."""
        return [self.kept, self.votes, *self._reporting()]

    def show(self, report: Report | None) -> Updates:
        """Updates with which the tab is about another pair's sweep, None where it has none."""
        if report is not None:
            about = self._measured(report, None, None, here=False)
        else:
            about = {self.empty: gr.update(visible=True), self.content: gr.update(visible=False)}
        return {self.kept: report, self.votes: self._votes_chart(), **about}

    def _build(self, report: Report | None) -> None:
        values = defaultdict(dict, _values(report, here=False) if report else {})
        button = {"scale": 0, "size": "md"}
        gr.HTML(_INTRO)
        self.empty = gr.HTML(_EMPTY, visible=report is None)
        with gr.Column(visible=report is not None) as self.content:
            self.caption = gr.HTML(**values["caption"])
            self.measure = gr.Radio(label="Quality measure", elem_id="measure", **values["measure"])
            self.note = gr.HTML(**values["note"])
            with gr.Row():
                with gr.Column(min_width=320):
                    gr.HTML(_SPEED)
                    self.speed = gr.Plot(show_label=False, elem_id="sweep-speed", **values["speed"])
                with gr.Column(min_width=320):
                    gr.HTML(_SHARES)
                    self.shares = gr.Plot(show_label=False, elem_id="sweep-shares", **values["shares"])
            with gr.Row(elem_classes="dm-use"):
                self.chosen = gr.Dropdown(
                    label="Threshold ε",
                    min_width=140,
                    scale=0,
                    elem_id="sweep-threshold",
                    **values["chosen"],
                )
                self.use = gr.Button(
                    "Use this threshold in Compare", min_width=300, elem_id="sweep-use", **button
                )
                self.download = gr.Button("Download CSV", min_width=180, elem_id="sweep-csv", **button)
            self.csv = gr.Textbox(visible=False, **values["csv"])
            self.table = gr.Dataframe(
                label="The same numbers",
                interactive=False,
                wrap=True,
                pinned_columns=1,
                column_widths=["9%", "10%", "10%", "10%", "7%", *["10.8%"] * len(sweep_view.MEASURES)],
                elem_id="sweep-table",
                **values["table"],
            )
            with gr.Column(visible=bool(report and report["calibration"])) as self.honest:
                gr.HTML(_CALIBRATION)
                self.positions = gr.HTML(**values["positions"])
                self.calibration = gr.Plot(show_label=False, elem_id="calibration", **values["calibration"])
        with gr.Column(visible=self._standings is not None):
            gr.HTML(_VOTES)
            self.votes = gr.Plot(self._votes_chart(), show_label=False, elem_id="votes-chart")

    def _connect(self, threshold: gr.Slider, tabs: gr.Tabs) -> None:
        shown = [self.kept, self.measure, threshold]
        self.measure.input(
            lambda report, measure, at: (_speed_quality(report, measure, at), _note(report, measure)),
            shown,
            [self.speed, self.note],
            **QUIET,
        )
        tabs.select(self._redraw, shown, [self.speed, self.votes], **QUIET)
        self.use.click(
            lambda chosen: (chosen, gr.Tabs(selected=COMPARE)), self.chosen, [threshold, tabs], **QUIET
        )
        self.download.click(None, self.csv, None, js=_DOWNLOAD, **IN_BROWSER)

    def _measured(
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

    def _reporting(self) -> list[Any]:
        """What `_measured` may update."""
        return [
            self.empty, self.content, self.caption, self.measure, self.note, self.speed, self.shares,
            self.chosen, self.csv, self.table, self.honest, self.positions, self.calibration,
        ]  # fmt: skip

    def _redraw(self, report: Report | None, measure: str, at: float, event: gr.SelectData) -> Any:
        """For whoever comes to this tab: Compare's slider may have moved, others may have voted."""
        if event.value != EXPLORE:
            return gr.skip(), gr.skip()
        return _speed_quality(report, measure, at), self._votes_chart()

    def _votes_chart(self) -> Any:
        if self._standings is None:
            return None
        try:
            return charts.votes_chart([standing.to_json() for standing in self._standings()])
        except (ValueError, OSError) as error:
            log.warning("no chart of the votes: %s", error)
            return None


def _values(
    report: Report, *, here: bool, measure: str | None = None, at: float | None = None
) -> dict[str, dict[str, Any]]:
    """What each component shows of a report, as keywords of its component."""
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
        "note": {"value": _note(report, measure)},
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


def _note(report: Report | None, measure: str) -> str:
    return sweep_view.measure_in_words(report, measure) if report else ""
