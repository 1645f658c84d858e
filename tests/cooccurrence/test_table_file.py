"""The co-occurrence table's file: what comes back, what a failed save leaves, and what is refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from streams import BLOCKS, counts_of, random_blocks

from dynamo.cooccurrence import table_file
from dynamo.cooccurrence.table import CooccurrenceTable


@pytest.fixture
def saved(tmp_path):
    blocks = random_blocks(2, vocab_size=300, lengths=[12_000, 1, 6000])
    table = CooccurrenceTable.count(blocks, 3, vocab_size=300, source="two novels", tokenizer="bpe-300")
    path = tmp_path / "table.safetensors"
    table.save(path)
    return table, path


def test_a_saved_table_comes_back_whole(saved):
    table, path = saved
    again = CooccurrenceTable.load(path)
    assert repr(again) == repr(table)
    assert (again.source, again.tokenizer, again.vocab_inferred) == ("two novels", "bpe-300", False)
    for order in (2, 3):
        ids, _ = table.tuples(order)
        assert counts_of(again, order) == counts_of(table, order)
        np.testing.assert_array_equal(again.ratio(ids), table.ratio(ids))
    assert table.tuples(2)[1].max() > 255 > table.tuples(3)[1].min()  # both sides of the byte-sized counts


@pytest.mark.parametrize(
    "blocks, min_count",
    [
        ([[5]], 1),
        ([[0, 0]], 1),
        ([[1, 2, 3, 1, 2]], 5),
        ([[0] * 256], 1),  # counts of 255, 254 and 253 around the escape value
        ([[0] * 900], 1),
    ],
)
def test_the_smallest_tables_come_back_too(blocks, min_count, tmp_path):
    table = CooccurrenceTable.count(blocks, order=4, min_count=min_count)
    table.save(tmp_path / "table")
    again = CooccurrenceTable.load(tmp_path / "table")
    assert repr(again) == repr(table)
    assert again.vocab_inferred
    assert all(counts_of(again, m) == counts_of(table, m) for m in (2, 3, 4))


def test_a_reader_of_the_old_file_is_not_disturbed_by_a_new_one(saved):
    _, path = saved
    before = path.read_bytes()
    with path.open("rb") as reader:
        CooccurrenceTable.count(BLOCKS).save(path)
        assert reader.read() == before
    assert CooccurrenceTable.load(path).vocab_size == 3


def test_saving_that_fails_keeps_the_old_file_and_leaves_nothing_behind(saved, monkeypatch):
    table, path = saved
    before = path.read_bytes()

    def fails(arrays, part, metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(table_file, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        table.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_refused_by_name_with_the_remedy(saved, kept):
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"table\.safetensors is not a usable .* python -m dynamo count"):
        CooccurrenceTable.load(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a usable .* unknown version unknown"):
        CooccurrenceTable.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        CooccurrenceTable.load(tmp_path / "nowhere.safetensors")


def rewritten(path, change):
    """The file again with `change(arrays, metadata)` applied, as a faulty writer might have left it."""
    with table_file.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    change(arrays, metadata)
    save_file(arrays, path, metadata=metadata)


def put(name, index, value):
    return lambda arrays, metadata: arrays[name].__setitem__(index, value)


def shortened(name):
    return lambda arrays, metadata: arrays.update({name: arrays[name][:-1]})


def described(**changes):
    return lambda arrays, metadata: metadata.update(changes)


@pytest.mark.parametrize(
    "change, reason",
    [
        (described(version="2"), "version 2, not dynamo-cooccurrence version 1"),
        (described(vocab_size="many"), "many"),
        (described(vocab_size="299"), "300 token counts, vocabulary 299"),
        (described(order="4"), "2 levels, order 4"),
        (described(min_count="2"), "count below 2"),
        (described(totals="[17998, 1]"), "counts of 17996 tuples, not 1"),
        (lambda arrays, metadata: metadata.pop("totals"), "'totals' is missing"),
        (lambda arrays, metadata: arrays.pop("last.3"), "'last.3' is missing"),
        (shortened("last.3"), "children, .* tokens"),
        (shortened("fans.2"), "children of 299 tuples, not 300"),
        (shortened("counts.2.large"), "counts.2 and its large values do not match"),
        (put("unigrams", 0, 1), "do not add up"),
        (put("last.2", -1, 300), "token id of 300"),
        (put("last.2", 1, 0), "out of order"),
        (put("counts.3", 0, 0), "count below 1"),
        (put("counts.3", -1, 77), "counts of .* tuples, not 17996"),
    ],
)
def test_an_inconsistent_file_is_refused_with_its_fault(saved, change, reason):
    _, path = saved
    rewritten(path, change)
    with pytest.raises(ValueError, match=rf"table\.safetensors .*{reason}.*python -m dynamo count"):
        CooccurrenceTable.load(path)
