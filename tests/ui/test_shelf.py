"""Loading another model into a page that is being used: what is offered, what is refused, what comes free."""

import functools
import gc
import json
import threading
import weakref
from dataclasses import replace

import pytest
from conftest import tiny_base, tiny_dynamo
from hub import Repo
from huggingface_hub import HfApi
from test_chat import SETTINGS

from dynamo.loading import EMBEDDED, load, names
from dynamo.sampling.sampler import SamplingOptions
from dynamo.trace.ndjson import read_trace
from dynamo.training.trainer import save_model
from dynamo.ui import Analyses, ModelOffer, ModelPair, Offer, build_demo
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.models import manager as shelf_module
from dynamo.ui.models.manager import ModelManager

GIGABYTE = 10**9


def stage(pair):
    return ModelPair.from_pair(pair), Analyses(report={"of": pair.name})


@pytest.fixture
def folders(tmp_path, tokenizer):
    """name -> folder of a checkpoint with heads ("one", "two") or without ("stock")."""
    save_model(tiny_dynamo(seed=1), tokenizer, tmp_path / "one")
    save_model(tiny_dynamo(seed=2), tokenizer, tmp_path / "two")
    save_model(tiny_base(), tokenizer, tmp_path / "stock")
    return {name: str(tmp_path / name) for name in ("one", "two", "stock")}


@pytest.fixture
def shelf(folders):
    pair = load(folders["one"], device="cpu")
    return ModelManager(PageService(*stage(pair)), ModelOffer(stage, any_model=True, device="cpu"))


def told(moments):
    return [moment.told for moment in moments]


def test_the_next_run_is_the_new_pairs_and_one_in_progress_keeps_its_own(shelf, folders):
    running = shelf.host.answer(Chat(), "hello", SETTINGS)
    next(running)
    list(shelf.load(folders["two"]))
    *_, last = running
    assert read_trace(last.dynamo.splitlines()).header.model == folders["one"]
    *_, view = shelf.host.answer(Chat(), "hello", SETTINGS)
    assert read_trace(view.dynamo.splitlines()).header.model == folders["two"] == shelf.loaded
    assert shelf.host.analyses.report == {"of": folders["two"]}


def test_an_answer_of_the_pair_before_is_not_decoded_again_by_another(shelf, folders):
    *_, view = shelf.host.answer(Chat(), "hello", SETTINGS)
    list(shelf.load(folders["two"]))
    with pytest.raises(ValueError, match=r"two is loaded now; press Generate"):
        next(shelf.host.decode_again(Chat.read(view.base, view.dynamo), SETTINGS))


def test_the_memory_of_the_pair_before_comes_free(folders):
    pair = load(folders["one"], device="cpu")
    gone = weakref.ref(pair.dynamo)
    contenders, analyses = ModelPair.from_pair(pair), Analyses(sweep=functools.partial(iter, [pair]))
    del pair
    kept = []
    build = shelf_module.ModelManager.__init__

    def keep(self, host, offer):
        build(self, host, offer)
        kept.append(self)

    shelf_module.ModelManager.__init__ = keep
    try:
        demo = build_demo(contenders, analyses, Offer(models=ModelOffer(stage, any_model=True, device="cpu")))
    finally:
        shelf_module.ModelManager.__init__ = build
    del contenders, analyses
    list(kept[0].load(folders["two"]))
    gc.collect()
    assert gone() is None and demo is not None


def test_where_both_do_not_fit_the_old_pair_is_gone_before_the_new_is_read(shelf, folders, monkeypatch):
    gone = weakref.ref(shelf.host.contenders.dynamo)
    read = []

    def load_and_look(name, *arguments, **keywords):
        if name != EMBEDDED:
            gc.collect()
            read.append((gone(), shelf.loaded))
        return load(name, *arguments, **keywords)

    monkeypatch.setattr(shelf_module, "available_memory", lambda device: 1000)
    monkeypatch.setattr(shelf_module, "load", load_and_look)
    monkeypatch.setattr(shelf_module, "give_back", lambda: (gc.collect(), read.append(gone())))
    list(shelf.load(folders["two"]))
    assert read == [None, (None, EMBEDDED)], "a GPU's memory goes back when nobody holds it any more"
    assert shelf.loaded == folders["two"] and shelf.notice == ""


