import gzip
import json
import subprocess
from shutil import which

import numpy as np
import pytest
from conftest import DIALOGUES

from dynamo.data import documents, schema_guided, text
from dynamo.data.blocks import TokenBlocks
from dynamo.data.reading import Reading
from dynamo.data.rows import read_rows
from dynamo.data.sources import read_conversations


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_turns_and_messages_read_alike_plain_or_compressed(tmp_path):
    turns = [{"role": t["role"], "text": t["content"]} for t in DIALOGUES[0]]
    lines = [json.dumps({"turns": turns}), "", json.dumps({"messages": DIALOGUES[1]})]
    plain = write_lines(tmp_path / "a.jsonl", lines)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_conversations(plain)) == list(read_conversations(packed)) == DIALOGUES


@pytest.mark.parametrize(
    "line, message",
    [
        ("{not json", "not JSON"),
        ("[1]", "a turn that is no object"),
        ('{"turns": []}', "an empty conversation"),
        ('{"turns": [{"role": "user"}]}', "an empty turn"),
        ('{"turns": [{"role": "robot", "text": "x"}]}', "a turn of an unknown role"),
    ],
)
def test_corrupt_line_is_named_by_file_and_line(tmp_path, line, message):
    path = write_lines(tmp_path / "bad.jsonl", [json.dumps({"messages": DIALOGUES[0]}), line])
    with pytest.raises(ValueError, match=f"bad.jsonl, line 2: {message}"):
        list(read_conversations(path, Reading(strict=True)))
    reading = Reading()
    assert list(read_conversations(path, reading)) == DIALOGUES[:1]
    assert [tally.places for tally in reading.left_out.values()] == [["bad.jsonl, line 2"]]


def test_truncated_archive_is_named(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress("\n".join(json.dumps({"messages": DIALOGUES[0]}) for _ in range(500)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.jsonl.gz, after line \d+: the file is damaged"):
        list(read_rows(path))
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="the file is damaged"):
        list(read_rows(path))


@pytest.mark.skipif(which("zstd") is None, reason="the program zstd is not there")
def test_zstandard_files_are_read_like_any_and_damage_is_named(tmp_path):
    """The Pile comes in them."""
    plain = tmp_path / "rows.jsonl"
    plain.write_text("".join(json.dumps({"text": f"Text {n}."}) + "\n" for n in range(20_000)))
    subprocess.run(["zstd", "-q", str(plain)], check=True)
    packed = tmp_path / "rows.jsonl.zst"
    assert list(read_rows(packed)) == list(read_rows(plain))
    assert next(read_rows(packed)) == "Text 0.", "nobody need read to the end"
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"rows.jsonl.zst, after line \d+: the file is damaged \(zstd"):
        list(read_rows(packed))
    packed.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"after line 0: the file is damaged"):
        list(read_rows(packed))
    with pytest.raises(FileNotFoundError):
        list(read_rows(tmp_path / "none.jsonl.zst"))


def test_zstandard_files_need_their_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"rows.jsonl.zst: .zst files are read by the program zstd; install it"
    ):
        list(read_rows(tmp_path / "rows.jsonl.zst"))


def test_blocks_of_another_kind_have_another_fingerprint():
    documents = [np.arange(n) for n in range(5, 40)]
    blocks = TokenBlocks(documents, 0, 32, seed=7)
    assert blocks.fingerprint() == TokenBlocks(documents, 0, 32, seed=7).fingerprint()
    others = (documents[1:], 0, 32, 7), (documents, 1, 32, 7), (documents, 0, 16, 7), (documents, 0, 32, 8)
    assert len({blocks.fingerprint(), *(TokenBlocks(*other).fingerprint() for other in others)}) == 5


