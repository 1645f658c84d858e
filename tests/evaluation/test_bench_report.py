import json
import shutil
from pathlib import Path

import pytest

from dynamo.evaluation.bench_report import TABLES, rewrite

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULT = {
    "own_over_generate": 2.5,
    "conversion": 0.71,
    "intervals": {"own_over_generate": [2.0, 3.0]},
    "lanes": {
        name: {
            "tokens_per_second": speed, "spread": 4.4, "tokens_per_forward": 1.0, "ms_per_pass": 1000 / speed,
            "prefill_ms": 12.34, "share_of_bandwidth": 0.5,
        }
        for name, speed in (("generate", 100.0), ("own", 250.0))
    },
    "rows_tokens_per_second": {"1": {"own": 250.0, "dynamo_int4": 400.0, "llamacpp": 99.5}},
    "context_ms": {},
    "options": {"threshold": 0.5},
}  # fmt: skip


def page(tmp_path, *sections):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    path = tmp_path / "page.md"
    path.write_text("before\n" + "\n".join(sections) + "\nafter\n")
    return path


@pytest.mark.parametrize(("name", "tables"), [("performance.md", 8), ("smollm2.md", 6)])
def test_tables_of_a_page_are_those_of_its_results(tmp_path, name, tables):
    """Whoever measures again, or edits a number by hand, has to run bench --report."""
    shutil.copytree(DOCS, tmp_path / "docs")
    sweep = tmp_path / "assets" / "models" / "smollm2" / "sweep.json"
    sweep.parent.mkdir(parents=True)
    shutil.copy(DOCS.parent / sweep.relative_to(tmp_path), sweep)
    assert rewrite(tmp_path / "docs" / name) >= tables
    assert (tmp_path / "docs" / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    path = page(
        tmp_path,
        "<!-- bench lanes result.json -->\nan old table\n<!-- end -->",
        "text",
        "<!-- bench ratios result.json -->\n<!-- end -->",
        "<!-- bench rows result.json -->\n<!-- end -->",
    )
    assert rewrite(path) == 3
    written = path.read_text()
    assert (
        written.startswith("before\n<!-- bench lanes result.json -->\n| lane |")
        and "old table" not in written
    )
    assert "| our one-token loop | 250 | ± 4 | 1.00 | 4.00 | 12.3 | 50 % |" in written
    assert "| own loop / `generate` | 2.50 | 2.00 to 3.00 | 2.0 | 3.0 |" in written
    assert "per pass | 0.71 |" in written and "exact mode" not in written, "what was not measured has no row"
    assert "| rows | own loop | DynaMo, int4 | llama.cpp |\n|---|---|---|---|\n| 1 | 250 | 400 |" in written
    assert written.endswith("<!-- end -->\nafter\n")
    assert "<!-- end -->\ntext\n<!-- bench ratios" in written
    assert rewrite(path) == 3 and path.read_text() == written


def test_a_sweeps_table_sets_every_threshold_against_the_bases_own_replies(tmp_path):
    shares = {"distinct_2": {"value": 0.8}, "repetition": {"value": 0.02}}
    point = {
        "threshold": 0.7, "tokens": 900, "replies": 10, "tokens_per_forward": {"value": 1.4},
        "speed_up": {"value": 1.25, "low": 1.2, "high": 1.3},
        "drift": {"value": 0.011, "low": -0.002, "high": 0.024},
        "quality": {"distinct_2": {"value": 0.76}, "repetition": {"value": 0.03}},
    }  # fmt: skip
    result = {"base": {"tokens": 1000, "replies": 10, "quality": shares}, "points": [point]}
    path = page(tmp_path, "<!-- bench sweep result.json -->\n<!-- end -->")
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert rewrite(path) == 1
    row = "| 0.7 | 1.40 | 1.25 (1.20 to 1.30) | +1.1 (-0.2 to +2.4) | 0.95 | 1.50 | 0.90 |"
    assert row in path.read_text()


def test_what_the_page_measured_stands_beside_what_is_acceptable(tmp_path):
    result = {
        "bytes_before_first_paint": 276552, "first_paint_ms": 812, "both_panes_ms": 1350,
        "updates_per_second": 24.5, "bytes_per_pass": 937, "click_ms": 41.0, "load": 0.2, "chromium": "156",
        "disturbed": {
            "redecodes": 20, "shown": 19, "refused_as_disturbed": 1, "above_tokens_per_pass": 0,
            "within_15_percent_of_bench": 18,
        },
        "machine": {"device": "A CPU", "date": "2026-11-29"},
    }  # fmt: skip
    path = page(tmp_path, "<!-- bench page result.json -->\n<!-- end -->")
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert rewrite(path) == 1
    written = path.read_text()
    assert "A CPU, load average 0.2 before the run, Chromium 156, 2026-11-29." in written
    assert "| bytes over the wire before the first paint | 276,552 | at most 400,000 |" in written
    assert "| no speed-up shown, as the clocks were disturbed | 1 | at most 2 |" in written
    assert "| within 15 % of `bench` for the same answer, of 19 shown | 18 | all |" in written


@pytest.mark.parametrize(
    "section, words",
    [
        ("no marks", "has no '<!-- bench TABLE RESULT.json -->'"),
        ("<!-- bench prices result.json -->\n<!-- end -->", "the table prices; there are machine, lanes"),
        ("<!-- bench rows nowhere.json -->\n<!-- end -->", "names nowhere.json, which does not exist"),
        ("<!-- bench context result.json -->\n<!-- end -->", "result.json is no result with context"),
        ("<!-- bench split result.json -->\n<!-- end -->", "result.json is no result with split"),
    ],
)
def test_a_page_that_cannot_be_written_is_left_as_it_was(tmp_path, section, words):
    path = page(tmp_path, section)
    before = path.read_text()
    with pytest.raises(ValueError, match="report: ") as refused:
        rewrite(path)
    assert words in str(refused.value) and path.read_text() == before
    assert set(TABLES) >= {"machine", "lanes", "ratios", "split", "rows", "context", "top-k", "threads"}


def test_a_picture_is_of_the_lanes_that_were_measured(tmp_path):
    drawn = []

    def draw(by_lane, folder, name):
        drawn.append(by_lane)
        return folder / f"{name}.svg"

    speeds = {"64": {"own": 90.0, "exact_int4": 150.0}, "2048": {"own": 70.0, "exact_int4": 110.0}}
    path = page(tmp_path, "<!-- bench context-picture result.json -->\nold\n<!-- end -->")
    (tmp_path / "result.json").write_text(json.dumps({"context_tokens_per_second": speeds}))
    assert rewrite(path) == 1 and "old" in path.read_text(), "who cannot draw leaves what is there"
    assert rewrite(path, draw) == 1
    assert "\n![Tokens a second by length of context](images/result.svg)\n<!-- end -->" in path.read_text()
    own, exact = "our one-token loop", "DynaMo, exact mode, int4"
    assert drawn == [{own: {64: 90.0, 2048: 70.0}, exact: {64: 150.0, 2048: 110.0}}]
