"""Before heads are trained from the page: how long it will take, what memory, and what is refused."""

import re
from dataclasses import replace
from functools import cache

import gradio as gr
import pytest
from conftest import tiny_base
from fakes import scripted_pair
from talks import stage

from app import dialogues_in
from dynamo.loading import load, load_model
from dynamo.pipelines import estimates
from dynamo.training.trainer import save_model
from dynamo.ui import ModelOffer
from dynamo.ui.compare import service as service_module
from dynamo.ui.compare.service import Busy, PageService
from dynamo.ui.models import forecast as forecast_module
from dynamo.ui.models import training, training_job
from dynamo.ui.models.forecast import forecast, machine_pace
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.training_job import Progress

GIGABYTE = 10**9


@pytest.fixture
def stock(tmp_path, tokenizer):
    save_model(tiny_base(), tokenizer, tmp_path / "stock")
    return str(tmp_path / "stock")


@pytest.fixture
def told(tmp_path, stock, monkeypatch):
    """Builds the section for the stock model on a machine of so many free bytes; its functions by name."""

    def told(free, dialogues=None):
        monkeypatch.setattr(training, "available_memory", lambda device: free)
        offer = ModelOffer(
            stage, any_model=True, workshop=tmp_path / "trained", dialogues=dialogues, device="cpu"
        )
        manager = ModelManager(PageService(*stage(load(device="cpu"))), offer)
        list(manager.load(stock))
        with gr.Blocks() as demo:
            section = training.training_section(manager, demo)
        return section, {each.fn.__name__: each.fn for each in demo.fns.values() if each.fn}, demo

    return told


def test_time_grows_with_the_steps_and_memory_does_not(stock):
    model, _, _ = load_model(stock, device="cpu")
    few, many = (forecast("stock", model, steps, None, 1e9) for steps in (100, 300))
    assert many.seconds == pytest.approx(3 * few.seconds) and many.bytes == few.bytes
    assert few.in_words().startswith("An estimate") and "free" not in few.in_words()


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_model_is_trained_in_full_and_foretold_so(stock, quantize):
    whole, few = (load_model(stock, device="cpu", quantize=each)[0] for each in (None, quantize))
    assert forecast("stock", few, 100, None, 1e9) == forecast("stock", whole, 100, None, 1e9)


def test_the_pace_is_measured_once_and_never_beside_a_run(monkeypatch):
    service, measured = PageService(scripted_pair()), []
    monkeypatch.setattr(service_module, "LOCK_SECONDS", 0.01)

    @cache
    def measure():
        with pytest.raises(Busy), service.exclusive():
            pass
        measured.append(1e9)
        return 1e9

    monkeypatch.setattr(forecast_module, "_measured", measure)
    with service.exclusive():
        assert machine_pace(service) is None and not measured
    assert machine_pace(service) == 1e9
    with service.exclusive():
        assert machine_pace(service) == 1e9
    assert len(measured) == 1


def test_what_is_not_measured_yet_is_not_foretold_and_memory_is(stock):
    model, _, _ = load_model(stock, device="cpu")
    words = forecast("stock", model, 100, None, None).in_words()
    assert "of memory" in words and "not measured yet" in words and "about" not in words


def test_a_click_reads_a_long_text_once_to_know_its_training(told, tmp_path, monkeypatch):
    text, read = tmp_path / "story.txt", []
    text.write_text("Once upon a time. " * 500, encoding="utf-8")
    named = training_job._folder_name

    def counted(*task):
        read.append(task)
        return named(*task)

    monkeypatch.setattr(training_job, "_folder_name", counted)
    monkeypatch.setattr(training_job.TrainingJob, "_work", lambda self, *task: self._end(""))
    _, functions, _ = told(free=1000 * GIGABYTE)
    functions["start"](str(text), 50)
    assert len(read) == 1 and len(list((tmp_path / "trained").iterdir())) == 1


def test_what_does_not_fit_is_refused_in_one_sentence_before_anything_is_read(told, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time. " * 500, encoding="utf-8")
    section, functions, _ = told(free=GIGABYTE // 10)
    status, *_ = functions["start"](str(text), 50)
    assert re.search(
        r"heads for \S+stock need about [\d.]+ GB of memory, and 0.1 GB are free; load a smaller", status
    )
    assert 'role="alert"' in status and not (tmp_path / "trained").exists()
    assert "An estimate" in section.foretell(50) and "(0.1 GB are free)" in section.foretell(50)


def test_the_dialogues_are_offered_where_they_are_and_nowhere_else(told, tmp_path):
    assert dialogues_in(None) is None and dialogues_in(tmp_path) is None
    file = tmp_path / "dialogues_train.jsonl.gz"
    file.touch()
    assert dialogues_in(tmp_path) == file
    for offered in (None, file):
        _, _, demo = told(GIGABYTE, offered)
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


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 seconds"), (13.2, "13 seconds"), (107, "110 seconds"), (150, "2 minutes"), (10**6, "12 days")],
)
def test_durations_are_told_as_roughly_as_they_are_known(seconds, told):
    assert estimates.duration(seconds) == told
