import itertools
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import DIALOGUES
from processes import pool

from dynamo.__main__ import main
from dynamo.cooccurrence import sorted_runs
from dynamo.cooccurrence.external import HISTOGRAM, count_files, fitting_min_count
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data import text
from dynamo.data.corpus import TokenFile

VOCAB = 40


def token_file(folder, name, documents):
    ids = np.concatenate([np.zeros(0, np.uint16), *(np.asarray(d, np.uint16) for d in documents)])
    lengths = np.array([len(document) for document in documents], np.int64)
    (folder / f"{name}.ids").write_bytes(ids.tobytes())
    np.save(folder / f"{name}.npy", lengths)
    return TokenFile(name, str(folder / f"{name}.ids"), str(folder / f"{name}.npy"), "uint16",
                     len(documents), len(ids), 0)  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    """Two files of documents of very different lengths, empty ones among them; few tokens are common."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, VOCAB)
    lengths = [0, 1, 2, 900, 3, 0, 57, 400, 5, 2000, 1]
    documents = [rng.choice(VOCAB - 1, n, p=weights / weights.sum()) for n in lengths]
    return documents, [token_file(tmp_path, "a", documents[:6]), token_file(tmp_path, "b", documents[6:])]


def same(unigrams, levels, table):
    assert np.array_equal(unigrams, table.unigrams)
    for one, other in zip(levels, table.levels, strict=True):
        assert one.total == other.total and one.vocab_size == other.vocab_size
        for name in ("starts", "last", "counts"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
            assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("order, min_count", [(2, 1), (3, 1), (3, 4), (4, 2)])
@pytest.mark.parametrize("sizes", [(10**6, 10**6), (100, 50), (1, 40)], ids=str)
def test_out_of_core_counts_are_the_counts_in_memory(corpus, tmp_path, order, min_count, sizes):
    """However the corpus is sliced and the merge is cut."""
    documents, files = corpus
    table = CooccurrenceTable.count(documents, order, min_count, vocab_size=VOCAB)
    unigrams, levels, used = count_files(
        files, order, VOCAB, min_count, slice_tokens=sizes[0], merge_entries=sizes[1]
    )
    assert used == min_count
    same(unigrams, levels, table)


class Killed(BaseException):
    pass


def failing_after(calls, function):
    left = itertools.count(calls, -1)

    def counted(*arguments, **named):
        if next(left) == 0:
            raise Killed
        return function(*arguments, **named)

    return counted


@pytest.mark.parametrize("calls", range(0, 60, 3))
def test_a_count_that_was_killed_goes_on_and_does_nothing_twice(corpus, tmp_path, monkeypatch, calls):
    """Wherever it is killed between two files that it writes; the runs of a merged order are gone then."""
    documents, files = corpus
    table = CooccurrenceTable.count(documents, 3, vocab_size=VOCAB)
    work, sizes = tmp_path / "work", {"slice_tokens": 500, "merge_entries": 300}
    written = []

    def noted(path, **arrays):
        assert path not in written
        sorted_runs.save_last(path, **arrays)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(sorted_runs.np, "save", failing_after(calls, np.save))
        patch.setattr("dynamo.cooccurrence.external.save_last", failing_after(calls // 2, noted))
        with suppress(Killed):
            count_files(files, 3, VOCAB, work=work, **sizes)
    monkeypatch.setattr("dynamo.cooccurrence.external.save_last", noted)
    same(*count_files(files, 3, VOCAB, work=work, **sizes)[:2], table)
    again = len(written)
    same(*count_files(files, 3, VOCAB, work=work, **sizes)[:2], table)
    assert len(written) == again


def test_what_another_count_left_is_not_taken_for_this_ones(corpus, tmp_path):
    documents, files = corpus
    for order, min_count, some in ((3, 1, files), (2, 1, files), (2, 3, files), (2, 3, files[:1])):
        unigrams, levels, _ = count_files(some, order, VOCAB, min_count, work=tmp_path)
        read = documents if some is files else documents[:6]
        same(unigrams, levels, CooccurrenceTable.count(read, order, min_count, vocab_size=VOCAB))


def test_a_file_that_is_named_twice_counts_twice(corpus):
    documents, files = corpus
    same(*count_files([*files, files[0]], 3, VOCAB, slice_tokens=500)[:2],
         CooccurrenceTable.count([*documents, *documents[:6]], 3, vocab_size=VOCAB))  # fmt: skip


def test_two_processes_count_the_same(corpus, monkeypatch):
    monkeypatch.setattr("dynamo.cooccurrence.external.process_pool", pool)
    documents, files = corpus
    table = CooccurrenceTable.count(documents, 3, vocab_size=VOCAB)
    same(*count_files(files, 3, VOCAB, workers=2, slice_tokens=500, merge_entries=300)[:2], table)


def test_a_budget_is_kept_with_the_lowest_minimum_count_that_fits_it(corpus, tmp_path):
    documents, files = corpus
    table = CooccurrenceTable.count(documents, 3, vocab_size=VOCAB)
    table.save(tmp_path / "whole")
    whole = (tmp_path / "whole").stat().st_size
    used = []
    for budget in (whole + 20_000, 20_000, 18_500):
        unigrams, levels, min_count = count_files(files, 3, VOCAB, max_bytes=budget)
        same(unigrams, levels, CooccurrenceTable.count(documents, 3, min_count, vocab_size=VOCAB))
        CooccurrenceTable(unigrams, levels, min_count).save(tmp_path / "table")
        assert (tmp_path / "table").stat().st_size <= budget
        used.append(min_count)
    assert used[0] == 1 and used[0] < used[1] < used[2]
    with pytest.raises(ValueError, match=r"no minimum count makes the table as small as 0.001 MB"):
        count_files(files, 3, VOCAB, max_bytes=1000)


def test_the_fitting_minimum_count_by_hand():
    """300 tuples once, 200 twice, 100 five times: two bytes each, and one for each of 10 parents."""
    histogram = np.zeros(HISTOGRAM, np.int64)
    histogram[[1, 2, 5]] = 300, 200, 100
    fixed = 8 * 10 + 2**14 + 10
    assert fitting_min_count([histogram], 10, fixed + 2 * 600 + 16) == 1
    assert fitting_min_count([histogram], 10, fixed + 2 * 600 - 1) == 2
    assert fitting_min_count([histogram], 10, fixed + 2 * 300 - 1) == 3
    assert fitting_min_count([histogram], 10, fixed + 2 * 600 + 16, min_count=4) == 4
    assert fitting_min_count([histogram], 10, fixed) == 6


def test_bad_options_and_ids_are_refused(corpus, tmp_path):
    _, files = corpus
    with pytest.raises(ValueError, match="expected at least 2, 1 and 1, got 1, 1, 1"):
        count_files(files, 1, VOCAB)
    with pytest.raises(ValueError, match="token ids must be below vocab_size 30"):
        count_files(files, 2, 30)
    with pytest.raises(ValueError, match="count a lower order"):
        count_files(files, 5, 50_000)


def test_the_verb_counts_shards_with_a_budget_and_reports(tmp_path, tokenizer, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "shards").mkdir()
    for number, turns in enumerate(DIALOGUES):
        (tmp_path / f"shards/{number}.jsonl").write_text(json.dumps({"messages": turns}))
    arguments = ["count", "--tokenizer", str(tmp_path / "tokenizer"), "--data", str(tmp_path / "shards"),
                 "--output", str(tmp_path / "table"), "--tokens", str(tmp_path / "tokens")]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = CooccurrenceTable.count(
        [text.encode_turns(tokenizer, turns).ids for turns in DIALOGUES], vocab_size=len(tokenizer)
    )
    table = CooccurrenceTable.load(tmp_path / "table")
    same(table.unigrams, table.levels, expected)
    assert result["tokens"] == expected.total_tokens and result["tuples"] == {
        str(order): size for order, size in expected.sizes.items()
    }
    assert result["tokens_per_second"] > 0 and result["peak_mb"] > 10
    assert len(list(Path(tmp_path / "tokens").glob("*.ids"))) == 2
    assert not list(tmp_path.glob("*.counting")), "nothing is left on the disk"
    assert main([*arguments, "--max-mb", "0.0001"]) == 2
    assert "max_mb: no minimum count" in capsys.readouterr().err
    assert main([*arguments, "--max-mb", "1"]) == 0  # goes on with what is counted
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tokens_per_second"] is None
    assert not list(tmp_path.glob("*.counting"))
    (tmp_path / "bad.jsonl").write_text("{")
    where = ["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "table")]
    assert main(["count", *where, "--data", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl, line 1: not JSON" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.counting")), "there is nothing to go on with"
