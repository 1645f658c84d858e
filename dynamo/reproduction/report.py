"""The report: what the results say, as Markdown with figures beside it.

It is a function of the result files, the catalogue and the date. Numbers come from results, the paper's words
and the rules from the catalogue; an experiment without a result is listed as not run.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dynamo.common.files import replace_text
from dynamo.loading import EMBEDDED
from dynamo.reproduction.experiment import VERDICTS, Experiment, Shown, Table
from dynamo.reproduction.workspace import Sizes

HEAD = """# The paper's experiments, rerun

Written by `python -m dynamo reproduce`, not by hand: verdicts are computed from the numbers by the rule that
stands with each. The models here are small and of another corpus than the paper's, so it is shapes and
differences that can hold, not values. *Cannot be tested here* says what is missing.

Beside each command is the time of its last run. Trainings and sweeps that several experiments need are run
once, so whoever comes second takes seconds. Held-out files are often sorted, as the dialogues are by domain:
values of a file's first documents are not those of the whole; differences are those of the same documents.

"""
Write = Callable[[Mapping[str, Any], Path], Mapping[str, Path]]


def write_report(
    path: Path,
    experiments: Sequence[Experiment],
    results: Mapping[str, dict[str, Any] | None],
    untested: Sequence[tuple[str, str]] = (),
    write_figures: Write | None = None,
) -> dict[str, str]:
    """Write the report to `path` and figures to `figures/` beside it; name -> verdict.

    results: stored results by name, as `runner.read_result` returns them; one of another version of its
    experiment does not count; untested: (what, why) of what the paper has and this cannot test;
    write_figures: by default `dynamo.charts.files.write_figures`.
    """
    with_result = [each for each in experiments if _is_of(each, results.get(each.name))]
    results = {each.name: results[each.name] for each in with_result}
    shown = {each.name: each.show(results[each.name]["result"]) for each in with_result}
    folder = path.parent / "figures"
    figures = {
        f"{name}-{number}": figure
        for name, one in shown.items()
        for number, figure in enumerate(one.figures.values(), start=1)
    }
    if write_figures is None:
        from dynamo.charts.files import write_figures
    files = write_figures(figures, folder)
    links = {name: os.path.relpath(file, path.parent).replace(os.sep, "/") for name, file in files.items()}
    parts = [HEAD, _measured_on(results), _summary(experiments, shown)]
    for each in experiments:
        if each.name in shown:
            parts.append(_section(each, shown[each.name], results[each.name], links))
    if untested:
        parts.append("## What cannot be tested here\n\n" + _grid(("of the paper", "why not"), untested))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "\n".join(part.rstrip() + "\n" for part in parts))
    return {name: one.finding.verdict for name, one in shown.items()}


def _is_of(experiment: Experiment, stored: Mapping[str, Any] | None) -> bool:
    return stored is not None and stored["settings"].get("version", 1) == experiment.version


def _measured_on(results: Mapping[str, dict[str, Any]]) -> str:
    dates = sorted({stored["machine"]["date"] for stored in results.values()})
    machines = {_machine(stored["machine"]) for stored in results.values()}
    models = sorted({stored["settings"]["model"]["name"] for stored in results.values()})
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [f"Report of {today}."]
    if results:
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"Measured {span} on {'; '.join(sorted(machines))}. Pair: {', '.join(models)}.")
    return " ".join(lines)


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['device']}, threads: {machine['threads']}, {machine['dtype']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}"
    )


def _summary(experiments: Sequence[Experiment], shown: Mapping[str, Shown]) -> str:
    rows = []
    for each in experiments:
        if each.name in shown:
            finding = shown[each.name].finding
            link = f"[{each.title}](#{_anchor(each.title)})"
            rows.append((link, f"**{finding.verdict}**", finding.sentence))
        else:
            rows.append((each.title, "not run", "—"))
    verdicts = [one.finding.verdict for one in shown.values()]
    counted = [f"{verdict}: {verdicts.count(verdict)}" for verdict in VERDICTS]
    counted.append(f"not run: {len(experiments) - len(shown)}")
    grid = _grid(("experiment", "verdict", "numbers"), rows)
    return f"## Verdicts\n\n{'; '.join(counted)}.\n\n{grid}"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(
    experiment: Experiment, shown: Shown, stored: Mapping[str, Any], links: Mapping[str, str]
) -> str:
    parts = [f"## {experiment.title}", f"**Paper.** {experiment.paper}"]
    parts += [f"{table.caption}:\n\n{_table(table)}" for table in shown.tables]
    for number, caption in enumerate(shown.figures, start=1):
        link = links[f"{experiment.name}-{number}"]
        page = link.endswith(".html")
        parts.append(f"[{caption}]({link})" if page else f"![{caption}]({link})\n\n*{caption}*")
    parts.append(f"**Verdict: {shown.finding.verdict}.** {shown.finding.sentence}")
    parts.append(f"*Rule.* {experiment.rule}")
    parts.append(_made_with(experiment, stored))
    return "\n\n".join(parts)


def _made_with(experiment: Experiment, stored: Mapping[str, Any]) -> str:
    """The command that repeats the measurement, the data, and how long it took."""
    settings = stored["settings"]
    words = ["python -m dynamo reproduce --data DATA", "--only", settings["experiment"]]
    files = [f"{name} {settings[name]}" for name in ("train", "validation", "other") if settings.get(name)]
    if settings.get("other"):
        words.append("--other OTHER")
    if settings["model"]["name"] != EMBEDDED:
        words.append(f"--model {settings['model']['name']}")
    if "prompts" in settings:
        words.append(f"--limit {settings['prompts']['count']}")
    which = settings.get("documents")
    files += _documents(experiment, which)
    settings = {**settings, "documents": settings.get("dialogues", which)}
    if isinstance(which, Mapping):
        settings |= {"documents": which["drawn"], "seed": which["seed"]}
    words += [
        f"--{each.name} {settings[each.name]}"
        for each in fields(Sizes)
        if settings.get(each.name) is not None
    ]
    if _are_first(experiment, which):
        words.append("--no-drawn")
    data = f" Data: {', '.join(files)}." if files else ""
    load = stored.get("load")
    busy = f" Load of the machine: {load['average']:g} on {load['cores']} cores." if load else ""
    return f"`{' '.join(words)}`: {_duration(stored['seconds'])}.{data}{busy}"


def _are_first(experiment: Experiment, which: Any) -> bool:
    return "documents" in experiment.depends and isinstance(which, int) and which > 0


def _documents(experiment: Experiment, which: Any) -> list[str]:
    """Which held-out documents were read; nothing for an experiment that reads all or chooses its own."""
    if isinstance(which, Mapping):
        return [f"held-out documents: {which['drawn']} of the file, drawn by the seed"]
    return [f"held-out documents: the first {which} of the file"] if _are_first(experiment, which) else []


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _table(table: Table) -> str:
    return _grid(table.columns, [[cell_text(cell) for cell in row] for row in table.rows])


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def cell_text(cell: Any) -> str:
    """A cell of a table: numbers with four significant digits, None as a dash."""
    if cell is None:
        return "—"
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell)
    if isinstance(cell, int) or cell == 0:
        return f"{int(cell):,}"
    return f"{cell:,.1f}" if abs(cell) >= 1000 else f"{float(f'{cell:.4g}'):g}"
