"""The Explore and About tabs in a real browser, on a made-up sweep; figures by the Plotly that Gradio has."""

from __future__ import annotations

import html
import json
import time
from pathlib import Path

import gradio as gr
import pytest
from fakes import HOSTILE
from figures import every_figure
from pages import assert_accessible
from sweep_rows import growing, report

from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.components import ASSETS, style
from dynamo.ui.explore.tab import ExploreTab
from dynamo.ui.theme import theme

WIDE, PHONE = 1280, 375


def endless(prompts, progress):
    """Two thresholds, and then replies that come to no end while a test waits."""
    for number, sweep in enumerate(growing(prompts, progress)):
        if number == 3:
            for reply in range(600):
                time.sleep(0.5)
                progress(reply % 7, 7)
        yield sweep


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    book = VoteBook(tmp_path_factory.mktemp("votes"))
    book.add(model="m", options={"threshold": 0.5}, speed_up=2.0, tokens_per_forward=2.2, outcome="dynamo")
    about = (ASSETS / "about" / "about.html").read_text(encoding="utf-8")
    with gr.Blocks(title="Explore") as demo:
        gr.HTML("<h1>Explore</h1>")
        with gr.Tabs(selected="compare") as tabs:
            with gr.Tab("Compare", id="compare"):
                threshold = gr.Slider(0, 1, 0.5, label="Threshold", elem_id="threshold")
            with gr.Tab("Explore", id="explore"):
                ExploreTab(report(), endless, threshold, tabs, book.summary)
            with gr.Tab("About", id="about"):
                gr.HTML(about.replace("{description}", html.escape("A pair.")))
            with gr.Tab("X", id="hostile"):
                for figure in every_figure(HOSTILE):
                    gr.Plot(figure, show_label=False)
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, footer_links=[], run_history=False,
        theme=theme(), head=f"<style>{style()}</style>",
    )  # fmt: skip
    yield url
    demo.close()


def at_tab(open_page, url, name="Explore", look="light", width=WIDE, figures=4):
    page = open_page(f"{url}?__theme={look}", viewport={"width": width, "height": 900})
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(".js-plotly-plot .main-svg .plot, .js-plotly-plot .main-svg .cartesianlayer").nth(
        figures - 1
    ).wait_for()
    return page


@pytest.fixture(scope="module")
def wide(open_shared_page, url):
    """Tests share it, and leave it at this tab; what stays of them changes no later one."""
    return at_tab(open_shared_page, url)


@pytest.fixture(scope="module")
def dark_phone(open_shared_page, url):
    return at_tab(open_shared_page, url, look="dark", width=PHONE)


def slider(page) -> str:
    return page.locator("#threshold input[type=number]").input_value()


def pick(page, elem_id: str, option: str) -> None:
    page.click(f"#{elem_id} input")
    page.get_by_role("option", name=option, exact=True).click()


def test_a_threshold_of_the_sweep_is_carried_to_compare_and_marked_on_return(wide):
    pick(wide, "sweep-threshold", "0.7")
    wide.click("#sweep-use")
    wide.locator("[role=tab][aria-selected=true]", has_text="Compare").wait_for()
    assert slider(wide) == "0.7"
    wide.get_by_role("tab", name="Explore").click()
    wide.locator("#sweep-speed").get_by_text("nearest to Compare's 0.7").wait_for()


def test_another_measure_is_another_axis_and_another_sentence(wide):
    wide.locator("#sweep-speed").get_by_text("distinct bigrams").wait_for()  # the largest cost comes first
    wide.get_by_text("1 repeats nothing").wait_for()
    wide.get_by_label("Nats per token").click()
    wide.locator("#sweep-speed").get_by_text("nats per token under the base").wait_for()
    wide.get_by_text("Lower is not automatically better").wait_for()


def test_the_toolbar_lies_over_no_legend(wide):
    for chart in ("#sweep-speed", "#sweep-shares"):
        wide.hover(f"{chart} .js-plotly-plot")
        tools, legend = (
            wide.locator(f"{chart} .{part}").first.bounding_box() for part in ("modebar", "legend")
        )
        assert tools["y"] + tools["height"] <= legend["y"]


