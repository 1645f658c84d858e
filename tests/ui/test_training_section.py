"""Before heads are trained from the page: roughly how long it takes, what memory, and what is refused."""

import re
from dataclasses import replace

import gradio as gr
import pytest
from conftest import tiny_base
from talks import stage

from app import dialogues_in
from dynamo.loading import load, load_model
from dynamo.model.architectures import model_shape
from dynamo.pipelines import estimates
from dynamo.training.trainer import save_model
from dynamo.ui.compare.service import PageService
from dynamo.ui.models import training, training_job
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.training_job import Progress

GIGABYTE = 10**9


@pytest.fixture
def stock(tmp_path, tokenizer):
    save_model(tiny_base(), tokenizer, tmp_path / "stock")
    return str(tmp_path / "stock")


@pytest.fixture
def built(tmp_path, stock, monkeypatch):
    """Builds the section for the stock model on a machine of so many free bytes; its functions by name."""

    def built(free, dialogues=None):
        monkeypatch.setattr(training, "available_memory", lambda device: free)
        manager = ModelManager(
            PageService(stage(load(device="cpu"))),
            stage,
            any_model=True,
            training_folder=tmp_path / "trained",
            dialogues=dialogues,
            device="cpu",
        )
        list(manager.load(stock))
        with gr.Blocks() as demo:
            section = training.TrainingSection(manager, demo)
        return section, {each.fn.__name__: each.fn for each in demo.fns.values() if each.fn}, demo

    return built


def test_time_grows_with_the_steps_and_memory_does_not(built, monkeypatch):
    monkeypatch.setattr(estimates, "machine_speed", lambda: 3e7)
    section, _, _ = built(GIGABYTE)
    few, many = section.estimate_in_words(10), section.estimate_in_words(2000)
    assert "a few minutes of training" in few and "several hours of training" in many
    assert few.partition("and ")[2] == many.partition("and ")[2] and "(1.0 GB are free)" in few


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_model_is_trained_in_full_and_estimated_so(stock, quantize):
    whole, few = (load_model(stock, device="cpu", quantize=each)[0] for each in (None, quantize))
    assert model_shape(few) == model_shape(whole)


def test_the_machine_is_measured_once():
    assert estimates.machine_speed() == estimates.machine_speed() > 0


def test_a_click_reads_a_long_text_once_to_know_its_training(built, tmp_path, monkeypatch):
    text, read = tmp_path / "story.txt", []
    text.write_text("Once upon a time. " * 500, encoding="utf-8")
    named = training_job._folder_name

    def counted(*task):
        read.append(task)
        return named(*task)

    monkeypatch.setattr(training_job, "_folder_name", counted)
    monkeypatch.setattr(training_job.TrainingJob, "_work", lambda self, run: "")
    _, functions, _ = built(free=1000 * GIGABYTE)
    functions["start"](str(text), 50)
    assert len(read) == 1 and len(list((tmp_path / "trained").iterdir())) == 1


def test_what_does_not_fit_is_refused_in_one_sentence_before_anything_is_read(built, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time. " * 500, encoding="utf-8")
    section, functions, _ = built(free=GIGABYTE // 10)
    status, *_ = functions["start"](str(text), 50)
    assert re.search(
        r"heads for \S+stock need about [\d.]+ GB of memory, and 0.1 GB are free; load a smaller", status
    )
    assert 'role="alert"' in status and not (tmp_path / "trained").exists()
    words = section.estimate_in_words(50)
    assert "An estimate" in words and "(0.1 GB are free)" in words


def test_the_dialogues_are_offered_where_they_are_and_nowhere_else(built, tmp_path):
    assert dialogues_in(None) is None and dialogues_in(tmp_path) is None
    file = tmp_path / "dialogues_train.jsonl.gz"
    file.touch()
    assert dialogues_in(tmp_path) == file
    for offered in (None, file):
        _, _, demo = built(GIGABYTE, offered)
        button = next(each for each in demo.blocks.values() if each.elem_id == "training-dialogues")
        assert button.visible == (offered is not None)
        assert (str(file) in str(demo.get_config_file())) == (offered is not None)


def test_while_heads_are_trained_what_is_left_goes_by_the_measured_pace():
    row = {"step": 50, "losses": [1.0, 2.0, 3.0], "tokens_per_second": 512.0}
    progress = Progress("training", "m", 50, 200, [row])
    assert "Step 50 of 200, about 5 minutes left. Nats" in training._in_words(progress)  # 150 of 1,024 tokens
    unmeasured = replace(progress, rows=[{**row, "tokens_per_second": None}])
    assert "Step 50 of 200. Nats" in training._in_words(unmeasured)
    assert "left" not in training._in_words(replace(progress, phase="stopped"))
    sentence = training._in_words(replace(progress, left_out=("left out 1 row: an empty reply",)))
    assert "Of the text, left out 1 row: an empty reply." in sentence


@pytest.mark.parametrize(
    ("seconds", "words", "range"),
    [
        (0.2, "1 seconds", "about a minute"),
        (13.2, "13 seconds", "about a minute"),
        (107, "110 seconds", "a few minutes"),
        (150, "2 minutes", "a few minutes"),
        (600, "10 minutes", "5 to 15 minutes"),
        (10**6, "12 days", "more than a day"),
    ],
)
def test_durations_are_as_rough_as_they_are_known(seconds, words, range):
    assert (estimates.duration(seconds), estimates.rough_duration(seconds)) == (words, range)
