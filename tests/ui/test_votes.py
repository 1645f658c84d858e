import json
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import vote
from processes import FRESH, START_SECONDS
from scipy.stats import binomtest

from dynamo.ui.compare import votes
from dynamo.ui.compare.votes import VOTES_FILE, Standing, VoteBook

PROMPT = "my secret prompt"


# ---- what is counted


def test_votes_are_summed_by_threshold(tmp_path):
    book = VoteBook(tmp_path)
    for outcome, speed_up in [("dynamo", 2.0), ("dynamo", 3.0), ("base", 1.0), ("tie", 2.0)]:
        book.add(**vote(outcome, 0.5, speed_up=speed_up))
    book.add(**vote("tie", 0.9, speed_up=1.25, tokens_per_forward=1.5))
    low, high = book.summary()
    assert low == Standing(0.5, wins=2, ties=1, losses=1, speed_up=2.0, tokens_per_forward=2.4)
    assert high == Standing(0.9, wins=0, ties=1, losses=0, speed_up=1.25, tokens_per_forward=1.5)
    assert (low.votes, low.win_rate, low.share) == (4, 2.0, 2 / 3)
    assert (high.votes, high.win_rate, high.share) == (1, None, None)
    book.add(**vote("tie", 0.9, speed_up=None))
    assert book.summary()[1].speed_up == 1.25, "a duel too short to time counts, without a speed"
    interval = binomtest(2, 3).proportion_ci(method="wilson")
    row = low.to_json()
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert json.loads(json.dumps(row)) == row


def test_the_models_are_kept_apart(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote("dynamo", model="one"))
    book.add(**vote("base", model="two"))
    (one,) = book.summary("one")
    assert (one.wins, one.losses) == (1, 0)
    assert book.summary("three") == []
    assert book.summary()[0].votes == 2


def test_a_model_of_fewer_bits_is_another_model(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote("dynamo"))
    for bits in (4, 4, 8):
        book.add(**vote("base", options={"threshold": 0.5, "bits": bits}))
    counts = {bits: book.summary("embedded", bits)[0].votes for bits in (0, 4, 8)}
    assert counts == {0: 1, 4: 2, 8: 1} and book.summary("embedded")[0].votes == 4


def test_duels_in_exact_mode_are_kept_and_not_summed_up(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote("dynamo", options={"threshold": 0.5, "exact": True}))
    assert book.summary() == []
    book.add(**vote("base", options={"threshold": 0.5, "exact": False}))
    assert [standing.losses for standing in book.summary()] == [1]


def test_a_duel_counts_once(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote("dynamo", id="duel"))
    with pytest.raises(ValueError, match="voted on already"):
        book.add(**vote("base", id="duel"))
    assert book.summary()[0].votes == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outcome": "left"}, "outcome: "),
        ({"speed_up": 0}, "speed_up: "),
        ({"speed_up": float("nan")}, "speed_up"),
        ({"tokens_per_forward": float("inf")}, "tokens_per_forward"),
        ({"tokens_per_forward": "2"}, "tokens_per_forward"),
        ({"tokens_per_forward": 0.5}, "tokens_per_forward: "),
        ({"threshold": 1.5}, "threshold must be within 0 and 1, got 1.5"),
        ({"options": {}}, "threshold must be within 0 and 1, got None"),
        ({"options": {"threshold": 0.5, "stop": PROMPT}}, "stop must be a number or a switch, got str"),
        (
            {"options": {"threshold": 0.5, "opponent": PROMPT}},
            "opponent must be a number",
        ),
        ({"options": {"threshold": 0.5, "seed": float("nan")}}, "seed must be a number"),
    ],
)
def test_a_bad_vote_is_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        VoteBook(tmp_path).add(**vote(**fields))
    assert PROMPT not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_row_holds_settings_speeds_and_an_outcome_and_nothing_else(tmp_path):
    book = VoteBook(tmp_path)
    book.add(**vote("tie"))
    with sqlite3.connect(book.path) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = (dict(row) for row in connection.execute("SELECT * FROM votes"))
    assert set(row) == {
        *("id", "time", "model", "threshold", "options", "speed_up", "tokens_per_forward", "outcome"),
    }
    assert json.loads(row["options"]) == {"threshold": 0.5, "adaptive": True, "seed": 3, "opponent": "loop"}
    assert row["time"].endswith("+00:00")


# ---- where it is kept


def test_nothing_is_made_before_the_first_vote(tmp_path):
    book = VoteBook(tmp_path / "a" / "folder")
    assert book.summary() == []
    assert list(tmp_path.iterdir()) == []
    book.add(**vote())
    assert [path.name for path in book.path.parent.iterdir()] == [VOTES_FILE]


def test_another_book_of_the_same_folder_has_the_same_votes(tmp_path):
    VoteBook(tmp_path).add(**vote())
    assert VoteBook(str(tmp_path)).summary()[0].wins == 1


@pytest.mark.parametrize("name", ["a folder", "100%", "what?mode=memory", "a#b"])
def test_any_folder_name_will_do(tmp_path, name):
    book = VoteBook(tmp_path / name)
    book.add(**vote())
    assert (tmp_path / name / VOTES_FILE).stat().st_size > 0
    assert len(book.summary()) == 1


@pytest.fixture
def patient_book(monkeypatch):
    """Whoever comes in between may be the first again and again, where a disk is slow."""
    monkeypatch.setattr(votes, "LOCK_SECONDS", float(START_SECONDS))


def test_threads_lose_no_vote(tmp_path, patient_book):
    book = VoteBook(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: book.add(**vote(votes.OUTCOMES[i % 3])), range(48)))
    (standing,) = book.summary()
    assert (standing.wins, standing.losses, standing.ties) == (16, 16, 16)


def _add_many(folder, barrier, count):
    votes.LOCK_SECONDS = float(START_SECONDS)
    barrier.wait(START_SECONDS)
    for _ in range(count):
        VoteBook(folder).add(**vote("base"))


def test_two_processes_lose_no_vote_and_make_one_file(tmp_path):
    barrier = FRESH.Barrier(2)
    workers = [FRESH.Process(target=_add_many, args=(tmp_path, barrier, 20), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * START_SECONDS)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert VoteBook(tmp_path).summary()[0].losses == 40


def _add_and_die(folder):
    VoteBook(folder).add(**vote())
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_vote_outlives_a_process_that_dies_right_after_it(tmp_path):
    worker = FRESH.Process(target=_add_and_die, args=(tmp_path,), daemon=True)
    worker.start()
    worker.join(START_SECONDS)
    assert worker.exitcode == -signal.SIGKILL
    assert VoteBook(tmp_path).summary()[0].wins == 1


def test_a_vote_is_synced_to_the_disk(tmp_path, monkeypatch):
    seen = []

    class Spying(sqlite3.Connection):
        def close(self):
            seen.append(self.execute("PRAGMA synchronous").fetchone()[0])
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Spying, **k))
    VoteBook(tmp_path).add(**vote())
    assert seen == [3]  # EXTRA; FULL would be 2