def test_the_numbers_can_be_taken_home(wide):
    with wide.expect_download() as download:
        wide.click("#sweep-csv")
    assert download.value.suggested_filename == "dynamo-sweep.csv"
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("threshold,replies,tokens") and len(lines) == 7


def test_a_run_grows_on_the_page_and_stops_when_cancelled(open_page, url):
    page = at_tab(open_page, url)
    page.get_by_text("shipped").first.wait_for()
    page.click("#sweep-run")
    page.get_by_text("measured here").first.wait_for()
    page.locator("#sweep-shares").get_by_text("0.3").wait_for()
    page.locator("#sweep-status").get_by_text("Replies - ").wait_for()
    page.click("#sweep-cancel")
    page.get_by_text("Stopped. What was measured so far is shown.").wait_for()
    page.wait_for_selector("#sweep-cancel[disabled]")
    assert "0.5" not in page.locator("#sweep-shares .xaxislayer-above").first.text_content()
    assert page.locator(".toast-body, #sweep-status .error:visible").count() == 0


def test_axe_finds_nothing_and_nothing_scrolls_sideways(wide, dark_phone):
    for page in (wide, dark_phone):
        page.add_style_tag(content="* { transition: none !important; }")
        for tab in ("About", "Explore"):
            page.get_by_role("tab", name=tab).click()
            page.locator("[role=tab][aria-selected=true]", has_text=tab).wait_for()
            assert_accessible(page, "[role=tabpanel]")
            assert page.evaluate("document.documentElement.scrollWidth === innerWidth")


def test_figures_fill_the_page_and_a_phone(wide, dark_phone):
    for page, width in ((wide, WIDE), (dark_phone, PHONE)):
        page.wait_for_function(  # Plotly draws first, and then looks how much room there is
            """([least, most]) => {
              const box = document.querySelector("#calibration .js-plotly-plot").getBoundingClientRect();
              return box.width > least && box.right <= most; }""",
            arg=[0.8 * min(width, 1200), width],
        )


def test_text_of_figures_is_readable_in_the_dark_but_for_the_tooltip(dark_phone):
    colour = dark_phone.evaluate(
        "getComputedStyle(document.querySelector('.js-plotly-plot .xtick text')).fill"
    )
    assert colour == "rgb(242, 244, 247)"


def test_a_finger_that_moves_on_a_figure_scrolls_the_page(dark_phone):
    caught = dark_phone.locator(".js-plotly-plot .nsewdrag").evaluate_all(
        "(areas) => areas.map((area) => getComputedStyle(area).touchAction)"
    )
    assert caught and "none" not in caught


def test_plotly_of_the_page_knows_every_attribute(wide):
    wrong = """({ data, layout: { legend, ...layout } }) => {
      // It stumbles over any legend, and calls unused what only some charts draw.
      const known = Object.keys(Plotly.PlotSchema.get().layout.layoutAttributes.legend);
      const unused = ["unused", "invisible"];
      const issues = (Plotly.validate(data, layout) ?? []).filter(({ code }) => !unused.includes(code));
      return [...issues.map(({ msg }) => msg), ...Object.keys(legend).filter((key) => !known.includes(key))];
    }"""
    for figure in every_figure():
        assert wide.evaluate(wrong, json.loads(figure.to_json())) == []
    assert wide.evaluate(wrong, {"data": [], "layout": {"legend": {"a_new_key": 1}, "another": 1}}) != []


def test_hostile_text_is_shown_as_text(open_page, url):
    page = at_tab(open_page, url, "X", figures=7)
    shown = " ".join(page.locator(".js-plotly-plot:visible text").all_text_contents())
    assert HOSTILE in shown and "<img" in shown
    assert page.locator(".js-plotly-plot img").count() == 0
    assert page.evaluate("window.pwned") is None
