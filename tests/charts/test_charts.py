"""Figures say what their data says, escape what they are given, and are readable on both cards."""

import json
import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from fakes import HOSTILE, ScriptedEngine, Vocabulary
from figures import every_figure, joint_line, marks
from sweep_rows import report

from dynamo import charts
from dynamo.charts import look
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import BackOff
from dynamo.trace.ndjson import PassLine


def texts_of(figure: go.Figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=str, ensure_ascii=False)


# ---- look


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 %"), (1, "100 %"), (0.0912, "9.1 %"), (0.25, "25 %"), (0.00034, "0.034 %"), (1e-7, "< 0.001 %")],
)
def test_percentages_are_written_as_the_scripts_write_them(value, words):
    assert look.percent(value) == words


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("card", ["#ffffff", "#181b20"])
@pytest.mark.parametrize("colour", [*look.ORDERS.values(), look.BACK_OFF])
def test_marks_stand_out_on_the_light_and_on_the_dark_card(colour, card):
    light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_heat_gets_lighter_all_the_way():
    levels = [luminance(colour) for colour in look.HEAT]
    assert levels == sorted(levels) and len(set(levels)) == len(levels)


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" cat", "·cat"), ("\n", "⏎"), ("a\tb", "a⇥b"), ("<b>&", "&lt;b&gt;&amp;"), ("x" * 40, "x" * 15 + "…")],
)
def test_tokens_beside_an_axis_are_visible_plain_and_short(token, shown):
    assert look.tick(token) == shown


# ---- the joint of one pass


def test_colours_are_logarithmic_and_removed_cells_have_none():
    line = joint_line()
    figure = charts.joint_heatmap(line)
    (heat,) = figure.select_traces(selector={"type": "heatmap"})
    assert (heat.zmin, heat.zmax) == (-4, 0)
    assert line.grid[5, 6] == 0
    for row in range(12):
        for column in range(12):
            value, drawn = line.grid[row, column], heat.z[row][column]
            assert drawn is None if value == 0 else drawn == pytest.approx(math.log10(max(value, 1e-4)))
    hatched = marks(figure, "removed")
    drawn = set(zip(hatched.y, hatched.x, strict=True))
    assert drawn == {tuple(cell) for cell in np.argwhere(line.grid == 0).tolist()}
    assert heat.hovertext[5][6].startswith("·w5 + ·w18: removed by the mask<br>product ")


def test_the_product_is_of_the_first_two_heads_and_removes_nothing():
    line = joint_line()
    figure = charts.joint_heatmap(line, "product")
    (heat,) = figure.select_traces(selector={"type": "heatmap"})
    expected = np.log10(np.maximum(np.outer(*line.probabilities), 1e-4))
    np.testing.assert_allclose(np.array(heat.z, dtype=float), expected)
    assert len(marks(figure, "removed").x) == 0


def test_a_correlators_rows_are_drawn_as_what_they_are():
    line = replace(joint_line(), correction="correlator", given=np.full((12, 12), 0.05))
    figure = charts.joint_heatmap(line)
    (heat,) = figure.select_traces(selector={"type": "heatmap"})
    np.testing.assert_allclose(np.array(heat.z, dtype=float), math.log10(0.05))
    assert len(marks(figure, "removed").x) == 0
    assert "given the token before" in note(figure) and "third token" not in note(figure)


def test_a_cell_says_its_pair_and_its_share():
    line = joint_line(order=2, picked=(0, 12))
    (heat,) = charts.joint_heatmap(line).select_traces(selector={"type": "heatmap"})
    value, product = line.grid[0, 0], line.probabilities[0][0] * line.probabilities[1][0]
    words = f"·w0 + ·w12: {look.percent(value)}<br>product {look.percent(product)}"
    assert heat.hovertext[0][0] == words


def note(figure: go.Figure) -> str:
    return figure.layout.annotations[0].text


def test_the_sampled_cell_has_a_ring():
    figure = charts.joint_heatmap(joint_line(picked=(1, 14, 24)))
    assert {(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes} == {(1.5, 2.5, 0.5, 1.5)}
    assert {s.line.color for s in figure.layout.shapes} == {"#000", "#fff"}  # visible on every colour
    assert "ring: sampled" in note(figure) and "third token" in note(figure)


def test_a_sampled_cell_that_is_not_shown_is_told_in_words():
    figure = charts.joint_heatmap(joint_line(size=5, picked=(1, 20, 24)))
    assert not figure.layout.shapes
    assert "the sampled pair is not shown" in note(figure)


def test_a_joint_that_was_given_up_has_no_ring():
    figure = charts.joint_heatmap(joint_line(picked=(0,)))
    assert not figure.layout.shapes and "nothing was sampled from it" in note(figure)


def test_there_are_only_two_stages_to_draw():
    with pytest.raises(ValueError, match='expected "mask" or "product", got \'threshold\''):
        charts.joint_heatmap(joint_line(), "threshold")


# ---- the passes of one run


def passes(threshold: float, answer: str | None = None) -> list[PassLine]:
    vocabulary = Vocabulary(answer) if answer else Vocabulary("one two three four five six . " * 8)
    engine, decoder = ScriptedEngine(vocabulary, 3), vocabulary.decoder()
    records = engine.stream([0], SamplingOptions(threshold=threshold), 256, seed=2)
    return [PassLine.from_record(i, record, decoder.push(record.tokens)) for i, record in enumerate(records)]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9])
