"""Figures of sweeps and of votes: points, intervals and shares are those of the data."""

import pytest
from figures import marks, standing
from sweep_rows import THRESHOLDS, curve, report

from dynamo import charts

# ---- sweeps


@pytest.mark.parametrize("measure", report()["quality"])
def test_every_threshold_is_a_point_with_its_intervals(measure):
    sweep = report()
    trace = marks(charts.sweep_speed_quality(sweep["points"], measure), "DynaMo at threshold ε")
    for i, point in enumerate(sweep["points"]):
        for value, drawn, error in (
            (point["speed_up"], trace.x, trace.error_x),
            (point["quality"][measure], trace.y, trace.error_y),
        ):
            assert drawn[i] == value["value"]
            assert drawn[i] + error.array[i] == pytest.approx(value["high"])
            assert drawn[i] - error.arrayminus[i] == pytest.approx(value["low"])
        assert f"ε = {point['threshold']:g}<br>" in trace.hovertext[i]


def test_points_are_joined_in_the_order_of_their_thresholds():
    points = report()["points"]
    trace = marks(charts.sweep_speed_quality(points[::-1], "repetition"), "DynaMo at threshold ε")
    assert list(trace.x) == [point["speed_up"]["value"] for point in points]


@pytest.mark.parametrize(("current", "nearest"), [(0.5, 0.5), (0.64, 0.7), (0.95, 1.0)])
def test_the_point_nearest_to_the_slider_is_marked(current, nearest):
    points = report()["points"]
    figure = charts.sweep_speed_quality(points, "nats_per_token", current)
    mark = marks(figure, f"nearest to Compare's {current:g}")
    assert mark.x[0] == next(p["speed_up"]["value"] for p in points if p["threshold"] == nearest)
    assert f"{nearest:g}" in marks(figure, "DynaMo at threshold ε").text


def test_labels_that_would_cover_each_other_are_left_out():
    points = report([0.5, 0.5001, 0.5002, 1.0])["points"]
    labels = marks(charts.sweep_speed_quality(points, "repetition"), "DynaMo at threshold ε").text
    assert labels == ("0.5", "", "", "1")


def test_the_base_model_is_a_point_at_one_and_a_line():
    sweep = report()
    figure = charts.sweep_speed_quality(sweep["points"], "distinct_2", base=sweep["base"])
    level = sweep["base"]["quality"]["distinct_2"]["value"]
    assert (marks(figure, "base model").x, marks(figure, "base model").y) == ((1.0,), (level,))
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == level


def test_an_unknown_measure_is_refused_by_name():
    with pytest.raises(ValueError, match="measure: "):
        charts.sweep_speed_quality(report()["points"], "beauty")


def test_shares_of_a_threshold_add_up_to_all_passes():
    figure = charts.sweep_shares(report()["points"])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars] == ["1 token", "2 tokens", "3 tokens"]
    for i in range(len(THRESHOLDS)):
        assert sum(bar.y[i] for bar in bars) == pytest.approx(1)
    assert figure.layout.barmode == "stack"


def test_threshold_one_tries_nothing_and_so_has_no_back_off_rate():
    line = marks(charts.sweep_shares(report()["points"]), "backed off")
    assert list(line.x) == [0.0, 0.3, 0.5, 0.7] and list(line.y) == [0.0, 0.3, 0.5, 0.7]


def test_a_bin_of_the_reliability_diagram_has_its_wilson_interval():
    row = curve(3, "text").to_json()
    figure = charts.calibration([row])
    (trace,) = [trace for trace in figure.data if trace.name.startswith("3 tokens, held-out text")]
    bins = [each for each in row["bins"] if each["count"]]
    assert len(bins) == len(row["bins"]) - 1, "an empty bin has no mark"
    assert list(trace.x) == [each["confidence"] for each in bins]
    for i, each in enumerate(bins):
        low, high = trace.y[i] - trace.error_y.arrayminus[i], trace.y[i] + trace.error_y.array[i]
        assert (low, high) == pytest.approx(tuple(each["interval"]))
    diagonal = marks(figure, "honest")
    assert (diagonal.x, diagonal.y) == ((0, 1), (0, 1))


# ---- votes


def test_votes_are_drawn_with_their_interval_and_undecided_ones_are_not():
    rows = [
        standing(),
        standing(0.7, wins=0, losses=0),
        standing(0.9, speed_up=None),
        standing(1.0, losses=0),
    ]
    (trace,) = charts.votes_chart(rows).data
    assert (trace.x, trace.y) == ((2.0, 2.0), (6 / 9, 1.0))
    assert trace.y[0] + trace.error_y.array[0] == pytest.approx(0.9)
    assert trace.y[0] - trace.error_y.arrayminus[0] == pytest.approx(0.3)
    assert "6 won, 1 tied, 3 lost (2.00 wins per loss)" in trace.hovertext[0]
    assert "no loss" in trace.hovertext[1]


def test_without_votes_there_is_a_sentence():
    assert charts.votes_chart([]).layout.annotations[0].text == "No decided votes yet."
