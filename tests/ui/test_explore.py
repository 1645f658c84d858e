"""The Explore tab without a browser: what it words, tabulates and hands on, and how a run in it ends."""

import csv
import io
import threading

import gradio as gr
import pytest
from sweep_rows import THRESHOLDS, growing, report

from dynamo.evaluation.calibration import EVENTS
from dynamo.evaluation.sweep_report import SweepReport
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.components import ASSETS
from dynamo.ui.explore import sweep_run, sweep_view, tab

SWEEP = ASSETS / "sweep.json"


class Request:
    def __init__(self, session_hash="visitor"):
        self.session_hash = session_hash


def build(shipped=None, run_sweep=None, book=None) -> gr.Blocks:
    with gr.Blocks() as demo, gr.Tabs() as tabs:
        with gr.Tab("Compare", id="compare"):
            threshold = gr.Slider(0, 1, 0.5)
        with gr.Tab("Explore", id="explore"):
            tab.ExploreTab(shipped, run_sweep, threshold, tabs, book and book.summary)
    return demo


def by_id(demo: gr.Blocks, elem_id: str):
    (found,) = [block for block in demo.blocks.values() if getattr(block, "elem_id", None) == elem_id]
    return found


# ---- words and rows


def test_the_csv_has_every_number_of_every_point():
    sweep = report()
    rows = list(csv.DictReader(io.StringIO(sweep_view.to_csv(sweep))))
    assert [row["threshold"] for row in rows] == ["", *(str(t) for t in THRESHOLDS)]
    for row, point in zip(rows, [sweep["base"], *sweep["points"]], strict=True):
        assert None not in row and None not in row.values()
        assert float(row["speed_up_low"]) == point["speed_up"]["low"]
        for order in ("1", "2", "3"):
            assert float(row[f"share_{order}"]) == point["share_by_order"].get(order, 0)
        for name, estimate in point["quality"].items():
            assert [float(row[name + end]) for end in ("", "_low", "_high")] == list(estimate.values())


def test_the_table_has_a_row_a_point_and_a_cell_a_header():
    headers, rows = sweep_view.table(report())
    assert [row[0] for row in rows] == ["base", "0", "0.3", "0.5", "0.7", "1"]
    assert {len(row) for row in rows} == {len(headers)}
    assert rows[1][:5] == ["0", "1.90× (1.85 to 1.95)", "2.80 (2.70 to 2.90)", "0 / 10 / 90", "0 %"]
    assert headers[3] == "passes of 1 / 2 / 3, %"


@pytest.mark.parametrize(("here", "badge"), [(False, "shipped"), (True, "measured here")])
def test_the_caption_says_what_ran_on_what_and_whose_numbers_they_are(here, badge):
    sentence = sweep_view.provenance(report(), here=here)
    for fact in (
        badge,
        "40 prompts, 1 seed,",
        "96 tokens",
        "2 threads, float32",
        "torch 2.13.0",
        "2026-11-21",
    ):
        assert fact in sentence
    assert "<b>processor" not in sentence and "&lt;b&gt;processor" in sentence


def test_every_measure_of_a_report_is_a_choice_with_a_sentence():
    sweep = report()
    names = [name for _, name in sweep_view.measures(sweep)]
    assert names[0] == "distinct_2" and sorted(names) == sorted(sweep["quality"])
    for name in sweep["quality"]:
        assert len(sweep_view.measure_in_words(sweep, name)) > 60


def test_a_measure_that_the_page_does_not_know_is_offered_under_its_name():
    sweep = {**report(), "quality": {"a_new_<measure>": "what <it> means"}}
    assert sweep_view.measures(sweep) == [("a new <measure>", "a_new_<measure>")]
    assert "what &lt;it&gt; means" in sweep_view.measure_in_words(sweep, "a_new_<measure>")


# ---- what stands on the tab


def test_without_a_sweep_the_tab_says_how_to_get_one():
    demo = build()
    written = " ".join(str(getattr(block, "value", "")) for block in demo.blocks.values())
    assert "No sweep for this model yet; run" in written and "python -m dynamo sweep" in written
    assert not any(getattr(block, "elem_id", None) == "sweep-run" for block in demo.blocks.values())


def test_the_sweep_that_is_shipped_tells_how_honest_the_confidence_is():
    """It was once measured anew without `--data`, and the section of the tab was gone."""
    shipped = SweepReport.read(SWEEP)
    assert {(curve.order, curve.event) for curve in shipped.calibration} == {
        (order, event) for order in (2, 3) for event in EVENTS
    }
    assert all(curve.count >= 1000 for curve in shipped.calibration)


def test_the_thresholds_offered_are_those_measured_and_the_default_is_chosen():
    chosen = by_id(build(report()), "sweep-threshold")
    assert [value for _, value in chosen.choices] == list(THRESHOLDS) and chosen.value == 0.5


def test_nothing_on_the_tab_is_an_endpoint_for_programs(tmp_path):
    demo = build(report(), growing, VoteBook(tmp_path))
    assert demo.fns and all(fn.api_visibility == "private" for fn in demo.fns.values())


def test_a_run_waits_for_the_model_like_any_other():
    demo = build(None, growing)
    runs = [fn for fn in demo.fns.values() if fn.name == "measure"]
    assert [(fn.concurrency_id, fn.concurrency_limit) for fn in runs] == [("model", 1)]


