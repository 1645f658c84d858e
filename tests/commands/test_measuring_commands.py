"""The verbs that measure, run as a user runs them, on a tiny pair."""

import json

import pytest
import torch
from command_line import LONGEST, folder, run

from dynamo.__main__ import main
from dynamo.data.text import encode_chat
from dynamo.evaluation import sweep
from dynamo.evaluation.sweep_report import SweepReport

__all__ = ["folder"]  # a fixture

# -- sweep ------------------------------------------------------------------------------------------------


def test_sweep_prints_and_writes_the_same_report(folder, capsys):
    output = folder / "sweep.json"
    code, result = run(capsys, "sweep", "--model", folder / "pair",
                       "--prompts", folder / "prompts.json", "--seeds", 2,
                       "--thresholds", 0, 0.5, 1, "--mask-strength", 0,
                       "--data", folder / "data.jsonl", "--positions", 20, "--output", output,
                       *LONGEST)  # fmt: skip
    assert code == 0
    report = SweepReport.read(output)
    assert json.loads(json.dumps(report.to_json())) == result
    assert [point.threshold for point in report.points] == [0.0, 0.5, 1.0]
    assert report.base.replies == report.points[0].replies == 4
    assert report.points[0].share_by_order == {"3": 1.0}, "threshold 0 without a mask always emits three"
    assert report.points[2].share_by_order == {"1": 1.0}
    assert report.options["batch"] == 16, "only first replies were timed"
    assert report.options["mask_strength"] == 0 and not {"threshold", "exact"} & set(report.options)
    assert report.machine["dtype"] == "float32" and report.machine["threads"] == torch.get_num_threads()
    assert [(c.order, c.event) for c in report.calibration] == [
        (2, "text"),
        (2, "base"),
        (3, "text"),
        (3, "base"),
    ]


