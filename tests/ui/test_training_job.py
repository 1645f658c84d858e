"""Training heads from the page: what becomes of a text, and a run that is stopped, goes on and then races."""

import json
import time

import pytest
from conftest import DIALOGUES, tiny_base
from processes import ForkedCommand

from dynamo import charts
from dynamo.data.readers import DOCUMENT
from dynamo.data.reading import Reading
from dynamo.data.rows import read_rows
from dynamo.loading import load
from dynamo.training.options import TrainingOptions
from dynamo.training.recipes import BASE_LR
from dynamo.training.trainer import save_model
from dynamo.ui.models import training_job
from dynamo.ui.models.training_job import TrainingJob, in_words, page_run, prepare

pytestmark = pytest.mark.timeout(900)  # processes that import everything
STEPS = 120  # seconds of them are left after the first row, in which a Stop must come


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def stock(tmp_path, tokenizer):
    save_model(tiny_base(), tokenizer, tmp_path / "stock")
    return str(tmp_path / "stock")


@pytest.fixture
def dialogues(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    silent = [{"role": "user", "content": ""}]
    talks = [*DIALOGUES * 60, silent]
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in talks), "utf-8")
    return path


def wait(job, phases, seconds=400):
    deadline = time.monotonic() + seconds
    while job.progress().phase not in phases:
        assert time.monotonic() < deadline, job.progress()
        time.sleep(0.1)
    return job.progress()


# ---- what becomes of a text


def test_a_plain_text_becomes_documents_and_loses_no_line(tmp_path):
    lines = [f"line {number} of a long story\n" for number in range(1000)]
    (tmp_path / "story.txt").write_text("".join(lines), encoding="utf-8")
    rows = list(read_rows(prepare(tmp_path / "story.txt", tmp_path / "run", False, Reading())))
    assert "".join(rows) == "".join(lines)
    assert all(len(row) >= DOCUMENT for row in rows[:-1]) and len(rows) > 3


def test_conversations_are_text_for_a_model_without_the_template(tmp_path, dialogues):
    """Conversations stay as they are for a model with the template and are text for others."""
    assert prepare(dialogues, tmp_path / "run", True, Reading()) == dialogues
    reading = Reading()
    rows = list(read_rows(prepare(dialogues, tmp_path / "run", False, reading)))
    assert rows[0] == "\n".join(turn["content"] for turn in DIALOGUES[0])
    assert list(reading.left_out) == ["an empty turn"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.pdf", "x", r"a\.pdf: .*\.jsonl"),
        ("a.txt", "  \n\n", r"a\.txt is empty"),
        ("a.jsonl", "{", "line 1: not JSON"),
    ],
)
def test_what_is_no_text_is_a_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content, encoding="utf-8")
    for chat in (False, name.endswith("jsonl")):
        with pytest.raises(ValueError, match=sentence):
            prepare(tmp_path / name, tmp_path / "run", chat, Reading())
    with pytest.raises(ValueError, match="there is no file"):
        TrainingJob(tmp_path).start("m", tmp_path / "absent.txt", 10, chat=False)


def test_a_pythia_gets_the_rates_of_its_own_recipe(tmp_path):
    options = page_run("EleutherAI/pythia-160m", tmp_path / "d", 50, tmp_path).options
    assert (options.base_lr, options.head_lr) == (BASE_LR["160m"], 100 * BASE_LR["160m"])
    assert options.heads_only and options.steps == 50
    assert page_run(str(tmp_path), tmp_path / "d", 50, tmp_path).options.base_lr == TrainingOptions().base_lr


# ---- a run


def test_a_training_is_stopped_goes_on_and_its_model_races(tmp_path, stock, dialogues, monkeypatch):
    job = TrainingJob(tmp_path / "trained")
    job.start(stock, dialogues, STEPS, chat=True)
    with pytest.raises(ValueError, match="are being trained; wait or cancel"):
        job.start(stock, dialogues, 20, chat=True)
    while not (progress := job.progress()).rows:
        assert progress.phase == "training", progress
        time.sleep(0.05)
    job.stop()
    stopped = wait(job, ("stopped", "done", "failed"))
    assert stopped.phase == "stopped" and 0 < stopped.step < STEPS and not stopped.result
    (folder,) = (tmp_path / "trained").iterdir()
    assert "the same command goes on there" in (folder / "output.txt").read_text()
    saved = json.loads((folder / "checkpoint" / "run.json").read_text())["step"]
    assert saved >= stopped.step
    monkeypatch.setattr(training_job.subprocess, "Popen", ForkedCommand)  # once by an interpreter is enough
    job.start(stock, dialogues, STEPS, chat=True)
    done = wait(job, ("done", "failed"))
    assert done.phase == "done", done.message
    assert done.left_out == ("left out 1 row: an empty turn (1: dialogues.jsonl, line 121)",)
    steps = [row["step"] for row in done.rows]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    first, last = done.rows[0]["losses"], done.rows[-1]["losses"]
    assert last[1] < first[1] and last[2] < first[2], "the new heads learn"
    pair = load(done.result, device="cpu")
    assert pair.table is not None and pair.dynamo.config.num_token_heads == 3
    assert in_words(folder) == ("stock", f"heads trained here: {STEPS} steps on dialogues")
    # The same once more is there already.
    monkeypatch.setattr(training_job.subprocess, "Popen", None)
    job.start(stock, dialogues, STEPS, chat=True)
    assert job.progress().phase == "done" and job.progress().result == done.result


def test_a_training_that_fails_says_why(tmp_path, stock, monkeypatch):
    monkeypatch.setattr(training_job.subprocess, "Popen", ForkedCommand)
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    job = TrainingJob(tmp_path / "trained")
    job.start(str(tmp_path / "nothing" / "here"), tmp_path / "short.txt", 20, chat=False)
    failed = wait(job, ("failed", "done"))
    assert failed.phase == "failed" and "expected 'embedded', a model folder" in failed.message


# ---- the chart


def test_every_head_has_its_line_and_the_axis_ends_where_the_run_will():
    rows = [{"step": step, "losses": [3.0, 5.0 / step, 6.0 / step]} for step in (10, 20)]
    figure = charts.training_losses(rows, 200)
    assert [len(line.x) for line in figure.data] == [2, 2, 2]
    assert figure.data[0].name == "head 1, the base's own" and tuple(figure.layout.xaxis.range) == (0, 200)
    assert len(charts.training_losses([], 10).data) == 0
