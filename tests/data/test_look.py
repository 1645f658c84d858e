"""The look before the work, and that everything which reads data understands the same."""

import copy
import json

import pytest
from conftest import DIALOGUES

from dynamo.__main__ import main
from dynamo.data.corpus import DiskCorpus, tokenise
from dynamo.data.documents import read_documents
from dynamo.data.instructions import read_examples
from dynamo.data.look import look
from dynamo.data.reading import Reading


@pytest.fixture
def mixed(tmp_path):
    """Four conversations and two texts that can be read, and two rows that cannot."""
    system = {"role": "system", "content": "Be brief."}
    rows = [
        *({"messages": turns, "id": 1} for turns in DIALOGUES),
        {"messages": [system, *DIALOGUES[0]]},
        {"text": "Plain <|end|> text."},
        {"instruction": "Name a city.", "output": ""},
        {"messages": [{"role": "user", "content": "Nobody answers."}]},
        {"text": "More."},
        {"label": 3},
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "mixed.jsonl")


def test_all_that_reads_data_understands_the_same(mixed, tokenizer, tmp_path):
    of_corpus, of_documents, of_look, of_examples = (Reading() for _ in range(4))
    corpus = DiskCorpus(
        tokenise([tmp_path / "mixed.jsonl"], tokenizer, tmp_path / "tokens", reading=of_corpus)
    )
    documents = read_documents(mixed, tokenizer, of_documents)
    found = look([mixed], tokenizer, 16, of_look)
    assert of_corpus == of_documents == of_look
    assert (of_look.conversations, of_look.texts, of_look.rows_left_out) == (4, 2, 2)
    assert corpus.tokens == sum(map(len, documents)) == found.tokens
    assert len(read_examples(mixed, of_examples)) == of_examples.rows == 3
    assert of_examples.rows_left_out == of_look.rows_left_out + 3, "two texts, and a question alone"


def test_the_look_counts_by_hand(mixed, tokenizer):
    reading = Reading()
    lengths = sorted(map(len, read_documents(mixed, tokenizer)))
    found = look([mixed], tokenizer, 40, reading)
    turns = [turn["role"] for each in (*DIALOGUES, DIALOGUES[0]) for turn in each]
    assert found.turns == {"user": turns.count("user") + 1, "assistant": turns.count("assistant")}
    assert (found.longest, found.median) == (lengths[-1], int((lengths[2] + lengths[3]) / 2))
    assert found.blocks == (sum(lengths) + 6) // 40
    assert found.fitting == sum(length <= 40 for length in lengths)
    assert found.within == pytest.approx(sum(min(length, 40) for length in lengths) / sum(lengths))
    where, text = found.samples[0]
    assert where.endswith("mixed.jsonl, line 1") and text.startswith("<|user|>") and "<|end|>" in text
    assert reading.unread == ["id"], "of rows that are read"
    with pytest.raises(ValueError, match="block_size"):
        look([mixed], tokenizer, 1, Reading())


def test_a_tokenizer_without_a_template_is_shown_with_the_markers_it_would_get(mixed, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    found = look([mixed], bare, 40, Reading())
    assert found.markers_added and found.samples == look([mixed], tokenizer, 40, Reading()).samples
    assert bare.chat_template is None


def test_the_command_says_what_it_counts(mixed, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = ["data", mixed, "--tokenizer", str(tmp_path / "tokenizer"), "--block-size", "32"]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert result["reading"]["conversations"] == 4 and len(result["samples"]) == 2
    for said in (
        "4 conversations",
        "2 texts",
        "left out 2 rows",
        "mixed.jsonl, line 5",
        "system turns that the chat template has no place for (1: ",
    ):
        assert said in streams.err
    assert main([*arguments, "--strict"]) == 2
    assert "mixed.jsonl, line 5" in capsys.readouterr().err