def test_using_a_threshold_sets_the_slider_and_turns_to_compare():
    demo = build(report())
    target = by_id(demo, "sweep-use")._id
    (use,) = [fn for fn in demo.fns.values() if (target, "click") in fn.targets]
    value, tabs = use.fn(0.7)
    assert value == 0.7 and tabs.selected == "compare"
    assert [type(block).__name__ for block in use.outputs] == ["Slider", "Tabs"]


class Selected:
    def __init__(self, value):
        self.value = value


def test_coming_to_the_tab_redraws_for_the_slider_and_for_new_votes(tmp_path):
    book = VoteBook(tmp_path)
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("Explore", id="explore"):
        built = tab.ExploreTab(None, None, gr.Slider(0, 1, 0.5), tabs, lambda: book.summary("m"))
    redraw = built._redraw
    speed, votes = redraw(report(), "repetition", 0.7, Selected("Explore"))
    assert any(trace.name == "nearest to Compare's 0.7" for trace in speed.data)
    assert len(votes.data[0].x) == 0
    book.add(model="m", options={"threshold": 0.5}, speed_up=2.0, tokens_per_forward=2.2, outcome="dynamo")
    assert len(redraw(None, "repetition", 0.7, Selected("Explore"))[1].data[0].x) == 1
    assert redraw(report(), "repetition", 0.7, Selected("About")) == (gr.skip(), gr.skip())


def test_the_votes_are_those_on_the_pair_that_is_loaded_now(tmp_path):
    book, loaded = VoteBook(tmp_path), "one"
    for model in ("one", "two", "two"):
        book.add(
            model=model, options={"threshold": 0.5}, speed_up=2.0, tokens_per_forward=2.2, outcome="dynamo"
        )
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("Explore", id="explore"):
        built = tab.ExploreTab(None, None, gr.Slider(0, 1, 0.5), tabs, lambda: book.summary(loaded))
    chart = next(each for each in built.outputs if each.elem_id == "votes-chart")
    assert "1 won" in built.show(None)[chart].data[0].hovertext[0]
    loaded = "two"
    assert "2 won" in built.show(None)[chart].data[0].hovertext[0]
    assert "2 won" in built.show(report())[chart].data[0].hovertext[0]


def test_votes_that_cannot_be_read_leave_the_tab_standing(tmp_path):
    (tmp_path / "votes.sqlite3").write_text("a shopping list" * 500)
    build(report(), None, VoteBook(tmp_path))


# ---- a run


def measured(run_sweep, stops=None, prompts=3, session="visitor"):
    shown = []
    handler = sweep_run._measure(
        run_sweep,
        lambda sweep, measure, at: shown.append((sweep, measure, at)) or {},
        stops or sweep_run.Stops(),
    )
    handler = handler(Request(session), lambda *_, **__: None, prompts, "repetition", 0.5)
    for _ in handler:
        pass
    return shown


def test_each_threshold_is_shown_when_it_is_measured():
    shown = measured(growing)
    assert [len(sweep["points"]) for sweep, _, _ in shown] == [1, 2, 3, 4, 5]
    assert all((measure, at) == ("repetition", 0.5) for _, measure, at in shown)
    assert shown[-1][0]["prompts"] == 3


@pytest.mark.parametrize(("asked", "run"), [(1e9, 40), (-5, 1), (3.0, 3)])
def test_a_program_cannot_ask_for_more_prompts_than_the_page_offers(asked, run):
    assert measured(growing, prompts=asked)[0][0]["prompts"] == run


def test_cancel_ends_a_run_between_two_replies_and_only_ones_own():
    stops = sweep_run.Stops()
    replies = []

    def slow(prompts, progress):
        for reply in range(100):
            replies.append(reply)
            if reply == 3:
                stops.stop("visitor")
            progress(reply + 1, 100)
            yield report(THRESHOLDS[:1])

    assert len(measured(slow, stops)) == 3 and len(replies) == 4
    replies.clear()
    assert len(measured(slow, stops, session="other")) == 100


def test_cancel_reaches_a_run_from_another_thread():
    stops, started = sweep_run.Stops(), threading.Event()

    def endless(prompts, progress):
        while True:
            started.set()
            progress(1, 2)
            yield report([])

    def cancel():
        started.wait(60)
        stops.stop("visitor")

    other = threading.Thread(target=cancel)
    other.start()
    assert measured(endless, stops) == []
    other.join(60)


def test_a_run_after_a_cancelled_one_starts_afresh():
    stops = sweep_run.Stops()
    stops.stop("visitor")
    assert len(measured(growing, stops)) == 5
    assert len(measured(growing, stops)) == 5


def test_a_failing_run_is_one_sentence():
    def failing(prompts, progress):
        yield report(THRESHOLDS[:1])
        raise ValueError("prompts: expected <one> or more")

    with pytest.raises(gr.Error) as error:
        measured(failing)
    assert error.value.message == "prompts: expected &lt;one&gt; or more"


def test_a_measured_sweep_updates_all_that_shows_one():
    """A measured sweep updates all that shows one and keeps the calibration of the shipped."""
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("Explore", id="explore"):
        parts = tab.ExploreTab(report(), None, gr.Slider(0, 1, 0.5), tabs)
    updates = parts._measured(report([0.1, 0.4], calibrated=False), "repetition", 0.38)
    assert set(updates) <= set(parts.outputs)
    assert parts.calibration not in updates and parts.honest not in updates
    assert updates[parts.chosen]["value"] == 0.4 and updates[parts.measure]["value"] == "repetition"
    assert "measured here" in updates[parts.caption]["value"]
    assert len(updates[parts.table]["value"]) == 3
    assert parts.calibration in parts._measured(report(), None, 0.5)
