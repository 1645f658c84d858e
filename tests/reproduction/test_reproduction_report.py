"""The report of the experiments: it says what the results say, and its figures are files that can be seen."""

import dataclasses
import shutil

import numpy as np
import pytest
from workspaces import counting

from dynamo.charts import files
from dynamo.charts.grids import joint_grids
from dynamo.charts.lines import bars, lines
from dynamo.reproduction.catalogue import EXPERIMENTS, UNTESTED
from dynamo.reproduction.report import cell_text, write_report
from dynamo.reproduction.workspace import SETTINGS

# -- the report


@pytest.fixture
def report(tmp_path):
    """Writes the report of given results; its text."""

    def write(experiments, values, untested=UNTESTED, version=1, **more):
        machine = {"device": "A processor", "threads": 2, "dtype": "float32", "torch": "2.0",
                   "transformers": "5.0", "python": "3.12", "date": "2026-01-02"}  # fmt: skip
        results = {}
        for each in experiments:
            if each.name in values:
                settings = {
                    "experiment": each.name,
                    "version": version,
                    "steps": 40,
                    "model": {"name": "embedded"},
                    **more,
                }
                results[each.name] = {"settings": settings, "hash": "", "machine": machine, "seconds": 3.0,
                                      "load": {"average": 7.5, "cores": 2},
                                      "result": {"value": values[each.name]}}  # fmt: skip

        def draw(figures, folder):
            return {name: folder / f"{name}.svg" for name in figures}

        path = tmp_path / "docs" / "report.md"
        verdicts = write_report(path, experiments, results, untested, draw)
        return verdicts, path.read_text()

    return write


def test_the_report_says_what_the_results_say(report):
    experiments = [counting("one"), counting("two"), counting("three")]
    verdicts, text = report(experiments, {"one": 1.2345678, "two": 0.5})
    assert verdicts == {"one": "holds", "two": "differs"}
    assert "holds: 1; differs: 1; cannot be tested here: 0; not run: 1." in text
    assert "| value | 1.235 |" in text and "| value | 0.5 |" in text and "| nothing | — |" in text
    assert "**Verdict: holds.** It is 1.23." in text and "**Verdict: differs.** It is 0.50." in text
    assert "| Title of three | not run | — |" in text and "## Title of three" not in text
    assert "![A line](figures/one-1.svg)" in text and "three-1" not in text
    assert text.count("*Rule.* Holds above 1.") == text.count("**Paper.** It is 3.") == 2
    assert "A processor, threads: 2, float32" in text and "Measured 2026-01-02" in text
    made = "`python -m dynamo reproduce --data DATA --only one --steps 40`: 3 s."
    assert f"{made} Load of the machine: 7.5 on 2 cores." in text
    assert all(what in text and why in text for what, why in UNTESTED)


def test_a_result_of_another_version_of_an_experiment_is_not_told(report):
    verdicts, text = report([counting("one")], {"one": 1.5}, version=7)
    assert verdicts == {} and "| Title of one | not run | — |" in text and "1.5" not in text


@pytest.mark.parametrize(
    "documents, flags, sentence",
    [
        (40, "--documents 40 --no-drawn", "Data: held-out documents: the first 40 of the file."),
        (0, "--documents 0", ""),
        ({"drawn": 40, "seed": 3}, "--documents 40 --seed 3",
         "Data: held-out documents: 40 of the file, drawn by the seed."),
    ],
)  # fmt: skip
def test_the_report_says_which_documents_were_read(report, documents, flags, sentence):
    experiment = dataclasses.replace(counting("one"), depends=("steps", "documents"))
    _, text = report([experiment], {"one": 1.5}, documents=documents)
    assert f"--only one --steps 40 {flags}`: 3 s. {sentence}".rstrip() in text
    assert sentence or "held-out documents" not in text


def test_a_verdict_follows_the_number_and_nothing_else_changes(report):
    experiments = [counting("one")]
    _, before = report(experiments, {"one": 1.5})
    _, after = report(experiments, {"one": 0.5})
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 4, "how many hold, the summary's row, the table's and the verdict"
    assert all("1.5" in a and "0.5" in b for a, b in changed[1:])


def test_cells_keep_four_digits_and_mark_what_is_missing():
    cells = [None, 0.0, 3, 12345, 0.0123456, 12.3456, 2500.04, "words"]
    assert [cell_text(cell) for cell in cells] == [
        "—", "0", "3", "12,345", "0.01235", "12.35", "2,500.0", "words",
    ]  # fmt: skip


def test_every_experiment_is_told_apart_and_states_its_rule():
    names = [each.name for each in EXPERIMENTS]
    assert len(set(names)) == len(names) and len({each.title for each in EXPERIMENTS}) == len(names)
    assert all(each.paper and each.rule for each in EXPERIMENTS)
    assert all(set(each.depends) <= set(SETTINGS) for each in EXPERIMENTS)


# -- figures


def test_figures_without_anything_to_draw_them_are_light_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    (tmp_path / "a.svg").write_text("of an older run")
    figure = bars([{"name": "n", "x": ["p", "q"], "y": [1, 2]}], "y")
    written = files.write_figures({"a": figure}, tmp_path)
    assert written == {"a": tmp_path / "a.html"} and not (tmp_path / "a.svg").exists()
    assert written["a"].stat().st_size < 50_000, "plotly.js itself is not in it"
    assert figure.layout.width is None, "the page's figure is left as it was"


@pytest.mark.skipif(
    not any(map(shutil.which, files.BROWSERS)) or files.find_spec("playwright") is None, reason="no Chromium"
)
def test_a_browser_draws_figures_as_svg(tmp_path):
    written = files.write_figures({"a": lines([{"name": "n", "x": [0, 1], "y": [3, 4]}], "x", "y")}, tmp_path)
    assert written["a"].suffix in (".svg", ".png")
    assert written["a"].suffix == ".png" or written["a"].read_text().startswith("<svg")


def test_lines_have_the_numbers_and_their_intervals():
    ends = {"low": [0.5, 1.0, None], "high": [3, 4, None]}
    series = {"name": "a <b>", "x": [0, 1, 2], "y": [1.0, 2.0, None], **ends}
    trace = lines([series], "x", "y").data[0]
    assert list(trace.y) == [1.0, 2.0, None] and trace.name == "a &lt;b&gt;"
    assert list(trace.error_y.array) == [2.0, 2.0, 0.0] and list(trace.error_y.arrayminus) == [0.5, 1.0, 0.0]


def test_grids_have_a_heatmap_each_and_no_colour_where_nothing_is_left():
    figure = joint_grids(
        [("product", np.array([[0.5, 0.01], [0.1, 1e-9]])), ("mask", np.array([[1.0, 0.0], [0.0, 0.0]]))],
        (["a", "<b>"], ["c", "d"]),
    )
    product, mask = (trace for trace in figure.data if trace.type == "heatmap")
    assert np.array(product.z, dtype=float) == pytest.approx(np.log10([[0.5, 0.01], [0.1, 1e-4]]))
    assert [list(row) for row in mask.z] == [[0.0, None], [None, None]]
    assert [title.text for title in figure.layout.annotations] == ["product", "mask"]
    assert (
        list(figure.layout.yaxis.ticktext) == ["a", "&lt;b&gt;"]
        and figure.layout.yaxis.autorange == "reversed"
    )
