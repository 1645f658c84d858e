import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DIALOGUES, tiny_base
from hub import SHA, Repo
from processes import pool

from dynamo.__main__ import main
from dynamo.data.blocks import TokenBlocks
from dynamo.data.corpus import DiskCorpus, tokenise
from dynamo.data.documents import read_documents
from dynamo.data.reading import Reading
from dynamo.data.sources import data_files, read_all
from dynamo.training.options import TrainingOptions
from dynamo.training.recipes import BASE_LR, RECIPES
from dynamo.training.trainer import save_model


@pytest.fixture
def folder(tmp_path):
    """Three shards, one of them packed, one in a folder below."""
    rows = [{"messages": turns} for turns in DIALOGUES] + [{"text": f"Plain text {n}."} for n in range(20)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "shards/below").mkdir(parents=True)
    (tmp_path / "shards/a.jsonl").write_text("\n".join(lines[:5]))
    (tmp_path / "shards/b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[5:12]).encode()))
    (tmp_path / "shards/below/c.jsonl").write_text("\n".join(lines[12:]))
    (tmp_path / "shards/README.md").write_text("no data")
    return tmp_path


def test_blocks_from_disk_are_the_blocks_from_memory(folder, tokenizer):
    files = data_files([str(folder / "shards")])
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl.gz", "c.jsonl"]
    documents = [each for file in files for each in read_documents(file, tokenizer)]
    made = tokenise(files, tokenizer, folder / "tokens")
    corpus = DiskCorpus(made)
    assert corpus.lengths.tolist() == [len(document) for document in documents]
    assert all(np.array_equal(corpus[i], document) for i, document in enumerate(documents))
    assert [list(map(len, file.read_documents())) for file in made] == [
        [len(document) for document in read_documents(file, tokenizer)] for file in files
    ]
    memory, disk = (TokenBlocks(each, 0, 32, seed=3) for each in (documents, corpus))
    count = 2 * memory.blocks_per_epoch + 3
    assert np.array_equal(memory.batch(0, count)[0], disk.batch(0, count)[0])


def test_blocks_are_the_documents_of_an_epoch_end_to_end():
    """By hand: concatenate in the epoch's order with separators, and cut."""
    documents = [np.arange(1, n, dtype=np.int32) for n in (1, 2, 9, 33, 70, 16, 17, 15)]
    blocks = TokenBlocks(documents, separator=99, block_size=16, seed=3)
    for epoch in range(3):
        order = np.random.default_rng((3, epoch)).permutation(len(documents))
        stream = np.concatenate([part for i in order for part in (documents[i], [99])])
        expected = stream[: blocks.blocks_per_epoch * 16].reshape(-1, 16)
        got = blocks.batch(epoch * blocks.blocks_per_epoch, blocks.blocks_per_epoch)[0]
        assert np.array_equal(got, expected)


def test_what_is_tokenised_is_kept_and_what_changed_is_made_again(folder, tokenizer, monkeypatch):
    monkeypatch.setattr("dynamo.data.corpus.process_pool", pool)
    files = data_files([str(folder / "shards")])
    first = tokenise(files, tokenizer, folder / "tokens", workers=2)
    (folder / "tokens" / "left.123.part").write_bytes(b"of a kill")
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "tokens").glob("*.ids")}
    assert tokenise(files, tokenizer, folder / "tokens") == first
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "tokens").glob("*.ids")} == before
    files[0].write_text(json.dumps({"text": "Other text."}))
    changed = tokenise(files, tokenizer, folder / "tokens")
    assert changed[0].documents == 1 and changed[1:] == first[1:]
    one, other = (TokenBlocks(DiskCorpus(each), 0, 16).fingerprint() for each in (first, changed))
    assert one != other


def test_a_kill_between_the_files_leaves_no_half_shard(folder, tokenizer):
    """The description is written last: without it the ids are made again."""
    files = data_files([str(folder / "shards/a.jsonl")])
    (whole,) = tokenise(files, tokenizer, folder / "tokens")
    next((folder / "tokens").glob("*.json")).unlink()
    with open(whole.ids, "ab") as ids:
        ids.write(b"torn")
    assert tokenise(files, tokenizer, folder / "tokens") == [whole]
    assert len(whole.read_ids()) == whole.tokens == sum(map(len, whole.read_documents()))


def test_a_corrupt_row_of_a_shard_is_named(folder, tokenizer, monkeypatch):
    monkeypatch.setattr("dynamo.data.corpus.process_pool", pool)
    (folder / "shards/below/c.jsonl").write_text('{"text": "fine"}\n{oops')
    for workers in (1, 2):
        reading, files = Reading(strict=True), data_files([str(folder / "shards")])
        with pytest.raises(ValueError, match=r"c.jsonl, line 2: not JSON"):
            tokenise(files, tokenizer, folder / f"tokens{workers}", workers, reading=reading)


