"""Asking a judge: an endpoint that answers well, badly or not at all, and verdicts that are summed up."""

import itertools
import json
import random

import pytest
from command_line import run
from huggingface_hub import constants
from judges import JudgeServer
from replies import lines

from dynamo.evaluation import judge
from dynamo.evaluation.endpoint import Endpoint, NoAnswer

# -- asking the judge ---------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    servers = []

    def serve(answer):
        servers.append(JudgeServer(answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def scripted(*replies):
    remaining = iter(replies)
    return lambda request: next(remaining)


def endpoint(server, waits=None, **options):
    return Endpoint(
        server.url, "judge", "sk-secret", sleep=[].append if waits is None else waits.append, **options
    )


def test_a_busy_broken_and_babbling_endpoint_is_asked_again(serve):
    waits = []
    server = serve(
        scripted((429, {"retry-after": "7"}), 500, b"not json", b'{"choices": []}', 503, "Fine. [[9]]")
    )
    answer = endpoint(server, waits).ask("?", 10, 0.0, 3)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("Fine. [[9]]", 100, 7)
    assert answer.attempts == 6 == len(server.requests)
    # The endpoint's own word first, then doubled each time, by chance up to half as long again.
    assert waits[0] == 7.0 and all(2**n <= waits[n] <= 1.5 * 2**n for n in range(1, 5))
    request = server.requests[-1]
    assert request["model"] == "judge" and request["max_tokens"] == 10 and request["seed"] == 3
    assert request["temperature"] == 0.0 and server.paths[0] == "/v1/chat/completions"


def test_a_slow_answer_is_given_up_and_asked_for_again(serve):
    replies = itertools.chain([6.0], itertools.repeat("[[4]]"))
    answer = endpoint(serve(lambda request: next(replies)), timeout=1.5, attempts=9).ask("?", 10, 0.0, 0)
    assert answer.text == "[[4]]" and answer.attempts >= 2


def test_an_endpoint_that_never_answers_is_told_so(serve):
    with pytest.raises(NoAnswer, match="after 3 attempts, the last: status 500"):
        endpoint(serve(lambda request: 500), attempts=3).ask("?", 10, 0.0, 0)
    with pytest.raises(NoAnswer, match="malformed answer"):
        endpoint(serve(lambda request: b'{"choices": [{"message": {"content": null}}]}'), attempts=1).ask(
            "?", 10, 0.0, 0
        )


def test_a_refusal_is_not_asked_again_and_does_not_show_the_key(serve):
    server = serve(lambda request: 401)
    with pytest.raises(OSError, match="refused with status 401") as refused:
        endpoint(server).ask("?", 10, 0.0, 0)
    assert len(server.requests) == 1 and "sk-secret" not in str(refused.value)


def test_the_hubs_token_is_never_sent_to_a_judge(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    server = serve(lambda request: "[[1]]")
    Endpoint(server.url, "judge").ask("?", 10, 0.0, 0)
    Endpoint(server.url, "judge", "sk-mine").ask("?", 10, 0.0, 0)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer sk-mine"]
    assert "hf_private" not in json.dumps(server.headers)


def test_a_dead_endpoint_ends_the_run_and_keeps_what_was_judged(serve):
    server = serve(scripted("[[3]]", *[500] * 50))
    tasks = [judge.Task({"mode": "single", "n": n}, str(n)) for n in range(20)]
    rows, failed = [], []
    with pytest.raises(OSError, match="5 questions in a row had no answer"):
        rows.extend(judge.judge(tasks, endpoint(server, attempts=1), 1, failed=lambda *t: failed.append(t)))
    assert [row["rating"] for row in rows] == [3.0]
    assert len(failed) == 5 and len(server.requests) == 6


# -- judging texts ------------------------------------------------------------------------------------------


def texts(prompts=4, seeds=3):
    rows = []
    for number, seed in itertools.product(range(prompts), range(seeds)):
        for threshold, speed in ((None, 1.0), (1.0, 0.9), (0.5, 2.0)):
            text = "good" if threshold == 1.0 else f"{'bad' if threshold else 'base'} {number} {seed}"
            rows.append({
                "prompt_id": f"p{number}", "seed": seed, "threshold": threshold, "chat": False,
                "prompt": f"Prompt {number}", "text": text, "decode_tokens": 10,
                "decode_seconds": 1.0 / speed, "settings": {"heads": 3},
            })  # fmt: skip
    return rows


@pytest.fixture
def completions(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts()))
    return path


def fair(request):
    """Prefers "good" to the base's text and that to "bad", wherever they stand."""
    question = request["messages"][0]["content"]
    a, b = (question.split(f"<{x}>\n")[-1].split(f"\n</{x}>")[0] for x in "AB")
    if "Rate" in question or "<A>" not in question:
        return "[[8]]" if "\ngood\n" in question else "[[4]]"
    better = [("bad", "base", "good").index(text.split()[0]) for text in (a, b)]
    return f"Because. [[{'A' if better[0] > better[1] else 'B'}]]"


def judged(capsys, server, completions, tmp_path, *more):
    where = ["--completions", completions, "--output", tmp_path / "verdicts.jsonl"]
    return run(capsys, "judge", *where, "--endpoint", server.url, "--judge-model", "judge", *more)


def test_a_fair_judge_finds_the_better_text_in_either_place(
    serve, completions, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    server = serve(fair)
    code, result = judged(capsys, server, completions, tmp_path, "--price-in", 2, "--price-out", 10)
    assert code == 0 and result["judged"] == 24 and result["missing"] == result["failed"] == 0
    first, second = result["points"]
    assert (first["wins"], first["losses"], second["wins"], second["losses"]) == (12, 0, 0, 12)
    assert first["speed_up"]["value"] == pytest.approx(0.9)
    assert second["speed_up"]["value"] == pytest.approx(2.0)
    assert result["prompt_tokens"] == 2400 and result["cost"] == pytest.approx((2400 * 2 + 168 * 10) / 1e6)
    rows = lines(tmp_path / "verdicts.jsonl")
    assert {row["first"] for row in rows} == {"base", "dynamo"}
    assert "sk-secret" not in (tmp_path / "verdicts.jsonl").read_text()
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    again, result = judged(capsys, server, completions, tmp_path)
    assert again == 0 and result["judged"] == 24 and len(server.requests) == 24, "nothing is asked twice"


def test_a_judge_that_always_says_a_is_no_judge_in_both_orders(serve, completions, tmp_path, capsys):
    code, result = judged(capsys, serve(lambda _: "[[A]]"), completions, tmp_path, "--order", "both")
    assert code == 0 and result["judged"] == 48
    assert [(p["wins"], p["losses"], p["ties"]) for p in result["points"]] == [(0, 0, 12)] * 2
    assert result["same_quality"] is None


def test_answers_without_a_verdict_are_counted_and_not_guessed(serve, completions, tmp_path, capsys):
    replies = ("[[A]] or rather [[B]]", "Both are fine.", "[[C]]")
    server = serve(lambda request: random.Random(request["messages"][0]["content"]).choice(replies))
    _, result = judged(capsys, server, completions, tmp_path)
    rows = lines(tmp_path / "verdicts.jsonl")
    ties = sum(row["answer"] == "[[C]]" for row in rows)
    assert 0 < ties < 24 and sum(point["ties"] for point in result["points"]) == ties
    assert sum(point["no_verdict"] for point in result["points"]) == 24 - ties
    assert all(row["winner"] is None for row in rows if row["answer"] != "[[C]]")


def test_single_ratings_by_threshold(serve, completions, tmp_path, capsys):
    code, result = judged(capsys, serve(fair), completions, tmp_path, "--mode", "single")
    assert code == 0 and result["judged"] == 36
    means = {each["threshold"]: each["mean"]["value"] for each in result["ratings"]}
    assert means == {None: 4.0, 1.0: 8.0, 0.5: 4.0}


def test_the_same_text_twice_is_a_tie_without_a_question(serve, completions, tmp_path, capsys):
    rows = texts()
    for row in rows:
        row["text"] = "same"
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve(fair)
    _, result = judged(capsys, server, completions, tmp_path)
    assert server.requests == [] and [point["ties"] for point in result["points"]] == [12, 12]


def test_the_order_is_random_but_the_same_again():
    rows = texts(prompts=40, seeds=1)
    firsts = [task.row["first"] for task in judge.pairwise_tasks(rows, "random", seed=1)]
    assert firsts == [task.row["first"] for task in judge.pairwise_tasks(rows, "random", seed=1)]
    assert 20 < firsts.count("base") < 60
    assert firsts != [task.row["first"] for task in judge.pairwise_tasks(rows, "random", seed=2)]
    # What stands as A is the text of the lane that is first.
    for task in judge.pairwise_tasks(rows, "both"):
        own = next(
            r["text"] for r in rows if all(r[n] == task.row[n] for n in ("prompt_id", "seed", "threshold"))
        )
        a = task.question.split("<A>\n")[1].split("\n</A>")[0]
        assert (a == own) == (task.row["first"] == "dynamo")


def test_unanswered_questions_are_asked_in_the_next_run(serve, completions, tmp_path, capsys):
    bad = serve(lambda request: 500 if "bad" in request["messages"][0]["content"] else "[[C]]")
    code, result = judged(capsys, bad, completions, tmp_path, "--attempts", 1, "--workers", 1)
    assert code == 0 and result["failed"] == result["missing"] == 12
    _, result = judged(capsys, serve(fair), completions, tmp_path)
    assert result["judged"] == 24 and result["missing"] == 0


def test_verdicts_are_summed_up_without_an_endpoint(serve, completions, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    code, error = run(capsys, "judge", "--completions", completions, "--output", output)
    assert code == 2 and "nothing is judged yet" in error
    _, with_endpoint = judged(capsys, serve(fair), completions, tmp_path)
    _, without = run(capsys, "judge", "--completions", completions, "--output", output)
    assert without["points"] == with_endpoint["points"]


def test_a_missing_base_text_or_judge_is_said(completions, tmp_path, capsys):
    kept = [row for row in texts() if row["threshold"] is not None]
    completions.write_text("".join(json.dumps(row) + "\n" for row in kept))
    code, error = run(capsys, "judge", "--completions", completions, "--output", tmp_path / "v.jsonl")
    assert code == 2 and "the base has no text for prompt p0, seed 0" in error
    completions.write_text("".join(json.dumps(row) + "\n" for row in texts()))
    arguments = ["judge", "--completions", completions, "--output", tmp_path / "v.jsonl", "--endpoint", "h:1"]
    assert "judge_model: name the judge" in run(capsys, *arguments)[1]
    assert "endpoint: expected a URL" in run(capsys, *arguments, "--judge-model", "j")[1]


WITHOUT = object()


@pytest.mark.parametrize("name, value", [
    *((name, WITHOUT) for name in ("prompt_id", "seed", "threshold", "chat", "prompt", "text", "settings",
                                   "decode_tokens", "decode_seconds")),
    ("prompt_id", ["p"]), ("seed", {"a": 1}), ("seed", 0.5), ("threshold", "low"), ("threshold", 2),
    ("chat", "yes"), ("text", 5), ("prompt", None), ("decode_seconds", "1"), ("decode_seconds", -1),
    ("settings", [1]), ("settings", {}), ("settings", {"heads": "three"}),
])  # fmt: skip
def test_a_text_that_is_none_is_named_by_file_and_line(completions, tmp_path, capsys, name, value):
    rows = texts()
    rows[2][name] = value
    rows[2] = {key: each for key, each in rows[2].items() if each is not WITHOUT}
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--completions", completions, "--output", tmp_path / "verdicts.jsonl"]
    code, error = run(capsys, "judge", *where)
    named = "heads" if name == "settings" and isinstance(value, dict) else name
    assert code == 2 and "texts.jsonl, line 3: " in error and named in error


@pytest.mark.parametrize("name, value", [
    *((name, WITHOUT) for name in ("prompt_id", "mode", "first", "winner", "prompt_tokens", "attempts")),
    ("winner", "me"), ("winner", ["base"]), ("first", "A"), ("mode", "both"), ("attempts", "1"),
])  # fmt: skip
def test_a_verdict_that_is_none_is_named_by_file_and_line(completions, tmp_path, capsys, name, value):
    row = {"prompt_id": "p0", "seed": 0, "threshold": 0.5, "mode": "pairwise", "first": "base",
           "winner": "dynamo", "prompt_tokens": 1, "completion_tokens": 1, "attempts": 1}  # fmt: skip
    wrong = {key: each for key, each in {**row, name: value}.items() if each is not WITHOUT}
    output = tmp_path / "verdicts.jsonl"
    output.write_text("".join(json.dumps(each) + "\n" for each in (row, wrong)))
    code, error = run(capsys, "judge", "--completions", completions, "--output", output)
    assert code == 2 and "verdicts.jsonl, line 2: " in error


def test_ratings_are_not_taken_for_comparisons_nor_a_text_for_two(completions, tmp_path, capsys):
    rating = {"prompt_id": "p0", "seed": 0, "threshold": 0.5, "mode": "single", "first": "base", "rating": 7,
              "prompt_tokens": 1, "completion_tokens": 1, "attempts": 1}  # fmt: skip
    output = tmp_path / "verdicts.jsonl"
    output.write_text(json.dumps(rating) + "\n")
    code, error = run(capsys, "judge", "--completions", completions, "--output", output)
    assert code == 2 and "expected one pair or more" in error
    code, error = run(capsys, "judge", "--completions", completions, completions, "--output", output)
    assert code == 2 and "seed 0, threshold None is given twice" in error
