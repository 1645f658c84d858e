"""Promises that span files: pins, the Space's card, the README's commands."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PINS = dict(
    re.sub(r"\[.*\]", "", line).split("==")
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
PIN = r"[\w.-]+(\[\w+\])?==[\w.]+"  # of a package, with an extra perhaps
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


def test_every_requirement_is_pinned_exactly():
    for file in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / file).read_text().splitlines():
            assert not line or line.startswith("#") or re.fullmatch(PIN, line), line


def test_commands_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake (\w+)", readme)) <= targets
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", readme, flags=re.M))
    from dynamo.__main__ import VERBS

    assert set(re.findall(r"python -m dynamo (\w+)", readme)) <= set(VERBS)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_the_page_refuses_a_model_that_is_none_in_one_sentence():
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env={"DYNAMO_MODEL": "/nowhere", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: model: expected 'embedded'")
    assert "Traceback" not in done.stderr
