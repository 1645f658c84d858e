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
    "rows_tokens_per_second": {"1": {"own": 250.0, "dynamo": 400.0}},
    "context_ms": {},
    "options": {"threshold": 0.5},
}  # fmt: skip


def page(tmp_path, *sections):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    path = tmp_path / "page.md"
    path.write_text("before\n" + "\n".join(sections) + "\nafter\n")
    return path


def test_tables_of_the_page_of_speeds_are_those_of_its_results(tmp_path):
    """Whoever measures again, or edits a number by hand, has to run bench --report."""
    shutil.copytree(DOCS, tmp_path / "docs")
    assert rewrite(tmp_path / "docs" / "performance.md") >= 8
    written = (tmp_path / "docs" / "performance.md").read_text(encoding="utf-8")
    assert written == (DOCS / "performance.md").read_text(encoding="utf-8")


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
    assert "| rows | own loop | DynaMo |\n|---|---|---|\n| 1 | 250 | 400 |\n<!-- end -->\nafter\n" in written
    assert "<!-- end -->\ntext\n<!-- bench ratios" in written
    assert rewrite(path) == 3 and path.read_text() == written


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
