"""Promises that span files: pins, the Space's card, the README's commands."""

import json
import re
import sys
from pathlib import Path

import gradio as gr
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import app  # noqa: E402

PINS = dict(
    re.sub(r"\[.*\]", "", line).split("==")
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
SPACE = yaml.safe_load((ROOT / "spaces_config.yaml").read_text(encoding="utf-8"))


def test_the_spaces_gradio_is_the_pinned_one():
    assert SPACE["card"]["sdk"] == "gradio"
    assert SPACE["card"]["sdk_version"] == PINS["gradio"]


def test_the_card_keeps_the_hubs_limits():
    card = SPACE["card"]
    assert len(card["short_description"]) <= 60
    assert isinstance(card["python_version"], str) and card["python_version"] in ("3.11", "3.12")
    assert (ROOT / card["app_file"]).is_file()
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colours


def test_commands_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake (\w+)", readme)) <= targets
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", readme, flags=re.M))
    from dynamo.commands import VERBS

    assert set(re.findall(r"python -m dynamo (\w+)", readme)) <= set(VERBS)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_the_embedded_pair_replaces_a_model_that_does_not_load(monkeypatch):
    """A model that cannot be had is named on the page and the embedded pair stands in."""
    served = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: served.append((demo, options)))
    monkeypatch.setenv("DYNAMO_MODEL", "/nowhere")
    app.main()
    ((demo, options),) = served
    assert app.demo is demo, "`gradio app.py` reloads it"
    page = json.dumps(demo.get_config_file(), default=str)
    assert "Shown instead: the small pair that comes with the project" in page
    assert "rel=" not in options["head"] and "recording" in page


def test_a_broken_configuration_is_one_sentence_and_no_page(monkeypatch, tmp_path, capsys):
    (tmp_path / "spaces_config.yaml").write_text("models: 3", encoding="utf-8")
    monkeypatch.setattr(app, "HERE", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: spaces_config.yaml: ")


def test_speeds_in_the_texts_are_those_of_the_measurement():
    measured = json.loads((ROOT / "docs/measurements/bench-embedded-cpu-quick.json").read_text())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for name in ("own_over_generate", "dynamo_over_own", "dynamo_over_generate", "exact_over_own"):
        assert f"{measured[name]:.2f} times as" in readme, name
        assert f"| {measured[name]:.2f} |" in page, name
    for name in ("conversion", "sampler_share"):
        assert f"| {measured[name]:.2f} |" in page, name
    second = json.loads((ROOT / "docs/measurements/bench-embedded-cpu-quick-second-machine.json").read_text())
    for name in ("own_over_generate", "dynamo_over_own", "dynamo_over_generate", "exact_over_own"):
        ratios = [run[name] for run in second["runs"]]
        assert f"{min(ratios):.2f} to {max(ratios):.2f}" in readme, name


def test_the_readmes_program_runs_as_it_stands(capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"## In Python\n\n.*?\n\n```python\n(.*?)```", readme, flags=re.S)
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    orders = [int(line.split(" ", 1)[0]) for line in lines]
    assert len(lines) > 3 and max(orders) == 3
