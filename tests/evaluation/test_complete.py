"""Writing texts to be judged: each once, killed or not, by itself or decoded with others."""

import itertools
import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from command_line import run
from processes import killed_itself, printed_by_ranks
from replies import lines
from tables import save_pair

from dynamo.__main__ import main
from dynamo.evaluation import completion
from dynamo.evaluation.journal import Journal, SharedJournal


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tokenizer):
    return save_pair(tmp_path_factory.mktemp("benchmarks") / "pair", tokenizer)


@pytest.fixture(scope="module")
def three_prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Once", "The sea", "A city is")))
    return path


SHAPE = ["--thresholds", "1", "0", "--seeds", "2", "--max-new-tokens", "8", "--mask-strength", "0"]


def test_the_papers_ten_prompts_and_51_thresholds_are_the_default():
    from dynamo.commands.complete import _thresholds

    assert len(completion.PAPER_PROMPTS) == 10 == len({prompt.id for prompt in completion.PAPER_PROMPTS})
    thresholds = _thresholds(None, chat=False)
    assert len(thresholds) == 51 and thresholds[0] == 0.0 and thresholds[-1] == 1.0 and 0.58 in thresholds


def test_every_prompt_seed_and_threshold_is_written_once_beside_the_base(pair, tmp_path, capsys):
    output = tmp_path / "texts.jsonl"
    code, result = run(capsys, "complete", "--model", pair, "--output", output, *SHAPE)
    rows = lines(output)
    assert code == 0 and result["written"] == len(rows) == 10 * 2 * 3
    assert len({tuple(row[name] for name in completion.KEY) for row in rows}) == len(rows)
    for row in rows:
        if row["threshold"] in (None, 1.0):
            assert row["passes"] == row["tokens"]
        else:
            assert row["tokens"] <= 8 and row["passes"] == -(-row["tokens"] // 3)
    again, result = run(capsys, "complete", "--model", pair, "--output", output, *SHAPE)
    assert again == 0 and result["written"] == 0 and lines(output) == rows


def test_seeds_decoded_together_write_the_same_texts_and_carry_no_clock(
    pair, three_prompts, tmp_path, capsys
):
    arguments = ["complete", "--model", pair, "--prompts", three_prompts, *SHAPE, "--seeds", 4]
    rows = {}
    for batch in (1, 3):
        output = tmp_path / f"{batch}.jsonl"
        run(capsys, *arguments, "--output", output, "--batch", batch)
        rows[batch] = {tuple(row[name] for name in completion.KEY): row for row in lines(output)}
    assert rows[1].keys() == rows[3].keys() and len(rows[1]) == 3 * 4 * 3
    for key, row in rows[3].items():
        clocks = ("decode_tokens", "decode_seconds", "prefill_seconds")
        one = rows[1][key]
        assert one["prefill_seconds"] > 0
        assert {**row, **{name: one[name] for name in clocks}} == one
        if key[1] == 0:
            assert row["decode_tokens"] == one["decode_tokens"] and row["prefill_seconds"] > 0
        else:
            assert not any(row[name] for name in clocks)


def _complete_until_killed(arguments):
    write, rows = Journal.write, itertools.count(1)

    def counted(self, row):
        write(self, row)
        if next(rows) == 7:
            self._file.write('{"prompt_id": "paper-')
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = counted
    main(arguments)


def test_a_killed_run_goes_on_to_the_texts_of_a_whole_one(pair, three_prompts, tmp_path, capsys):
    """kill -9 in the middle of writing the eighth row."""
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    arguments = ["complete", "--model", str(pair), "--prompts", str(three_prompts), *SHAPE, "--output"]
    assert killed_itself(_complete_until_killed, [*arguments, str(killed)])
    assert killed.read_text().endswith('{"prompt_id": "paper-')
    assert run(capsys, *arguments, killed)[1]["written"] == 18 - 7
    run(capsys, *arguments, whole)

    def texts(path):
        return {tuple(row[name] for name in completion.KEY): row["text"] for row in lines(path)}

    assert texts(killed) == texts(whole)


@pytest.mark.timeout(900)
def test_two_processes_share_the_prompts_out_and_write_the_texts_of_one(
    pair, three_prompts, tmp_path, capsys
):
    together, one = tmp_path / "together.jsonl", tmp_path / "one.jsonl"
    arguments = ["complete", "--model", str(pair), "--prompts", str(three_prompts), *SHAPE, "--output"]
    printed = printed_by_ranks(tmp_path, 2, main, [*arguments, str(together)])
    shares = {
        each["process"]: each["written"]
        for each in (json.loads(line) for line in "".join(printed).splitlines() if line.startswith("{"))
    }
    assert shares == {0: 18, 1: 6}
    run(capsys, *arguments, one)
    texts = [
        sorted((row["prompt_id"], row["seed"], str(row["threshold"]), row["text"]) for row in lines(path))
        for path in (together, one)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 18
    assert [path.name for path in tmp_path.iterdir()].count("together.jsonl") == 1
    assert not list(tmp_path.glob("*.share-*"))


def _process(number, count=1):
    return SimpleNamespace(number=number, count=count, first_alone=nullcontext, wait=lambda: None)


def test_what_killed_processes_wrote_is_gathered_by_the_next_run(tmp_path):
    """The first of them was killed while it gathered: what it had taken in is there once, not twice."""
    output, settings = tmp_path / "texts.jsonl", {"top_k": 50}
    for name, ids in (("texts.jsonl", "a"), ("texts.jsonl.share-0", "ab"), ("texts.jsonl.share-5", "c")):
        with Journal(tmp_path / name, ("id",), settings) as journal:
            for each in ids:
                journal.write({"id": each})
    (tmp_path / "texts.jsonl.share-5").open("a").write('{"id": "d", "sett')
    (tmp_path / "other.jsonl.share-0").write_text("not ours")
    with SharedJournal(output, ("id",), settings, _process(0)) as journal:
        assert journal.there == 3 and ("c",) in journal and ("d",) not in journal
        journal.write({"id": "e"})
    assert journal.written == 1
    assert [row["id"] for row in lines(output)] == ["a", "b", "c", "e"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl.share-0", "texts.jsonl"]


def test_a_process_that_fails_leaves_its_rows_for_the_next_run(tmp_path):
    output = tmp_path / "texts.jsonl"
    with pytest.raises(RuntimeError), SharedJournal(output, ("id",), {}, _process(1, 2)) as journal:
        journal.write({"id": "a"})
        raise RuntimeError
    assert journal.written == 1 and not output.exists()
    assert SharedJournal(output, ("id",), {}, _process(0)).there == 1


def test_other_settings_and_corrupt_rows_are_refused(pair, tmp_path, capsys):
    output = tmp_path / "texts.jsonl"
    row = {"prompt_id": "paper-1", "seed": 0, "threshold": None, "settings": {"top_k": 3}}
    output.write_text(json.dumps(row) + "\n")
    code, error = run(capsys, "complete", "--model", pair, "--output", output, *SHAPE)
    assert code == 2 and "top_k: 3 then, 50 now" in error
    output.write_text("{oops\n")
    code, error = run(capsys, "complete", "--model", pair, "--output", output, *SHAPE)
    assert code == 2 and "texts.jsonl, line 1: not JSON" in error


def test_a_prompt_without_an_id_is_named_by_its_line(tmp_path):
    """A null is an absent field: all would have had the id "None"."""
    rows = [{"prompt": "Why", "id": None, "kind": None}, {"prompt": "How"}, {"prompt": "When", "id": 7}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = completion.read_prompts(tmp_path / "prompts.jsonl")
    assert [(each.id, each.kind) for each in prompts] == [("line-1", ""), ("line-2", ""), ("7", "")]


def test_questions_are_asked_in_the_chat_template(pair, tmp_path, capsys, tokenizer):
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "generic", "turns": [f"Why {n}?"]} for n in (1, 2, 3)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    prompts = completion.read_prompts(questions)
    expected = [*tokenizer("Why 1?", add_special_tokens=False)["input_ids"]]
    assert completion.encode(prompts[0], tokenizer)[1:-2] == expected
    assert tokenizer.decode(completion.encode(prompts[0], tokenizer)) == "<|user|>Why 1?<|end|><|assistant|>"
    arguments = ["complete", "--model", pair, "--prompts", questions, "--seeds", 1, "--max-new-tokens", 2]
    for part in ("0/2", "1/2"):
        run(capsys, *arguments, "--part", part, "--output", tmp_path / part[0])
    first, second = ({row["prompt_id"] for row in lines(tmp_path / part)} for part in "01")
    assert first == {"question-1", "question-3"} and second == {"question-2"}
    assert {row["threshold"] for row in lines(tmp_path / "0")} == {None, 1.0, 0.75, 0.5, 0.25, 0.0}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"turns": ["a", "b"], "question_id": 1}, "line 2: expected 'prompt', or 'question_id' and 'turns'"),
        ({"turns": ["a"]}, "line 2: the question has no 'question_id'"),
        ({"prompt": " "}, "line 2: expected 'prompt'"),
        ({"prompt": "b", "id": "x"}, "line 2: the id x is given twice"),
    ],
)
def test_a_bad_prompt_is_named(tmp_path, row, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"prompt": "a", "id": "x"}, row])))
    with pytest.raises(ValueError, match=message):
        completion.read_prompts(path)