def test_a_killed_sweep_goes_on_with_the_next_threshold(folder, capsys, tmp_path, monkeypatch):
    """What is wrong with the held-out text is said before anything is measured."""
    output = tmp_path / "sweep.json"
    arguments = ["sweep", "--model", folder / "pair", "--prompts", folder / "prompts.json", "--seeds", 1,
                 "--mask-strength", 0, "--output", output, *LONGEST]  # fmt: skip
    asked = []
    whole = sweep.sweep

    def killed_after_two(pair, thresholds, *more, **named):
        asked.append(list(thresholds))
        for number, point in enumerate(whole(pair, thresholds, *more, **named)):
            if number == 2 and len(asked) == 1:
                raise KeyboardInterrupt
            yield point

    monkeypatch.setattr(sweep, "sweep", killed_after_two)
    (tmp_path / "bad.jsonl").write_text("{")
    assert main([*map(str, arguments), "--data", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl, line 1: not JSON" in capsys.readouterr().err and not asked
    with pytest.raises(KeyboardInterrupt):
        run(capsys, *arguments, "--thresholds", 0, 1)
    half = (tmp_path / "sweep.json.points").read_text()
    assert main([*map(str, arguments), "--top-k", "7"]) == 2
    assert "top_k: 50 then, 7 now" in capsys.readouterr().err
    code, result = run(capsys, *arguments, "--thresholds", 0, 1)
    assert code == 0 and asked == [[0.0, 1.0], [1.0]], "the point at 0 was kept"
    assert [point["threshold"] for point in result["points"]] == [0.0, 1.0]
    kept = [json.loads(line) for line in half.splitlines()]
    assert [row["speed_up"] for row in kept] == [result["base"]["speed_up"], result["points"][0]["speed_up"]]
    assert [path.name for path in tmp_path.iterdir() if "sweep" in path.name] == ["sweep.json"]


def test_sweep_completes_plain_text_where_there_is_no_chat_template(folder, capsys, tokenizer, tmp_path):
    from dynamo.data.prompts import read_prompts

    chats = json.loads((folder / "prompts.json").read_text())
    assert read_prompts(folder / "prompts.json", tokenizer) == [encode_chat(tokenizer, c) for c in chats]
    assert len(read_prompts(None, tokenizer)) == 40 and len(read_prompts(None, tokenizer, 3)) == 3

    class Plain:
        chat_template = None

        def get_added_vocab(self):
            return {}

        def __call__(self, texts, **_):
            return {"input_ids": [[len(text)] for text in texts]}

    assert read_prompts(folder / "prompts.json", Plain()) == [[11], [15]]


# -- bench ------------------------------------------------------------------------------------------------

HEADLINE = (
    "own_over_generate",
    "dynamo_over_own",
    "dynamo_over_generate",
    "exact_over_own",
    "tokens_per_forward",
    "conversion",
    "sampler_share",
    "bandwidth_share",
)


def test_bench_gives_every_number_with_what_it_depends_on(folder, capsys):
    output = folder / "bench.json"
    code, result = run(capsys, "bench", "--model", folder / "pair",
                       "--prompts", folder / "prompts.json", "--runs", 2, "--threshold", 0.1,
                       "--rows", 1, 2, "--context", 8, "--top-k", 5, 50, "--thread-counts", 1,
                       "--compile-limit", 0.1, "--draft-model", folder / "pair" / "base",
                       "--peer", "llama.cpp", "--output", output, *LONGEST)  # fmt: skip
    assert code == 0 and json.loads(output.read_text()) == result
    assert all(isinstance(result[name], float) and result[name] > 0 for name in HEADLINE)
    assert result["conversion"] == pytest.approx(result["dynamo_over_own"] / result["tokens_per_forward"])
    assert set(result["lanes"]) == {"generate", "prompt_lookup", "assisted", "own", "dynamo", "exact"}
    assert set(HEADLINE) <= set(result["intervals"])
    assert result["lost"].pop("compiled") == "no reply within 0 s", "left out with its reason"
    assert "not read from a GGUF file" in result["lost"].pop("llamacpp") and not result["lost"]
    for name, lane in result["lanes"].items():
        assert len(lane["runs"]) == 2 and lane["share_of_bandwidth"] > 0
        assert ("flags" in lane) == (name in ("generate", "prompt_lookup", "assisted"))
    speeds = {name: lane["tokens_per_second"] for name, lane in result["lanes"].items()}
    assert result["own_over_generate"] == pytest.approx(speeds["own"] / speeds["generate"])
    assert result["machine"]["dtype"] == "float32" and result["options"]["threshold"] == 0.1
    assert set(result["rows_tokens_per_second"]) == {"1", "2"}
    (at_8,) = result["context_tokens_per_second"].values()
    per_pass = result["lanes"]["exact"]["tokens_per_forward"]
    assert at_8["exact"] == pytest.approx(1000 / result["context_ms"]["8"]["exact"] * per_pass)
    assert set(result["context_ms"]) == {"8"} and set(result["top_k_ms"]) == {"5", "50"}
    assert set(result["split"]) == {"base", "dynamo"}
    assert set(result["threads_ms"]) == {"1"} and result["threads_asked"] == "auto"


def test_quick_bench_of_random_weights_in_a_given_shape(capsys):
    code, result = run(capsys, "bench", "--shape", "3x32x4x400", "--quick", "--runs", 1, *LONGEST)
    assert code == 0
    assert set(result["lanes"]) == {"generate", "own", "dynamo"} and "exact_over_own" not in result
    assert not result["lost"], "nothing is compiled where it must be quick"
    assert result["tokens_per_forward"] > 2.5 and result["prompts"] == 10


# -- bad input --------------------------------------------------------------------------------------------

BAD = {
    "threshold": (["sweep", "--thresholds", "2"], "threshold: "),
    "seeds": (["sweep", "--seeds", "0"], "seeds: "),
    "limit": (["sweep", "--limit", "-1"], "limit: "),
    "positions": (["sweep", "--positions", "0"], "positions: "),
    "no folder": (["sweep", "--output", "/nowhere/x.json"], "output: "),
    "no data": (["sweep", "--data", "/nowhere.jsonl"], "data: "),
    "prompts": (["sweep", "--prompts", "TEXTS"], "prompts: "),
    "chats": (["sweep", "--prompts", "NOCHATS"], "nochats.json, row 1: "),
    "shape": (["bench", "--shape", "pythia-3b"], "shape: "),
    "candidates": (["bench", "--top-k", "0"], "top_k: "),
    "rows": (["bench", "--rows", "0"], "rows: "),
    "threads": (["bench", "--threads", "0"], "threads: "),
    "curve": (["bench", "--thread-counts", "0"], "threads: "),
    "batch": (["sweep", "--batch", "0"], "batch: "),
    "draft": (
        ["bench", "--quick", "--draft-model", "embedded"],
        "embedded has another vocabulary",
    ),
    "page": (["bench", "--report", "D"], "has no '<!-- bench TABLE RESULT.json -->' to write at"),
    "runs": (["bench", "--runs", "0"], "runs: "),
    "device": (["bench", "--shape", "2x32x4x500", "--device", "quantum"], "device: "),
    "nothing to audit": (["audit"], "traces: "),
    "both": (["audit", "D", "--prompt", "hi"], "traces: "),
    "lone reply": (["audit", "D", "--reply", "hi"], "reply: "),
    "no trace": (["audit", "D"], "data.jsonl: line 1: expected an object with one of the keys"),
    "no heads": (["audit", "--prompt", "hi", "--model", "P"], "has no token heads to write one"),
}


@pytest.mark.parametrize("arguments, sentence", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, capsys, arguments, sentence):
    (folder / "nochats.json").write_text('[[{"role": "user"}]]')
    (folder / "texts.json").write_text('["no chat"]')
    places = {"D": folder / "data.jsonl", "P": folder / "pair/base"}
    places |= {"NOCHATS": folder / "nochats.json", "TEXTS": folder / "texts.json"}
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", str(folder / "pair")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(lines) == 1 and sentence in lines[0], err
