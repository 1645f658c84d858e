"""From a chat model without any data to heads that are measured, recorded and have a card."""

import json

import pytest
from command_line import run
from conftest import DIALOGUES, tiny_base

from dynamo import loading
from dynamo.pipelines import self_recipe
from dynamo.trace.ndjson import read_runs
from dynamo.training.trainer import save_model

TRAIN = (
    "--steps 2 --batch-size 2 --block-size 128 --correlator-rank 8 --evaluate-every 1 --checkpoint-every 1"
)


@pytest.fixture
def ground(tmp_path, tokenizer, monkeypatch):
    """A chat model, and conversations as it might have written them: a tiny one's are all dropped."""
    save_model(tiny_base(), tokenizer, tmp_path / "base")
    work = tmp_path / "work"
    work.mkdir()
    lines = "".join(json.dumps({"messages": turns}) + "\n" for turns in DIALOGUES)
    for name in ("talks.jsonl", "talks.dev.jsonl", "answers.jsonl"):
        (work / name).write_text(lines, encoding="utf-8")
    (work / "written.json").write_text('{"answer_tokens": 1234, "conversations": 5}', encoding="utf-8")
    (work / "answered.json").write_text('{"answer_tokens": 567, "conversations": 3}', encoding="utf-8")
    question = {"question_id": 1, "category": "small talk", "turns": ["At what time?"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question), encoding="utf-8")
    monkeypatch.setattr(self_recipe, "EVERYDAY_FILE", tmp_path / "questions.jsonl")
    return tmp_path


def command(ground, *more):
    base, work = ground / "base", ground / "work"
    return ["recipe", base, "--self", "--work", work, "--prompts", 1, "--train", TRAIN, *more]


def test_a_plan_names_every_stage_and_does_nothing(ground, capsys):
    code, result = run(capsys, *command(ground, "--work", ground / "new", "--tokens", 20_000, "--plan"))
    assert code == 0
    assert list(result["stages"]) == [
        "talks",
        "answers",
        "heads",
        "pair",
        "exact",
        "sweep",
        "recording",
        "card",
    ]
    assert result["stages"]["talks"].endswith("--tokens 20000")
    assert "--distill 0.5" in result["stages"]["heads"] and "--steps 2 " in result["stages"]["heads"]
    assert not (ground / "new").exists()


def test_too_few_conversations_to_hold_one_out_are_refused_before_any_is_written(ground, capsys):
    code, result = run(capsys, *command(ground, "--work", ground / "new", "--tokens", 4000, "--plan"))
    assert code != 0 and "tokens: expected 20000 or more" in str(result)


def test_from_conversations_to_heads_that_load_with_their_options(ground, capsys):
    code, result = run(capsys, *command(ground))
    assert code == 0, result
    assert result["ran"] == ["heads", "pair", "exact", "sweep", "recording", "card"]
    pair = loading.load(result["pair"], device="cpu")
    assert pair.options.exact and pair.options.correction == "correlator"
    card = (ground / "work" / "pair" / "README.md").read_text(encoding="utf-8")
    for said in (
        "1,234 answer tokens",
        "567 in its answers",
        "head 3, given the tokens before",
        "**Exact mode**: 1.",
        "--distill",
    ):
        assert said in card, said
    assert str(ground) not in card
    with (ground / "work" / "pair" / "recording.ndjson").open(encoding="utf-8") as file:
        assert {trace.header.lane for trace in read_runs(file)} == {"base", "dynamo"}
    assert run(capsys, *command(ground))[1]["ran"] == []


def test_what_is_missing_or_out_of_range_is_said_at_once(ground, capsys):
    code, said = run(capsys, *command(ground, "--heads", 1))
    assert code == 2 and "heads: expected 2 to 5" in said
    code, said = run(capsys, *command(ground, "--repo", "someone/talker"))
    assert code == 2 and "repo: --self has no use for it" in said
    code, said = run(capsys, "recipe", "pythia-70m-quick")
    assert code == 2 and "data: a recipe needs --data and --validation, or --self" in said
