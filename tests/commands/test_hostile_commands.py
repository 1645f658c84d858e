"""Options and commands: whatever stands in an argument, a run or exit status 2 and one line."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import fields

import pytest
from hostile import BRIEF, VALUES, refusal, values
from hypothesis import given
from hypothesis import strategies as st

from dynamo.commands import VERBS, main
from dynamo.common.options import parse
from dynamo.sampling.options import SamplingOptions
from dynamo.training.options import TrainingOptions, learning_rate_scale
from dynamo.training.recipes import RECIPES

FIELDS = [(cls, field) for cls in (SamplingOptions, TrainingOptions) for field in fields(cls)]
WORDS = (
    "",
    "x",
    "--",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9" * 400,
    "\u202e",
    "a\nb",
    "../../etc/passwd",
    "[]",
    "None",
)
# Flags of commands that would go to work for long with a value that is right: never given one here.
CHEAP = {
    "generate": ["hello", "--max-new-tokens", "1"],
    "compare": ["hello", "--max-new-tokens", "1"],
    "audit": ["--prompt", "hello", "--reply", "x"],
    "perplexity": ["--data", "{missing}"],
    "sweep": ["--model", "{missing}"],
    "bench": ["--model", "{missing}"],
    "complete": ["--model", "{missing}", "--output", "{out}/rows.jsonl"],
    "judge": ["--completions", "{missing}", "--output", "{out}/rows.jsonl"],
    "train": ["--model", "{missing}", "--data", "{missing}", "--output", "{out}/run"],
    "finetune": ["--model", "{missing}", "--data", "{missing}", "--output", "{out}/run"],
    "count": ["--tokenizer", "{missing}", "--data", "{missing}", "--output", "{out}/t.safetensors"],
    "embedded": ["--data", "{missing}", "--work", "{out}", "--output", "{out}/pair"],
    "push": ["{missing}", "owner/name", "--dry-run"],
    "space": ["check", "--root", "{missing}"],
    "recipe": ["pythia-70m", "--data", "{missing}", "--validation", "{missing}", "--plan"],
}


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda value: getattr(value, "name", ""))
def test_any_value_of_an_option_is_taken_or_named(cls, field):
    for value in VALUES:
        said = refusal(lambda value=value: cls(**{field.name: value}))
        assert said is None or said.startswith(f"{field.name}: "), said


@BRIEF
@given(st.sampled_from(FIELDS), values)
def test_no_option_lets_another_error_through(where, value):
    cls, field = where
    refusal(lambda: cls(**{field.name: value}))


@BRIEF
@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**7))
def test_a_learning_rate_is_a_share_at_every_step(steps, warmup, final, step):
    options = TrainingOptions(steps=steps, warmup=warmup, final_lr=final)
    assert 0 <= learning_rate_scale(min(step, steps), options) <= 1 + 1e-12


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_made_of_options_in_range(name):
    assert TrainingOptions(**RECIPES[name].options).steps > 0


def outcome(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as stopped:  # argparse's own refusal
        status = stopped.code
    streams = capsys.readouterr()
    assert status in (0, 2), arguments
    assert "Traceback" not in streams.err
    return status, streams.out, streams.err


def filled(arguments: list[str], folder) -> list[str]:
    return [each.format(missing=folder / "missing", out=folder) for each in arguments]


def test_every_cheap_command_line_is_of_a_command():
    assert set(CHEAP) <= set(VERBS)


@pytest.mark.parametrize(
    "verb", [verb for verb, line in CHEAP.items() if any("missing" in each for each in line)]
)
def test_what_is_not_there_is_one_line_and_status_2(verb, tmp_path, capsys):
    status, out, err = outcome([verb, *filled(CHEAP[verb], tmp_path)], capsys)
    assert status == 2 and not out
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "flag",
    ["--model", "--device", "--threshold", "--top-k", "--temperature", "--seed", "--max-new-tokens", "--blur",
     "--max-order", "--repetition-penalty", "--mask-strength", "--quantize"],
)  # fmt: skip
def test_any_word_after_a_flag_of_generate_ends_in_words(flag, word, capsys):
    status, out, err = outcome(["generate", "hello", "--max-new-tokens", "1", f"{flag}={word}"], capsys)
    if status == 2:
        assert err.splitlines()[-1].split("error: ")[-1] and not out
    else:
        assert json.loads(out)["tokens"] >= 1


@pytest.mark.parametrize(
    "prompt", ["", "\n" * 5000, "\x00", "\ud800", "\u202e<b>", "x" * 2**20], ids=lambda text: repr(text)[:12]
)
def test_any_prompt_of_generate_ends_in_words(prompt, capsys):
    outcome(["generate", prompt, "--max-new-tokens", "1"], capsys)


def flags_of(verb: str) -> list[str]:
    """The flags of a command that take a value."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dynamo.commands.{verb}").configure(parser)
    actions = [action for action in parser._actions if action.option_strings and action.nargs != 0]
    return [action.option_strings[-1] for action in actions]


@pytest.mark.parametrize("verb", VERBS)
def test_two_dashes_for_a_value_are_refused_by_every_flag(verb, capsys):
    """Python 3.11 reads them as an empty list, on which everything that expects a value falls."""
    flags = flags_of(verb)
    assert flags
    for flag in flags:
        status, out, err = outcome([verb, f"{flag}=--"], capsys)
        assert status == 2 and not out
        assert err.splitlines()[-1].endswith(f"error: argument {flag}: '--' is not a value")


def test_what_stands_after_two_dashes_is_words():
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    assert parse(parser, ["--", "--threshold=--"]).prompt == "--threshold=--"


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_refused_by_every_command(verb, capsys):
    status, out, err = outcome([verb, "--no-such-flag"], capsys)
    assert status == 2 and not out and "error:" in err