def test_plain_documents_stand_among_conversations_in_their_order(tmp_path, tokenizer):
    rows = [{"text": "Plain <|end|> text."}, {"messages": DIALOGUES[1]}, {"text": "More."}]
    path = write_lines(tmp_path / "mixed.jsonl", [json.dumps(row) for row in rows])
    first, chat, last = documents.read_documents(path, tokenizer)
    assert tokenizer.decode(first) == rows[0]["text"] and tokenizer.eos_token_id not in first
    assert chat.tolist() == text.encode_turns(tokenizer, DIALOGUES[1]).ids
    assert tokenizer.decode(last) == "More."
    assert list(read_conversations(path)) == [DIALOGUES[1]]
    with pytest.raises(ValueError, match=r"mixed.jsonl, line 1"):
        list(read_conversations(path, Reading(strict=True)))


def test_blocks_hold_every_document_once_an_epoch_in_a_new_order():
    documents = [np.full(n, n, dtype=np.int32) for n in range(1, 20)]
    blocks = TokenBlocks(documents, separator=0, block_size=16, seed=3)
    assert blocks.tokens_per_epoch == sum(n + 1 for n in range(1, 20))
    first, labels = blocks.batch(0, blocks.blocks_per_epoch)
    second, _ = blocks.batch(blocks.blocks_per_epoch, blocks.blocks_per_epoch)
    assert np.array_equal(first, labels)
    assert first.shape == (blocks.blocks_per_epoch, 16) and not np.array_equal(first, second)
    stream = first.ravel()
    lengths = np.diff(np.flatnonzero(np.concatenate([[0], stream, [0]]) == 0)) - 1
    whole = [n for n in lengths.tolist() if n > 0]
    # The dropped tail is shorter than a block: it may cost the last documents, never one in the middle.
    assert len(set(whole)) == len(whole) and sum(whole) + len(whole) > blocks.tokens_per_epoch - 2 * 16
    assert set(whole) <= set(range(1, 20))


def test_batches_are_a_function_of_their_position_alone():
    documents = [np.arange(n) for n in range(5, 40)]
    one, other = (TokenBlocks(documents, 0, 32, seed=7) for _ in range(2))
    far = one.batch(50, 3)[0]
    one.batch(0, 2)
    assert np.array_equal(one.batch(50, 3)[0], far) and np.array_equal(other.batch(50, 3)[0], far)
    assert not np.array_equal(TokenBlocks(documents, 0, 32, seed=8).batch(50, 3)[0], far)


def test_block_longer_than_the_data_is_refused():
    with pytest.raises(ValueError, match="block_size: "):
        TokenBlocks([np.arange(3)], 0, 512)


def test_text_bytes_per_token_add_up_to_the_text(tokenizer):
    turns = [{"role": "user", "content": "naïve café – 東京"}]
    ids = text.encode_turns(tokenizer, turns).ids
    assert documents.text_bytes_per_token(tokenizer)[ids].sum() == len(turns[0]["content"].encode())


def test_public_data_set_is_prepared_from_its_folders(tmp_path):
    for split in ("train", "dev"):
        folder = tmp_path / "source" / split
        folder.mkdir(parents=True)
        dialogue = {
            "dialogue_id": "1_00000",
            "services": ["Restaurants_1"],
            "turns": [
                {"speaker": "USER", "utterance": f"Hello {split}", "frames": []},
                {"speaker": "SYSTEM", "utterance": "Hi.", "frames": []},
            ],
        }
        (folder / "dialogues_001.json").write_text(json.dumps([dialogue]))
    assert schema_guided.prepare_schema_guided(tmp_path / "source", tmp_path / "out") == {
        "train": 1,
        "dev": 1,
    }
    (read,) = read_conversations(tmp_path / "out" / "dialogues_dev.jsonl.gz")
    assert read == [{"role": "user", "content": "Hello dev"}, {"role": "assistant", "content": "Hi."}]
    with pytest.raises(ValueError, match=r"holds no dialogues_\*.json"):
        schema_guided.prepare_schema_guided(tmp_path / "nothing", tmp_path / "out")
