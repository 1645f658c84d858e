"""docs/spaces.md: its commands exist, with their flags, and its steps lead from a base to a running Space."""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import test_recipe
from test_recipe import FINETUNE, TRAIN

from dynamo.__main__ import VERBS, main
from dynamo.spaces import deployment

at_hub, ground, small_space = test_recipe.at_hub, test_recipe.ground, test_recipe.small_space
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/spaces.md").read_text(encoding="utf-8")
OURS = "python -m dynamo "


def lines_of(block):
    joined = block.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in joined if line.strip()]


FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.M | re.S)
BLOCKS = [lines_of(block) for language, block in FENCED if not language]
COMMANDS = [line for block in BLOCKS for line in block if line.startswith(OURS)]
COMMANDS += [each for each in re.findall(r"`(python -m dynamo [^`]+)`", PAGE) if each not in COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_of_the_page_exists(command):
    verb, *arguments = shlex.split(command.removeprefix(OURS))
    assert verb in VERBS
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dynamo.commands.{verb}").configure(parser)
    parser.parse_args(arguments)  # exits where there is no such flag


def test_the_page_has_the_steps_and_no_other_programs():
    assert len(COMMANDS) > 10 and "pip install -r requirements.txt" in BLOCKS[0]
    assert (Path(sys.executable).parent / "hf").exists() and "hf auth login" in BLOCKS[0]
    known = ("python3.12 -m venv", ". .venv/", "pip install -r", ".venv/bin/pip install -r", "hf auth", "cd ",
             "env -i ", OURS)  # fmt: skip
    assert all(line.startswith(known) for block in BLOCKS for line in block)


def test_the_steps_lead_from_a_base_to_a_running_space(
    ground,
    at_hub,
    small_space,
    monkeypatch,
    capsys,
):
    """Literally, but for a tiny base, a short training and a local hub."""
    monkeypatch.chdir(ground)
    (ground / "held_out.jsonl").write_text((ground / "texts.jsonl").read_text())
    monkeypatch.setattr(deployment, "SETTLE_SECONDS", 0.0)
    small = {
        "recipe": ["--base", "pythia", "--work", "work", "--train", TRAIN, "--finetune", FINETUNE,
                   "--prompts", "1"],
        "generate": ["--max-new-tokens", "3", "--device", "cpu"],
    }  # fmt: skip
    results = []
    for line in BLOCKS[0]:
        if line.startswith(OURS):
            verb, *arguments = shlex.split(line.removeprefix(OURS).replace("OWNER/", "someone/"))
            assert main([verb, *arguments, *small.get(verb, [])]) == 0, capsys.readouterr().err[-2000:]
            results.append((verb, json.loads(capsys.readouterr().out.splitlines()[-1])))
    (_, plan), (_, made), (_, said), (_, checked), (_, dry), (_, deployed) = results
    assert "stages" in plan and made["ran"][-1] == "push" and said["tokens"] >= 1
    assert checked["profiles"] and "plan" in dry and deployed["stage"] == "RUNNING"
    assert at_hub.space("someone/SPACE").variables["DYNAMO_MODEL"] == "someone/NAME"
    assert at_hub.model("someone/NAME").commits
