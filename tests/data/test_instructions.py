import gzip
import json
import os
import signal

import numpy as np
import pytest
from conftest import DIALOGUES, tiny_base, tiny_dynamo
from processes import killed_itself
from tables import table_for
from templates import CHATML, byte_level
from trainings import ALPACA

from dynamo import loading
from dynamo.__main__ import main
from dynamo.data import instructions, text
from dynamo.data.held_out import held_out_nats
from dynamo.data.reading import Reading
from dynamo.data.rows import Row
from dynamo.model.loss import IGNORED_LABEL
from dynamo.training import trainer
from dynamo.training.trainer import save_model

CHATS = [{"messages": turns} for turns in DIALOGUES]


@pytest.fixture
def write(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    return write


def test_a_list_and_lines_read_alike(write, tmp_path):
    lines = write([*ALPACA, *CHATS])
    whole = tmp_path / "list.json.gz"
    whole.write_bytes(gzip.compress(json.dumps([*ALPACA, *CHATS], indent=1).encode()))
    read = instructions.read_examples(lines)
    assert read == instructions.read_examples(whole) and len(read) == 5
    assert read[1].content == [
        {"role": "user", "content": "Double it.\n\n21"},
        {"role": "assistant", "content": "It will be 42."},
    ]
    assert [example.content for example in read[3:]] == DIALOGUES


@pytest.mark.parametrize(
    "row, message",
    [
        ("{oops", "text that is not JSON"),
        ({"instruction": "x"}, "no column that is read"),
        ({"instruction": "x", "output": 3}, "a turn that is no text"),
        ({"instruction": "x", "output": ""}, "an empty reply"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no reply to learn"),
        ({"turns": []}, "an empty conversation"),
        ({"text": "x"}, "text that is no conversation"),
        ("7", "a value that is no object"),
    ],
)
def test_a_row_that_is_no_example_is_left_out_and_named(write, row, message):
    reading = Reading()
    data = write([ALPACA[0], row])
    assert len(instructions.read_examples(data, reading)) == reading.rows == 1
    assert {reason: tally.places for reason, tally in reading.left_out.items()} == {
        message: ["data.jsonl, line 2"]
    }
    with pytest.raises(ValueError, match=r"data.jsonl, line 2: .*--strict"):
        instructions.read_examples(data, Reading(strict=True))
    with pytest.raises(ValueError, match=r"data.jsonl"):
        instructions.read_examples(write([row]))


def test_a_broken_list_is_named_by_its_line_and_a_bad_row_by_its_number(write, tmp_path):
    broken = json.dumps(ALPACA, indent=1).replace('"input": "21",', '"input": "21"')
    line = next(n for n, row in enumerate(broken.splitlines(), 1) if '"21"' in row) + 1
    with pytest.raises(ValueError, match=f"a.json, line {line}: not JSON"):
        instructions.read_examples(write([broken], "a.json"))
    with pytest.raises(ValueError, match=r"b.json, row 2: "):
        instructions.read_examples(write([json.dumps([ALPACA[0], 5])], "b.json"), Reading(strict=True))
    with pytest.raises(ValueError, match=r"c.json: holds no "):
        instructions.read_examples(write([], "c.json"))


def test_only_replies_and_their_ends_are_scored(tokenizer):
    """The scored ids, decoded, are the assistant's turns and nothing else."""
    examples = [Row(turns) for turns in DIALOGUES]
    for (ids, labels), turns in zip(instructions.encode(examples, tokenizer, 640), DIALOGUES, strict=True):
        scored = labels != IGNORED_LABEL
        assert np.array_equal(labels[scored], ids[scored])
        replies = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert tokenizer.decode(ids[scored]) == "".join(reply + text.END_OF_TURN for reply in replies)
        assert ids.tolist() == text.encode_turns(tokenizer, turns).ids  # the chat page's own ids


def test_what_is_cut_before_its_reply_is_left_out(tokenizer):
    examples = [Row(turns) for turns in DIALOGUES]
    first = text.encode_turns(tokenizer, DIALOGUES[0]).answers[0].start
    second = text.encode_turns(tokenizer, DIALOGUES[1]).answers[0].start
    assert first != second
    rows = instructions.encode(examples, tokenizer, min(first, second) + 1)
    assert len(rows) == 1 and (rows[0][1] != IGNORED_LABEL).sum() == 1


def test_loss_on_replies_equals_the_log_probabilities_of_their_tokens(tokenizer):
    """By hand: every head, every scored token, from the full logits of each example alone."""
    import torch

    model = tiny_dynamo(heads=3)
    rows = instructions.encode([Row(turns) for turns in DIALOGUES], tokenizer, 640)
    expected, counts = np.zeros(3), np.zeros(3, int)
    for ids, labels in rows:
        with torch.no_grad():
            log_p = (
                model(torch.tensor(ids[None], dtype=torch.long)).head_logits[:, 0].double().log_softmax(-1)
            )
        for head in range(3):
            for t in range(len(ids) - head - 1):
                if labels[t + head + 1] != IGNORED_LABEL:
                    expected[head] -= log_p[head, t, ids[t + head + 1]]
                    counts[head] += 1
    ids, labels = zip(*rows, strict=True)
    nats, targets = (sums.sum(0) for sums in held_out_nats(model, ids, 640, labels=labels))
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert targets.tolist() == counts.tolist()
    # In training the rows are padded, and divided by all targets of the batch.
    batch = instructions.InstructionRows(rows, seed=1).batch(0, 2)
    output = model.train()(*map(torch.from_numpy, batch[:1]), labels=torch.from_numpy(batch[1]))
    np.testing.assert_allclose(output.head_losses, expected / counts, rtol=1e-5)


def test_every_example_comes_once_an_epoch():
    """Every example comes once an epoch and batches depend on their number alone."""
    rows = [(np.full(n, n, np.int32), np.full(n, n, np.int32)) for n in range(2, 12)]
    one, other = (instructions.InstructionRows(rows, seed=4) for _ in range(2))
    far = one.batch(25, 4)
    epoch = one.batch(0, 10)[0]
    assert sorted(epoch[:, 0]) == list(range(2, 12))
    assert sorted(one.batch(10, 10)[0][:, 0]) == list(range(2, 12))
    assert not np.array_equal(epoch[:, 0], one.batch(10, 10)[0][:, 0])
    assert all(np.array_equal(a, b) for a, b in zip(far, other.batch(25, 4), strict=True))
    ids, labels = one.batch(0, 10)
    assert ((labels == IGNORED_LABEL) == (np.arange(11) >= ids[:, :1])).all()
    assert one.fingerprint() == other.fingerprint() != instructions.InstructionRows(rows, 5).fingerprint()
    assert one.fingerprint() != instructions.InstructionRows(rows[1:], 4).fingerprint()


def test_ratings_keep_the_good_in_their_order(write):
    examples = instructions.read_examples(write(ALPACA))
    ratings = instructions.read_ratings(write([4.5, {"score": "5"}, {"rating": 4.4}], "r.jsonl"))
    assert ratings == [4.5, 5.0, 4.4]
    assert instructions.rated(examples, 4.5, ratings) == examples[:2]
    own = instructions.read_examples(write([row | {"rating": r} for row, r in zip(ALPACA, (1, 2, 3))]))  # noqa: B905
    assert instructions.rated(own, 2.5) == own[2:]
    with pytest.raises(ValueError, match="row 1 of the data has no 'rating'"):
        instructions.rated(examples, 4.5)
    with pytest.raises(ValueError, match="2 ratings for 3 examples"):
        instructions.rated(examples, 4.5, ratings[:2])
    with pytest.raises(ValueError, match="no example is rated 6 or better"):
        instructions.rated(examples, 6, ratings)
    with pytest.raises(ValueError, match=r"q.jsonl, line 1: expected a number"):
        instructions.read_ratings(write([{"stars": 3}], "q.jsonl"))


# -- the verb -----------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path, tokenizer):
    save_model(tiny_base(seed=1), tokenizer, tmp_path / "base")
    save_model(tiny_dynamo(seed=2), tokenizer, tmp_path / "dynamo")
    table_for(tokenizer).save(tmp_path / "dynamo" / loading.TABLE_FILE)
    return tmp_path


SHAPE = ["--batch-size", "2", "--base-lr", "3e-3", "--head-lr", "3e-3", "--max-length", "200"]


def finetune(capsys, *arguments):
    code = main(["finetune", *map(str, arguments), *SHAPE])
    out = capsys.readouterr().out.splitlines()
    return code, json.loads(out[-1]) if out else None


@pytest.mark.parametrize("kind", ["base", "dynamo"])
def test_finetuning_lowers_the_replies_loss(models, write, capsys, kind):
    data = write([*ALPACA, *CHATS])
    code, result = finetune(capsys, "--model", models / kind, "--data", data, "--validation", data,
                            "--output", models / "run", "--epochs", 12)  # fmt: skip
    assert code == 0 and result["steps"] == 30 and result["examples"] == 5
    tuned, tokenizer, table = loading.load_model(str(models / "run/model"))
    rows = instructions.encode(instructions.read_examples(data), tokenizer, 200)
    ids, labels = zip(*rows, strict=True)
    if kind == "base":
        assert type(tuned).__name__ == "GPTNeoXForCausalLM" and table is None
    else:
        assert result["table"] and table is not None
        nats, targets = (sums.sum(0) for sums in held_out_nats(tuned, ids, 200, labels=labels))
        assert (nats / targets).tolist() == pytest.approx(result["validation_nats"], rel=1e-4)
        before, _ = held_out_nats(tiny_dynamo(seed=2), ids, 200, labels=labels)
        assert (nats < 0.8 * before.sum(0)).all()


def test_a_rating_filter_leaves_the_bad_out(models, write, capsys):
    data, ratings = write(ALPACA), write(["5", "1", "4.5"], "ratings.jsonl")
    code, result = finetune(capsys, "--model", models / "base", "--data", data, "--output", models / "run",
                            "--min-rating", 4.5, "--ratings", ratings, "--steps", 1)  # fmt: skip
    assert code == 0 and result["examples"] == 2 and result["left_out_by_rating"] == 1


STEP = ["--steps", "1", "--batch-size", "1", "--block-size", "32", "--heads", "2"]


@pytest.mark.parametrize("verb", ["finetune", "train"])
def test_a_tokenizer_without_a_template_gets_markers_and_it_is_said(models, write, capsys, verb):
    """As a Pythia: no markers, and room for them in the padded vocabulary. It learns to stop."""
    save_model(tiny_base(seed=1), byte_level(None), models / "raw")
    data = write(CHATS)
    shape = STEP if verb == "train" else ["--steps", "1", *SHAPE]
    places = ["--model", models / "raw", "--data", data, "--output", models / "run"]
    assert main([verb, *map(str, places), *shape]) == 0
    assert text.MARKERS_ADDED in capsys.readouterr().err
    tuned, tokenizer, _ = loading.load_model(str(models / "run/model"))
    end = tokenizer.convert_tokens_to_ids(text.END_OF_TURN)
    assert tokenizer.chat_template == text.CHAT_TEMPLATE and end in tuned.generation_config.eos_token_id


@pytest.mark.parametrize("verb", ["finetune", "train"])
def test_a_checkpoints_own_template_is_kept(models, write, capsys, verb):
    tokenizer = byte_level(CHATML)
    save_model(tiny_base(seed=1), tokenizer, models / "own")
    shape = STEP if verb == "train" else ["--steps", "1", *SHAPE]
    places = ["--model", models / "own", "--data", write(CHATS), "--output", models / "run"]
    assert main([verb, *map(str, places), *shape]) == 0
    assert text.MARKERS_ADDED not in capsys.readouterr().err
    tuned, kept, _ = loading.load_model(str(models / "run/model"))
    assert kept.chat_template == CHATML and text.fingerprint(kept) == text.fingerprint(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in tuned.generation_config.eos_token_id


def test_plain_texts_give_no_markers(models, write, capsys):
    save_model(tiny_base(seed=1), byte_level(None), models / "raw")
    places = ["--model", models / "raw", "--data", write([{"text": "A plain text. " * 9}]), "--output",
              models / "run"]  # fmt: skip
    assert main(["train", *map(str, places), *STEP]) == 0
    assert loading.load_tokenizer(models / "run/model").chat_template is None


def _finetune_until_killed(arguments):
    whole = trainer.Trainer.run
    trainer.Trainer.run = lambda self, stop: whole(
        self, stop=lambda: self.step == 5 and os.kill(os.getpid(), signal.SIGKILL)
    )
    main(["finetune", *map(str, arguments), *SHAPE])


@pytest.mark.slow
def test_a_killed_finetuning_resumes_to_the_same_weights(models, write, capsys):
    """kill -9 after step 5; the last checkpoint is of step 4."""
    arguments = ["--model", models / "dynamo", "--data", write([*ALPACA, *CHATS]), "--steps", 7,
                 "--checkpoint-every", 2]  # fmt: skip
    assert killed_itself(_finetune_until_killed, [*arguments, "--output", models / "killed"])
    assert json.loads((models / "killed/checkpoint/run.json").read_text())["step"] == 4
    assert finetune(capsys, *arguments, "--output", models / "killed")[0] == 0
    assert finetune(capsys, *arguments, "--output", models / "whole")[0] == 0
    one, other = (loading.load_model(str(models / name / "model"))[0] for name in ("killed", "whole"))
    assert all(np.array_equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--epochs", "0"], "epochs: "),
        (["--ratings", "x"], "ratings: "),
        (["--max-length", "5000"], "max_length: "),
        (["--max-length", "4"], "data: "),
        (["--min-rating", "3"], "row 1 of the data has no 'rating'"),
    ],
)
def test_bad_finetuning_option_is_one_sentence(models, write, capsys, arguments, sentence):
    places = ["--model", models / "dynamo", "--data", write(ALPACA), "--output", models / "run"]
    assert main(["finetune", *map(str, places), *arguments]) == 2
    assert sentence in capsys.readouterr().err
