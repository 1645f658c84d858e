"""Votes that cannot be kept or read: one sentence, and what was acknowledged stays."""

import os
import resource
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from fakes import vote
from processes import FRESH, START_SECONDS

from dynamo.ui.compare import votes
from dynamo.ui.compare.votes import VOTES_FILE, VoteBook


def sentence(error) -> str:
    text = str(error.value)
    assert text.startswith("votes: ") and "\n" not in text
    assert str(Path(tempfile.gettempdir())) not in text, "visitors learn no path"
    return text


def test_a_locked_file_is_given_up_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(votes, "LOCK_SECONDS", 0.1)
    book = VoteBook(tmp_path)
    book.add(**vote())
    blocker = sqlite3.connect(book.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(OSError, match=r"locked for 0\.1 seconds") as error:
            book.add(**vote())
        sentence(error)
        with pytest.raises(OSError, match="locked"):
            book.summary()
    finally:
        blocker.close()
    book.add(**vote())
    assert book.summary()[0].votes == 2


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "votes").write_text("not a folder")
    with pytest.raises(OSError, match="folder cannot be made") as error:
        VoteBook(tmp_path / "votes").add(**vote())
    sentence(error)
    assert (tmp_path / "votes").read_text() == "not a folder"


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / VOTES_FILE).mkdir()
    with pytest.raises(OSError, match="cannot be opened") as error:
        VoteBook(tmp_path).add(**vote())
    sentence(error)


def foreign_text(path):
    path.write_text("a shopping list, long enough to be no SQLite header at all" * 50)


def foreign_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE shopping (item TEXT)")


def foreign_application(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 7")


def newer_version(path):
    VoteBook(path.parent).add(**vote())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")


def cut_off(path):
    VoteBook(path.parent).add(**vote())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign_text, "is no votes file, or damaged"),
        (foreign_database, "belongs to another program"),
        (foreign_application, "belongs to another program"),
        (newer_version, "has version 9 and this program reads 1"),
        (cut_off, "is no votes file, or damaged"),
    ],
)
def test_a_file_that_is_not_ours_is_named_and_left_alone(tmp_path, spoil, message):
    spoil(tmp_path / VOTES_FILE)
    before = (tmp_path / VOTES_FILE).read_bytes()
    for attempt in (lambda: VoteBook(tmp_path).add(**vote()), VoteBook(tmp_path).summary):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        sentence(error)
    assert (tmp_path / VOTES_FILE).read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root drops its rights here")
def test_a_read_only_folder_shows_votes_and_takes_none():
    folder = Path(tempfile.mkdtemp())
    try:
        book = VoteBook(folder)
        book.add(**vote())
        book.path.chmod(0o444)
        folder.chmod(0o555)
        os.seteuid(65534)
        try:
            assert book.summary()[0].wins == 1
            with pytest.raises(OSError, match="cannot be written to") as error:
                book.add(**vote())
            sentence(error)
            with pytest.raises(OSError, match="folder cannot be made") as error:
                VoteBook(folder / "deeper").add(**vote())
            sentence(error)
        finally:
            os.seteuid(0)
        assert book.summary()[0].votes == 1
    finally:
        shutil.rmtree(folder)


def _fill_up(folder, reports):
    """Adds votes on a disk on which files may grow by three pages more."""
    size = (folder / VOTES_FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3 * 4096, resource.RLIM_INFINITY))
    kept = 0
    try:
        for _ in range(1000):
            VoteBook(folder).add(**vote())
            kept += 1
    except OSError as error:
        reports.put((kept, type(error).__name__, str(error)))


def test_a_disk_that_fills_up_keeps_every_acknowledged_vote(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote())
    reports = FRESH.Queue()
    worker = FRESH.Process(target=_fill_up, args=(tmp_path, reports), daemon=True)
    worker.start()
    kept, kind, text = reports.get(timeout=START_SECONDS)
    worker.join(START_SECONDS)
    assert kept > 0 and kind == "OSError"
    assert text.startswith("votes: ")
    assert book.summary()[0].votes == 1 + kept
    book.add(**vote())
    assert book.summary()[0].votes == 2 + kept