def test_rows_that_were_left_out_are_remembered_with_the_ids(folder, tokenizer):
    (folder / "shards/below/c.jsonl").write_text('{"text": "fine"}\n{oops\n{"text": ""}')
    files = data_files([str(folder / "shards")])
    for reading in (Reading(), Reading()):
        tokenise(files, tokenizer, folder / "tokens", reading=reading)
        assert (reading.conversations, reading.texts, reading.rows_left_out) == (2, 11, 2)
        assert reading.left_out["an empty text"].places == ["c.jsonl, line 3"]
    with pytest.raises(ValueError, match="strict"):
        tokenise(files, tokenizer, folder / "tokens", reading=Reading(strict=True))


def test_another_chat_template_is_another_file_of_ids(folder, tokenizer):
    files = data_files([str(folder / "shards")])
    (one, *_) = tokenise(files, tokenizer, folder / "tokens")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template += " "
    (other, *_) = tokenise(files, tokenizer, folder / "tokens")
    assert one.ids != other.ids


def test_names_without_data_are_refused(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data: .*empty holds no file"):
        data_files([str(folder / "empty")])
    with pytest.raises(ValueError, match="No such file, folder or hub data set"):
        data_files(["nowhere.jsonl"])
    with pytest.raises(OSError, match=r"^validation: nobody/nothing is no local file .* cannot be fetched"):
        data_files(["nobody/nothing"], "validation")


def test_a_slip_in_a_path_is_no_data_set_of_the_hub(folder, monkeypatch):
    """train/rows.jsonl has the form of owner/name, and deeper paths that of owner/name/FILE."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("dynamo.data.sources._fetched", lambda name, option: [Path("of the hub")])
    for slip, meant in (
        ("shards/aa.jsonl", "shards/a.jsonl"),
        ("shards/below/x.jsonl", ""),
        ("nowhere/rows.jsonl", ""),
    ):
        with pytest.raises(ValueError, match=rf"^validation: .*'{slip}'") as refusal:
            data_files([slip], "validation")
        assert meant in str(refusal.value)
    for name in ("shards/words", "shards/words/a.jsonl", "shards/a.jsonl:train"):
        assert data_files([name]) == [Path("of the hub")], name


# -- data sets of the hub -----------------------------------------------------------------------------------


@pytest.fixture
def data_set(hub, monkeypatch):
    """Of three files, on a hub of this machine."""
    for each in ("huggingface_hub.constants.ENDPOINT", "huggingface_hub.hf_api.constants.ENDPOINT"):
        monkeypatch.setattr(each, hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    files = {f"train/{n}.jsonl": b'{"text": "Shard %d."}\n' % n for n in range(3)}
    hub.repos["dataset", "someone/words"] = Repo({**files, "README.md": b"no data"})
    return hub


def test_a_data_set_of_the_hub_is_fetched_whole_or_in_part(data_set):
    names = [path.name for path in data_files(["someone/words"])]
    assert names == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert not any("README" in request for request in data_set.requests)
    for part, expected in (
        ("train/1.jsonl", ["1.jsonl"]),
        ("train", names),
        ("train/[02].jsonl", ["0.jsonl", "2.jsonl"]),
    ):
        assert [path.name for path in data_files([f"someone/words/{part}"])] == expected
        assert [path.name for path in data_files([f"someone/words@{SHA}/{part}"])] == expected
    with pytest.raises(ValueError, match=r"data: someone/words/test holds no file"):
        data_files(["someone/words/test"])


CHATS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": reply}], "text": None}
    for reply in ("Hello.", "Good morning.", "Naïve, but yes.")
]


def test_parquet_of_a_data_set_is_read_like_its_lines(data_set):
    """As most data sets of the hub have it: a card that names parquet files by split."""
    import pyarrow
    import pyarrow.parquet

    files = {}
    for split, chats in (("train", CHATS[:2]), ("test", CHATS[2:])):
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), sink)
        files[f"data/{split}-00000-of-00001.parquet"] = sink.getvalue().to_pybytes()
    paths = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{paths}---\n"
    data_set.repos["dataset", "someone/chats"] = Repo({**files, "README.md": card.encode()})
    for name, expected in (
        ("someone/chats:train", CHATS[:2]),
        ("someone/chats:default:test", CHATS[2:]),
        ("someone/chats/data/test-00000-of-00001.parquet", CHATS[2:]),
        ("someone/chats", [CHATS[2], *CHATS[:2]]),
    ):
        reading = Reading()
        read = [row.content for row in read_all(name, reading)]
        assert read == [chat["messages"] for chat in expected] and reading.conversations == len(read), name


CARD = """---
configs:
- config_name: second
  data_files:
  - split: train
    path: other/part-*.jsonl
- config_name: first
  default: true
  data_files:
  - split: train_sft
    path: [first/a.jsonl, first/b.jsonl]
  - split: test
    path: first/t.jsonl
---
# Words"""


def test_a_split_of_a_data_set_is_that_of_its_card(data_set):
    files = ["other/part-0.jsonl", "other/part-1.jsonl", "first/a.jsonl", "first/b.jsonl", "first/t.jsonl"]
    repo = Repo(dict.fromkeys(files, b'{"text": "a"}\n') | {"README.md": CARD.encode()})
    data_set.repos["dataset", "someone/parts"] = repo
    for split, expected in (("train_sft", "ab"), ("first:test", "t"), ("second:train", "01")):
        found = [path.stem[-1] for path in data_files([f"someone/parts:{split}"])]
        assert found == list(expected)
        assert [path.stem[-1] for path in data_files([f"someone/parts@{SHA}:{split}"])] == found
    for wrong, known in (("train", "train_sft, test"), ("third:train", "second, first")):
        with pytest.raises(ValueError, match=f"data: .*{known}"):
            data_files([f"someone/parts:{wrong}"])
    data_set.failing["/"] = 503
    assert len(data_files(["someone/parts:second:train"])) == 2, "read from the cache"


def test_a_split_without_a_card_is_that_of_the_files_names(data_set):
    """train_sft is another split than train; numbers of parts belong to none."""
    names = ["data/train-0-of-2.jsonl", "data/train_01.jsonl", "data/train_sft-0.jsonl", "test/0.jsonl",
             "en/train.jsonl"]  # fmt: skip
    data_set.repos["dataset", "someone/plain"] = Repo(dict.fromkeys(names, b'{"text": "a"}\n'))
    for split, expected in (
        ("train", [names[0], names[1], names[4]]),
        ("train_sft", [names[2]]),
        ("test", [names[3]]),
        ("en:train", [names[4]]),
    ):
        found = data_files([f"someone/plain:{split}"])
        assert ["/".join(path.parts[-2:]) for path in found] == expected, split
    with pytest.raises(ValueError, match="data: someone/plain:dev holds no file"):
        data_files(["someone/plain:dev"])


def test_a_data_set_that_was_fetched_in_part_is_not_taken_for_the_whole(data_set):
    """As a kill in the middle of the download leaves it. What is there is not fetched again."""
    (part,) = data_files(["someone/words/train/2.jsonl"])
    data_set.requests.clear()
    assert [path.name for path in data_files(["someone/words"])] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert sorted(each for each in data_set.requests if " from " in each) == [
        "train/0.jsonl from 0",
        "train/1.jsonl from 0",
    ]
    assert part.read_text() == '{"text": "Shard 2."}\n'


def test_a_data_set_that_is_there_is_read_without_the_hub(data_set):
    before = data_files(["someone/words"])
    data_set.failing["/"] = 503
    assert data_files(["someone/words"]) == before


# -- recipes ------------------------------------------------------------------------------------------------


def test_the_seven_recipes_are_the_papers():
    """Its table: LR_B, and LR_M a hundred times that; 131,072 tokens a step for 75,782 steps."""
    assert list(BASE_LR) == ["70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b"]
    for size, rate in BASE_LR.items():
        recipe = RECIPES[f"pythia-{size}"]
        options = TrainingOptions(**recipe.options)
        assert recipe.base == f"EleutherAI/pythia-{size}" and options.base_lr == rate
        assert options.head_lr == pytest.approx(100 * rate)
        assert options.batch_size * recipe.block_size == 131_072 and options.steps == 75_782
        assert round(options.steps * options.warmup) == 758 and options.final_lr == 0.0
    quick = RECIPES["pythia-70m-quick"]
    assert TrainingOptions(**quick.options).heads_only


def test_a_recipes_options_yield_to_flags_wherever_they_stand(folder, tokenizer, capsys):
    save_model(tiny_base(), tokenizer, folder / "model")
    arguments = ["train", "--steps", "2", "--recipe", "pythia-160m", "--model", str(folder / "model"),
                 "--data", str(folder / "shards"), "--output", str(folder / "run"), "--batch-size", "4",
                 "--mixed-precision", "no", "--heads", "2", "--block-size", "16"]  # fmt: skip
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 2 and rows[0]["peak_mb"] > 10
    assert main([*arguments[:-1], "32", "--final-lr", "1", "--output", str(folder / "constant")]) == 0
    row = json.loads((folder / "constant/log.jsonl").read_text().splitlines()[0])
    assert sorted(set(row["lr"])) == pytest.approx([6e-6, 6e-4])
    assert main([each for each in arguments if each not in ("--block-size", "16")]) == 2
    assert main(["train", "--data", "x", "--output", str(folder / "none")]) == 2
    assert "name one to start from with --model, --new or --recipe" in capsys.readouterr().err
