"""Loading another model into a page that is being used: what is offered, what is refused, what comes free."""

import functools
import gc
import json
import threading
import weakref
from dataclasses import replace

import gradio as gr
import pytest
from conftest import tiny_base, tiny_dynamo
from hub import Repo
from huggingface_hub import HfApi
from talks import SETTINGS, stage

from dynamo.common.statistics import Estimate
from dynamo.decoding.few_bits import BYTES
from dynamo.evaluation.few_bits import Difference
from dynamo.loading import EMBEDDED, downloads, load
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import read_trace
from dynamo.training.trainer import save_model
from dynamo.ui import ModelPair, build_demo
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.models import manager as manager_module
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.switch import ModelSwitch

GIGABYTE = 10**9


@pytest.fixture
def folders(tmp_path, tokenizer):
    """name -> folder of a checkpoint with heads ("one", "two") or without ("stock")."""
    save_model(tiny_dynamo(seed=1), tokenizer, tmp_path / "one")
    save_model(tiny_dynamo(seed=2), tokenizer, tmp_path / "two")
    save_model(tiny_base(), tokenizer, tmp_path / "stock")
    return {name: str(tmp_path / name) for name in ("one", "two", "stock")}


@pytest.fixture
def manager(folders):
    pair = load(folders["one"], device="cpu")
    return ModelManager(PageService(stage(pair)), stage, any_model=True, device="cpu")


def test_the_next_run_is_the_new_pairs_and_one_in_progress_keeps_its_own(manager, folders):
    running = manager.service.answer(Chat(), "hello", SETTINGS)
    next(running)
    list(manager.load(folders["two"]))
    *_, last = running
    assert read_trace(last.dynamo.splitlines()).header.model == folders["one"]
    *_, view = manager.service.answer(Chat(), "hello", SETTINGS)
    assert read_trace(view.dynamo.splitlines()).header.model == folders["two"] == manager.loaded
    assert manager.service.pair.report == {"of": folders["two"]}


def test_an_answer_of_the_pair_before_is_not_decoded_again_by_another(manager, folders):
    *_, view = manager.service.answer(Chat(), "hello", SETTINGS)
    list(manager.load(folders["two"]))
    with pytest.raises(ValueError, match=r"two is loaded now; press Generate"):
        next(manager.service.decode_again(Chat.read(view.base, view.dynamo), SETTINGS))


def test_the_memory_of_the_pair_before_comes_free(folders):
    pair = load(folders["one"], device="cpu")
    gone = weakref.ref(pair.dynamo)
    model_pair = replace(ModelPair.from_pair(pair), sweep=functools.partial(iter, [pair]))
    del pair
    kept = []

    def models(service):
        kept.append(ModelManager(service, stage, any_model=True, device="cpu"))
        return kept[0]

    demo = build_demo(model_pair, models=models)
    del model_pair
    list(kept[0].load(folders["two"]))
    gc.collect()
    assert gone() is None and demo is not None


def test_where_both_do_not_fit_the_old_pair_is_gone_before_the_new_is_read(manager, folders, monkeypatch):
    gone = weakref.ref(manager.service.pair.engines.by_name["dynamo"])
    read = []

    def load_and_look(name, *arguments, **keywords):
        if name != EMBEDDED:
            gc.collect()
            read.append((gone(), manager.loaded))
        return load(name, *arguments, **keywords)

    monkeypatch.setattr(manager_module, "available_memory", lambda device: 1000)
    monkeypatch.setattr(manager_module, "load", load_and_look)
    monkeypatch.setattr(manager_module, "give_back", lambda: (gc.collect(), read.append(gone())))
    list(manager.load(folders["two"]))
    assert read == [None, (None, EMBEDDED)], "a GPU's memory goes back when nobody holds it any more"
    assert manager.loaded == folders["two"] and manager.notice == ""