def test_a_pair_that_cannot_be_read_leaves_the_one_that_fits_and_says_so(shelf, folders, monkeypatch):
    monkeypatch.setattr(shelf_module, "available_memory", lambda device: 1000)

    def refuse(name, *arguments, **keywords):
        if name == EMBEDDED:
            return load(name, *arguments, **keywords)
        raise ValueError("model: too large")

    monkeypatch.setattr(shelf_module, "load", refuse)
    with pytest.raises(ValueError, match="too large"):
        list(shelf.load(folders["two"]))
    assert shelf.loaded == EMBEDDED and "the embedded pair answers" in shelf.notice
    *_, view = shelf.host.answer(Chat(), "hello", SETTINGS)
    assert read_trace(view.dynamo.splitlines()).end is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "choose one above"),
        ("/nowhere", "expected 'embedded', a model folder or a hub id"),
        ("someone/absent", "cannot be fetched from the hub"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence_and_changes_nothing(shelf, folders, name, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        list(shelf.load(name))
    assert shelf.loaded == folders["one"] and shelf.host.swaps == 0


def test_only_one_is_loaded_at_a_time(shelf, folders, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(
        shelf_module, "resolve", lambda *_: go.wait(120) and shelf_module.Path(folders["two"])
    )
    first = shelf.load(folders["two"])
    with pytest.raises(ValueError, match="is being loaded"):
        shelf.load(folders["one"])
    go.set()
    list(first)
    assert shelf.loaded == folders["two"]


def test_a_space_offers_the_listed_models_alone(folders):
    host = PageService(*stage(load(folders["one"], device="cpu")))
    shelf = ModelManager(host, ModelOffer(stage, names=(EMBEDDED, folders["two"]), device="cpu"))
    assert [row.name for row in shelf.rows()] == [EMBEDDED, folders["two"]]
    for name in (folders["one"], "EleutherAI/pythia-70m", folders["two"] + "/../one"):
        with pytest.raises(ValueError, match="expected one of"):
            shelf.load(name)
    list(shelf.load(folders["two"]))
    assert shelf.loaded == folders["two"]


def test_sizes_that_do_not_fit_say_why_and_fewer_bits_fit_more(shelf, monkeypatch):
    monkeypatch.setattr(shelf_module, "available_memory", lambda device: 8 * GIGABYTE)
    rows = {row.title: row for row in shelf.rows()}
    assert not rows["pythia-70m"].reason and "70 million parameters" in rows["pythia-70m"].detail
    assert rows["pythia-12b"].reason.endswith("8.0 GB are free")
    fitting = [sum(not row.reason for row in shelf.rows(bits)) for bits in (None, "4bit")]
    assert fitting[0] < fitting[1]


def test_a_model_without_heads_completes_beside_the_pair(shelf, folders):
    list(shelf.load(folders["stock"]))
    assert shelf.loaded == folders["one"] and shelf.completion.name == folders["stock"]
    *texts, (text, speed) = shelf.completion.complete("hello", SamplingOptions())
    assert all(text.startswith("hello") for text, _ in texts) and len(text) > len("hello")
    assert speed.startswith("One token per forward pass")
    with pytest.raises(ValueError, match="it is empty"):
        next(shelf.completion.complete(" ", SamplingOptions()))
    list(shelf.load(folders["two"]))
    assert shelf.completion is None


def test_eight_bits_are_loaded_where_they_are_asked_for(shelf, folders):
    assert shelf.quantisations() == ["8bit", "4bit"]
    staged = []
    offer = ModelOffer(lambda pair: staged.append(pair) or stage(pair), any_model=True, device="cpu")
    list(ModelManager(shelf.host, offer).load(folders["two"], "8bit"))
    assert "Linear8bitLt" in {type(each).__name__ for each in staged[0].dynamo.modules()}
    with pytest.raises(ValueError, match="'3bit' is not to be had"):
        shelf.load(folders["two"], "3bit")


@pytest.fixture
def at_hub(hub, monkeypatch, folders):
    monkeypatch.setattr(names, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(names, "_away", {})
    folder = shelf_module.Path(folders["two"])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos[("model", "someone/tiny")] = Repo(files)
    return hub


def test_a_download_is_told_and_the_cache_is_asked_first(at_hub, shelf):
    list(shelf.load("someone/tiny"))
    assert shelf.loaded == "someone/tiny"
    list(shelf.load(EMBEDDED))
    at_hub.requests.clear()
    list(shelf.load("someone/tiny"))
    assert shelf.loaded == "someone/tiny" and at_hub.requests == []


def test_a_cancelled_download_is_no_failure_of_the_hub(at_hub, shelf, folders, monkeypatch):
    fetched = shelf_module.resolve

    def cancelled_at_once(name, progress):
        shelf.cancel()
        return fetched(name, progress)

    monkeypatch.setattr(shelf_module, "resolve", cancelled_at_once)
    with pytest.raises(ValueError, match="is cancelled; loading it again"):
        list(shelf.load("someone/tiny"))
    assert shelf.loaded == folders["one"] and not names._away
    monkeypatch.setattr(shelf_module, "resolve", fetched)
    list(shelf.load("someone/tiny"))
    assert shelf.loaded == "someone/tiny"


def test_models_that_are_ready_are_swapped_without_loading(folders, monkeypatch):
    pairs = {name: stage(load(folders[name], device="cpu")) for name in ("one", "two")}
    ready = {folders[name]: each for name, each in pairs.items()}
    shelf = ModelManager(
        PageService(*pairs["one"]), ModelOffer(stage, names=tuple(ready), ready=ready, device="cpu")
    )
    monkeypatch.setattr(shelf_module, "resolve", None)
    list(shelf.load(folders["two"]))
    assert shelf.host.contenders is pairs["two"][0] and shelf.quantisations() == []


def test_examples_are_those_that_the_pair_can_do_something_with(shelf, folders):
    assert shelf.host.contenders.examples == "chat"
    assert replace(shelf.host.contenders, chat=False).examples == "completion"
    list(shelf.load(EMBEDDED))
    assert shelf.host.contenders.examples == "dialogues"


def test_a_pair_that_was_not_finetuned_to_chat_is_labelled_so_on_the_page(folders):
    contenders, _ = stage(load(folders["one"], device="cpu"))
    for chat in (True, False):
        demo = build_demo(replace(contenders, chat=chat), Analyses())
        page = json.dumps(demo.get_config_file(), default=str)
        assert ("was not finetuned to chat: it completes your text" in page) != chat
        assert ('"label": "Text to complete' in page) != chat
