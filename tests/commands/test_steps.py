"""docs/spaces.md: its commands and flags exist."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from dynamo.commands import VERBS

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