def test_a_pair_that_cannot_be_read_leaves_the_one_that_fits_and_says_so(manager, folders, monkeypatch):
    monkeypatch.setattr(manager_module, "available_memory", lambda device: 1000)

    def refuse(name, *arguments, **keywords):
        if name == EMBEDDED:
            return load(name, *arguments, **keywords)
        raise ValueError("model: too large")

    monkeypatch.setattr(manager_module, "load", refuse)
    with pytest.raises(ValueError, match="too large"):
        list(manager.load(folders["two"]))
    assert manager.loaded == EMBEDDED and "the embedded pair answers" in manager.notice
    *_, view = manager.service.answer(Chat(), "hello", SETTINGS)
    assert read_trace(view.dynamo.splitlines()).end is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "choose one above"),
        ("/nowhere", "expected 'embedded', a model folder"),
        ("someone/absent", "cannot be fetched from the hub"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence_and_changes_nothing(manager, folders, name, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        list(manager.load(name))
    assert manager.loaded == folders["one"] and manager.service.swaps == 0


def test_only_one_is_loaded_at_a_time(manager, folders, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(
        manager_module, "resolve", lambda *_: go.wait(120) and manager_module.Path(folders["two"])
    )
    first = manager.load(folders["two"])
    with pytest.raises(ValueError, match="is being loaded"):
        manager.load(folders["one"])
    again = manager.load(folders["two"])  # by another visitor, who follows the first one's load
    go.set()
    list(first), list(again)
    assert manager.loaded == folders["two"] and manager.service.swaps == 1


def test_the_picker_shows_what_is_being_loaded_and_says_why_nothing_else_can_be_picked(
    manager, folders, monkeypatch
):
    """A pair that was picked while another was being loaded was ignored, and stood in the picker."""
    go = threading.Event()
    monkeypatch.setattr(
        manager_module, "resolve", lambda *_: go.wait(120) and manager_module.Path(folders["two"])
    )
    with gr.Blocks():
        switch = ModelSwitch(manager, gr.HTML())
    assert switch.refusal(EMBEDDED) == "" and switch.update(True)["value"] == folders["one"]
    load = manager.load(folders["two"])
    said = switch.refusal(EMBEDDED)
    assert said.startswith(f"{folders['two']} is being loaded; ") and said.endswith(" can be picked then.")
    assert switch.refusal(folders["two"]) == "" and switch.update(True)["value"] == folders["two"]
    go.set()
    list(load)
    assert switch.refusal(EMBEDDED) == "" and switch.update(True)["value"] == folders["two"]


def test_a_space_offers_the_listed_models_alone(folders):
    service = PageService(stage(load(folders["one"], device="cpu")))
    manager = ModelManager(service, stage, names=(EMBEDDED, folders["two"]), device="cpu")
    assert [row.name for row in manager.rows()] == [EMBEDDED, folders["two"]]
    for name in (folders["one"], "EleutherAI/pythia-70m", folders["two"] + "/../one"):
        with pytest.raises(ValueError, match="expected one of"):
            manager.load(name)
    list(manager.load(folders["two"]))
    assert manager.loaded == folders["two"]


def test_sizes_that_do_not_fit_say_why_and_fewer_bits_fit_more(manager, monkeypatch):
    monkeypatch.setattr(manager_module, "available_memory", lambda device: 8 * GIGABYTE)
    rows = {row.title: row for row in manager.rows()}
    assert not rows["pythia-70m"].reason and "70 million parameters" in rows["pythia-70m"].detail
    assert rows["pythia-12b"].reason.endswith("8.0 GB are free")
    fitting = [sum(not row.reason for row in manager.rows(bits)) for bits in (None, "4bit")]
    assert fitting[0] < fitting[1]


def test_the_real_chat_pair_is_offered_where_its_heads_are(manager, monkeypatch, tmp_path):
    assert [row.name for row in manager.rows()][:2] == [EMBEDDED, "smollm2"]
    monkeypatch.setattr(manager_module, "SMOLLM2_FOLDER", tmp_path)
    assert "smollm2" not in [row.name for row in manager.rows()]


def test_a_model_without_heads_completes_beside_the_pair(manager, folders):
    list(manager.load(folders["stock"]))
    assert manager.loaded == folders["one"] and manager.completion.name == folders["stock"]
    *texts, (text, speed) = manager.completion.complete("hello", SamplingOptions())
    assert all(text.startswith("hello") for text, _ in texts) and len(text) > len("hello")
    assert speed.startswith("One token per forward pass")
    with pytest.raises(ValueError, match="it is empty"):
        next(manager.completion.complete(" ", SamplingOptions()))
    list(manager.load(folders["two"]))
    assert manager.completion is None


def test_eight_bits_are_loaded_where_they_are_asked_for(manager, folders):
    assert manager.quantisations() == ["8bit", "4bit"]
    staged = []
    other = ModelManager(
        manager.service, lambda pair: staged.append(pair) or stage(pair), any_model=True, device="cpu"
    )
    list(other.load(folders["two"], "8bit"))
    assert "Linear8bitLt" in {type(each).__name__ for each in staged[0].dynamo.modules()}
    with pytest.raises(ValueError, match="quantize: "):
        manager.load(folders["two"], "3bit")


def test_measured_copies_in_fewer_bits_are_offered_and_answer_once_they_are_loaded(folders):
    measured = [Difference(bits, 1, Estimate(0.001, 0, 0.002), Estimate(0.01, 0, 0.02)) for bits in BYTES]
    service = PageService(stage(load(folders["one"], device="cpu")))
    manager = ModelManager(service, stage, any_model=True, few_bits={folders["two"]: measured}, device="cpu")
    assert manager.quantisations(folders["two"]) == ["int8", "int4"]
    assert manager.rows("int4") == manager.rows(), "of the hub's models nothing is known"
    with pytest.raises(ValueError, match="'int4' is not available for"):
        manager.load(folders["one"], "int4")
    list(manager.load(folders["two"]))
    own = service.pair
    list(manager.load(folders["two"], "int4"))
    pair = service.pair
    for lane in ("loop", "dynamo"):
        assert pair.engines.by_name[lane].bytes_per_weight() == BYTES["int4"]
        assert own.engines.by_name[lane].bytes_per_weight() == 4
    assert (own.weights, own.bits, pair.weights, pair.bits) == ("own", 0, "int4", 4)
    assert pair.footprint.full == own.footprint.weights + own.footprint.copies
    exact = replace(SETTINGS, options=SamplingOptions(exact=True))
    *_, answered = service.answer(Chat(), "hello", exact)
    *_, view = answered, *service.time_again(Chat.read(answered.base, answered.dynamo))
    assert view.status.endswith("one token at a time, in these 4-bit weights.")
    assert read_trace(view.dynamo.splitlines()).header.options["bits"] == 4
    assert service.speeds(folders["two"], "int4") == service.speeds() and not service.speeds(quantised="")


@pytest.fixture
def at_hub(hub, monkeypatch, folders):
    monkeypatch.setattr(downloads, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(downloads, "_away", {})
    folder = manager_module.Path(folders["two"])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos[("model", "someone/tiny")] = Repo(files)
    return hub


def test_a_download_is_told_and_the_cache_is_asked_first(at_hub, manager):
    list(manager.load("someone/tiny"))
    assert manager.loaded == "someone/tiny"
    list(manager.load(EMBEDDED))
    at_hub.requests.clear()
    list(manager.load("someone/tiny"))
    assert manager.loaded == "someone/tiny" and at_hub.requests == []


def test_a_cancelled_download_is_no_failure_of_the_hub(at_hub, manager, folders, monkeypatch):
    fetched = manager_module.resolve

    def cancelled_at_once(name, progress):
        manager.cancel()
        return fetched(name, progress)

    monkeypatch.setattr(manager_module, "resolve", cancelled_at_once)
    with pytest.raises(ValueError, match="is cancelled; loading it again"):
        list(manager.load("someone/tiny"))
    assert manager.loaded == folders["one"] and not downloads._away
    monkeypatch.setattr(manager_module, "resolve", fetched)
    list(manager.load("someone/tiny"))
    assert manager.loaded == "someone/tiny"


def test_models_that_are_ready_are_swapped_without_loading(folders, monkeypatch):
    pairs = {name: stage(load(folders[name], device="cpu")) for name in ("one", "two")}
    ready = {folders[name]: each for name, each in pairs.items()}
    manager = ModelManager(PageService(pairs["one"]), stage, names=tuple(ready), ready=ready, device="cpu")
    monkeypatch.setattr(manager_module, "resolve", None)
    list(manager.load(folders["two"]))
    assert manager.service.pair is pairs["two"] and manager.quantisations() == []


def test_examples_are_those_that_the_pair_can_do_something_with(manager, folders):
    assert manager.service.pair.examples == "chat"
    assert replace(manager.service.pair, chat=False).examples == "completion"
    list(manager.load(EMBEDDED))
    assert manager.service.pair.examples == "dialogues"


def test_a_pair_that_was_not_finetuned_to_chat_is_labelled_so_on_the_page(folders):
    model_pair = stage(load(folders["one"], device="cpu"))
    for chat in (True, False):
        demo = build_demo(replace(model_pair, chat=chat, report=None))
        page = json.dumps(demo.get_config_file(), default=str)
        assert ("was not finetuned to chat: it completes your text" in page) != chat
        assert ('"label": "Text to complete' in page) != chat
