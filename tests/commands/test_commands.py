"""Every verb, run as a user runs it, on a tiny model; bad input ends in one sentence and exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import folder, run
from conftest import tiny_base

from dynamo.commands import VERBS, main
from dynamo.training.trainer import save_model

ROOT = Path(__file__).resolve().parents[2]
__all__ = ["folder"]  # a fixture


def test_generate_prints_text_and_counts(folder, capsys):
    code, result = run(capsys, "generate", "Hello", "--model", folder / "pair", "--max-new-tokens", 12,
                       "--threshold", 0, "--mask-strength", 0)  # fmt: skip
    assert code == 0
    assert result["tokens"] <= 12 and result["passes"] == len(result["orders"])
    assert set(result["orders"]) == {3}


def test_generate_with_a_stock_model_emits_one_token_a_pass(folder, capsys):
    _, result = run(capsys, "generate", "Hello", "--model", folder / "pair" / "base", "--max-new-tokens", 9)
    assert set(result["orders"]) == {1} and result["tokens_per_forward"] == 1.0


def test_generate_and_compare_run_on_8_bit_weights_and_so_many_threads(folder, capsys, monkeypatch):
    import torch

    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    own = run(capsys, "generate", "Hello", "--model", folder / "pair", "--max-new-tokens", 30)[1]
    assert not asked, "where there is one thread there is nothing to choose"
    for verb in ("generate", "compare"):
        code, result = run(capsys, verb, "Hello", "--model", folder / "pair", "--max-new-tokens", 30,
                           "--weights", "int8", "--threads", 2)  # fmt: skip
        assert code == 0 and result.get("tokens", 30) <= 30
        assert asked == [2] and not asked.clear()
        assert result.get("text") != own["text"], "random weights have no clear favourites: rounding tells"


def test_compare_runs_both_lanes_and_audits_them(folder, capsys):
    code, result = run(capsys, "compare", "Hello", "--model", folder / "pair", "--max-new-tokens", 24)
    assert code == 0
    assert result["base"]["tokens"] == result["base"]["passes"]
    assert "wall_clock_ratio" in result
    for lane in ("base", "dynamo"):
        assert result[lane]["nats_per_token_under_base"] > 0
        assert 0 <= result[lane]["share_below_1_percent"] <= 1


def test_train_count_perplexity_chain(folder, capsys):
    shape = ["--steps", 3, "--batch-size", 2, "--block-size", 32, "--data", folder / "data.jsonl"]
    code, result = run(capsys, "train", "--new", "2x16x2", "--tokenizer", folder / "tokenizer",
                       "--heads", 1, "--output", folder / "base", "--validation", folder / "data.jsonl",
                       *shape)  # fmt: skip
    assert code == 0 and result["steps"] == 3 and len(result["validation_nats"]) == 1
    assert result["tokens_per_second"] > 0 and result["peak_mb"] > 10
    assert json.loads((folder / "base/model/config.json").read_text())["model_type"] == "gpt_neox"
    code, _ = run(capsys, "train", "--model", folder / "base/model", "--heads", 2,
                  "--output", folder / "heads", *shape)  # fmt: skip
    assert code == 0
    assert json.loads((folder / "heads/model/config.json").read_text())["num_token_heads"] == 2
    assert not (folder / "heads/checkpoint").exists(), "a finished run needs no checkpoint"
    table = folder / "heads/model/cooccurrence.safetensors"
    code, result = run(capsys, "count", "--tokenizer", folder / "tokenizer", "--order", 2,
                       "--data", folder / "data.jsonl", "--output", table)  # fmt: skip
    assert code == 0 and result["tokens"] > 50 and table.is_file()
    code, result = run(
        capsys, "perplexity", "--model", folder / "heads/model", "--data", folder / "data.jsonl"
    )
    assert code == 0 and len(result["ppl"]) == 2 and result["bits_per_byte"] > 0
    assert result["joint_ppl"][1] == pytest.approx((result["ppl"][0] * result["ppl"][1]) ** 0.5)


def test_model_trained_on_conversations_stops_at_the_end_of_a_turn(folder, capsys, tokenizer):
    """A Pythia knows only its end of text; with the chat template it must learn to stop at <|end|> too."""
    pythia = tiny_base(seed=3, eos_token_id=0)
    save_model(pythia, tokenizer, folder / "pythia")
    run(capsys, "train", "--model", folder / "pythia", "--steps", 1, "--batch-size", 1, "--block-size", 16,
        "--data", folder / "data.jsonl", "--output", folder / "taught")  # fmt: skip
    declared = json.loads((folder / "taught/model/generation_config.json").read_text())["eos_token_id"]
    assert declared == [0, tokenizer.eos_token_id]


BAD = {
    "threads": (["generate", "hi", "--threads", "many"], "threads: "),
    "too many heads": (
        ["train", "--model", "P", "--data", "D", "--output", "O", "--heads", "6"],
        "num_token_heads: ",
    ),
    "heads there already": (
        ["train", "--model", "Y", "--data", "D", "--output", "O", "--heads", "4"],
        "has token heads already and keeps them; leave out num_token_heads",
    ),
    "block": (
        ["train", "--model", "P", "--data", "D", "--output", "O", "--block-size", "0"],
        "block_size: ",
    ),
    "done": (["train", "--model", "P", "--data", "D", "--output", "DONE"], "holds a finished model already"),
    "cut": (
        ["perplexity", "--data", "D", "--cut", "4096"],
        "(the model's positions) tokens, got 4096",
    ),
    "device": (["generate", "hi", "--device", "quantum"], "device: "),
    "seed": (["generate", "hi", "--seed", "-3"], "seed: "),
    "threshold": (["generate", "hi", "--threshold", "1.5"], "threshold: "),
    "top-k": (["generate", "hi", "--top-k", "0"], "top_k: "),
    "empty prompt": (["generate", "  "], "prompt: "),
    "long prompt": (["generate", "word " * 10_000], "the model reads 640"),
    "no model": (["generate", "hi", "--model", "/nowhere"], "model: "),
    "no data": (["perplexity", "--data", "/nowhere.jsonl"], "No such file"),
    "length": (["generate", "hi", "--max-new-tokens", "0"], "max_new_tokens: "),
    "no folder": (["count", "--tokenizer", "T", "--data", "D", "--output", "/nowhere/t"], "does not exist"),
    "shape": (
        ["train", "--new", "big", "--tokenizer", "T", "--data", "D", "--output", "O"],
        "expected LAYERSx",
    ),
}


@pytest.mark.parametrize("arguments, sentence", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, capsys, arguments, sentence):
    places = {"T": folder / "tokenizer", "D": folder / "data.jsonl", "O": folder / "out"}
    places |= {"P": folder / "pair/base", "Y": folder / "pair/dynamo", "DONE": folder / "done"}
    (folder / "done/model").mkdir(parents=True, exist_ok=True)
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if arguments[0] in ("generate", "perplexity") and "--model" not in arguments:
        arguments += ["--model", str(folder / "pair")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(lines) == 1 and sentence in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"python -m dynamo {verb}" in capsys.readouterr().out


def test_the_program_itself_exits_with_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "dynamo", "generate", "hi", "--threshold", "7"],
        capture_output=True, text=True, cwd=ROOT, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: threshold: expected 0 to 1, got 7.0")
    assert "Traceback" not in done.stderr and done.stdout == ""