def test_every_order_that_was_tried_is_a_mark_on_its_side_of_the_bar(threshold):
    lines = passes(threshold)
    figure = charts.backoff_timeline(lines, threshold)
    tried = {(line.index + 1, each.order, False) for line in lines for each in line.backoffs}
    tried |= {(line.index + 1, line.order, True) for line in lines if line.order > 1}
    drawn = set()
    for order in (2, 3):
        for kept, name in ((True, f"{order} above the bar"), (False, f"{order} backed off")):
            for trace in [trace for trace in figure.data if trace.name == name]:
                drawn |= {(x, order, kept) for x in trace.x}
                assert all((y > threshold ** (order - 1)) == kept for y in trace.y)
    assert drawn == tried


def test_bars_show_the_tokens_of_every_pass():
    lines = passes(0.5)
    bars = [trace for trace in charts.backoff_timeline(lines, 0.5).data if trace.type == "bar"]
    heights = {x: y for bar in bars for x, y in zip(bar.x, bar.y, strict=True)}
    assert heights == {line.index + 1: len(line.tokens) for line in lines}


@pytest.mark.parametrize(("threshold", "kind"), [(0.5, "linear"), (0.1, "log"), (0.0, "log")])
def test_a_low_bar_is_drawn_on_a_logarithmic_axis(threshold, kind):
    figure = charts.backoff_timeline(passes(threshold), threshold)
    assert (figure.layout.yaxis.type or "linear") == kind


def test_the_bars_are_named_with_where_they_come_from():
    names = {trace.name for trace in charts.backoff_timeline(passes(0.5), 0.5).data}
    assert {"3 must exceed 25 % = 0.5²", "2 must exceed 50 % = ε"} <= names


def test_a_back_off_tells_its_reason():
    line = PassLine(
        4, (7,), (" so",), 1, 2.0,
        backoffs=(BackOff(3, "mask", 0.0, 0.25), BackOff(2, "penalty", 0.6, 0.5)), best=0.6,
    )  # fmt: skip
    figure = charts.backoff_timeline([line], 0.5)
    story = marks(figure, "2 backed off").hovertext[0]
    assert story == (
        "Pass 5: 1 token<br>·so<br>tried 3: best 0 % of 25 %, none occurs in the training text"
        "<br>tried 2: best 60 % of 50 %, none left above it after the repetition penalty"
    )


def test_in_exact_mode_a_joint_is_of_the_drafts_and_has_no_bar():
    """The threshold at which drafting stops is about another number, and was drawn as the joint's bar."""
    lines = [
        PassLine(0, (1,), ("a",), 1, 1.0, drafted=(2, 3), best=0.2),
        PassLine(1, (2, 4), (" b", " c"), 2, 1.0, drafted=(5,), rejected=(" <x>",), best=0.3),
        PassLine(2, (5, 6), (" d", " e"), 2, 1.0, best=0.4),
    ]
    figure = charts.backoff_timeline(lines, None)
    three, two = marks(figure, "2 drafts"), marks(figure, "1 draft")
    assert (three.x, three.y, two.x, two.y) == ((1,), (0.2,), (2,), (0.3,))
    assert two.hovertext[0].endswith("<br>1 draft: best 30 %<br>rejected: ·&lt;x&gt;")
    assert not any("must exceed" in (trace.name or "") for trace in figure.data)
    assert "no bar to exceed" in figure.layout.title.text


@pytest.mark.parametrize("lines", [[], [PassLine(0, (1,), ("a",), 1, 1.0)]])
def test_a_run_without_joints_is_drawn_and_says_so(lines):
    figure = charts.backoff_timeline(lines, 1.0)
    assert [each.text for each in figure.layout.annotations] == ["No pass built a joint."]


def test_the_longest_answer_stays_a_small_figure():
    lines = passes(0.9, "one two three four five six . " * 80)
    assert len(lines) > 150
    assert len(charts.backoff_timeline(lines, 0.9).to_json()) < 200_000


# ---- all of them


def test_hostile_text_reaches_no_label_as_markup():
    for figure in every_figure(HOSTILE):
        written = texts_of(figure)
        assert "<img" not in written and "<b>" not in written


def test_figures_are_clear_of_any_background_and_template():
    for figure in every_figure():
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert not figure.layout.template.layout.to_plotly_json()
        assert "NaN" not in figure.to_json()


@pytest.mark.parametrize("draw", [charts.sweep_shares, charts.calibration, charts.votes_chart])
def test_nothing_measured_is_an_empty_figure(draw):
    figure = draw([])
    assert not any(len(trace.x) for trace in figure.data if trace.name != "honest")  # the line to hold it to
    assert json.loads(figure.to_json())["layout"]["yaxis"]


def test_a_sweep_that_has_only_its_base_shows_the_base():
    base = report([])["base"]
    figure = charts.sweep_speed_quality([], "repetition", 0.5, base)
    (drawn,) = (trace for trace in figure.data if len(trace.x))
    assert (drawn.name, drawn.x, drawn.y) == ("base model", (1.0,), (base["quality"]["repetition"]["value"],))
