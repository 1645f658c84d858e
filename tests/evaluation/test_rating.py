"""Rating an instruction set by a judge: `judge --instructions`, for `finetune --min-rating`."""

import json
import re

import pytest
from huggingface_hub import constants
from judges import JudgeServer

from dynamo.__main__ import main
from dynamo.data.instructions import rated, read_examples, read_ratings
from dynamo.evaluation.judge import example_rows

EXAMPLES = [
    {"instruction": "Name a colour.", "output": "Blue, which is worth 9."},
    {"instruction": "Name a fruit.", "output": "I would rather not."},
    {"instruction": "Add.", "input": "1 and 1", "output": "It is worth 3."},
]


def by_its_worth(request):
    """The rating that the judged text itself tells; no verdict where it tells none."""
    worth = re.search(r"<answer>.*worth (\d+).*</answer>", request["messages"][0]["content"], re.DOTALL)
    return f"[[{worth[1]}]]" if worth else "I cannot say."


@pytest.fixture
def rate(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    data = tmp_path / "data.json"
    data.write_text(json.dumps(EXAMPLES))

    def rate(answer):
        server = JudgeServer(answer)
        try:
            code = main(["judge", "--instructions", str(data), "--output", str(tmp_path / "verdicts.jsonl"),
                         "--ratings", str(tmp_path / "ratings.json"), "--endpoint", server.url,
                         "--judge-model", "judge", "--workers", "1", "--attempts", "1"])  # fmt: skip
        finally:
            server.close()
        said = capsys.readouterr().out.splitlines()
        return code, json.loads(said[-1]) if said else None, server.requests

    rate.data, rate.ratings = data, tmp_path / "ratings.json"
    return rate


def test_ratings_are_in_the_datas_order_and_no_verdict_is_below_every_bar(rate):
    code, result, requests = rate(by_its_worth)
    assert code == 0 and len(requests) == 3
    assert (result["judged"], result["without_verdict"], result["mean"]) == (3, 1, 6.0)
    ratings = read_ratings(rate.ratings)
    assert ratings == [9.0, 0.0, 3.0]
    kept = rated(read_examples(rate.data), 1.0, ratings)
    assert [each.content[1]["content"] for each in kept] == [EXAMPLES[0]["output"], EXAMPLES[2]["output"]]


def test_no_ratings_are_written_before_all_are_there_and_a_run_goes_on(rate):
    answers = iter(["[[7]]", 500, "[[5]]"])
    code, result, _ = rate(lambda request: next(answers))
    assert code == 0 and (result["missing"], result["ratings"]) == (1, None)
    assert not rate.ratings.exists()
    code, result, requests = rate(lambda request: "[[8]]")
    assert code == 0 and len(requests) == 1 and sorted(read_ratings(rate.ratings)) == [5.0, 7.0, 8.0]


def test_verdicts_of_other_data_are_refused(rate, capsys):
    rate(by_its_worth)
    rate.data.write_text(json.dumps(EXAMPLES[::-1]))
    code, _, requests = rate(by_its_worth)
    assert code == 2 and requests == []


def test_a_conversations_last_reply_is_rated_beside_all_before_it(tmp_path):
    path = tmp_path / "talk.jsonl"
    turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "A room?"), ("assistant", "In Rome?")]
    path.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    (row,) = example_rows(read_examples(path))
    assert row["text"] == "In Rome?"
    assert row["prompt"] == "user: Hello\n\nassistant: Hi\n\nuser: A room?"
