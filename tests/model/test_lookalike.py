"""A look-alike of Pythia-14M (its real shape, random weights) on every path: as it is, in 8 and 4 bits,
saved, pushed to a local hub, fetched, on the page.

DYNAMO_TEST_TOKENIZER may name Pythia's own tokenizer.json; otherwise a small one of this project's is used,
which knows few of the 50,304 ids that the model may say.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from processes import completed
from visitors import client_of

from dynamo import Engine, SamplingOptions, loading
from dynamo.__main__ import main
from dynamo.commands.memory import look_alike, measure_memory
from dynamo.data.text import has_chat_template
from dynamo.loading import downloads
from dynamo.loading.sizes import pythia_shape
from dynamo.trace.ndjson import read_trace
from dynamo.training.trainer import save_model
from dynamo.ui import ModelPair, build_demo, launch_options
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import Settings

IDS = list(range(100, 140))
ANY_TOKENIZER = os.environ.get("DYNAMO_TEST_TOKENIZER")
LAYER = 12 * 128**2  # weights of the matrices of one layer
SETTINGS = Settings(SamplingOptions(threshold=0.2), 8, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look-alike") / "dynamo-14m"
    look_alike("pythia-14m", folder, Path(ANY_TOKENIZER) if ANY_TOKENIZER else None)
    return folder


@pytest.fixture(scope="module")
def pairs(checkpoint):
    """The pair as it is, in 8 and in 4 bits, each loaded once."""
    return {way: loading.load(str(checkpoint), device="cpu", quantize=way) for way in (None, "8bit", "4bit")}


def logits(model, ids=IDS):
    with torch.inference_mode():
        output = model(torch.tensor([ids]))
    return getattr(output, "head_logits", output.logits)


def replies(model, tokens=6):
    options = SamplingOptions(threshold=0.2, temperature=0)
    return [step.tokens for step in Engine(model).stream(IDS, options, max_new_tokens=tokens)]


def test_it_has_pythias_shape_and_its_heads(pairs):
    model = pairs[None].dynamo
    assert model.backbone.num_parameters() == pythia_shape("14m").parameters == 14_067_712
    assert [model.config.num_hidden_layers, model.config.num_attention_heads] == [6, 4]
    assert logits(model, [1, 2]).shape == (3, 1, 2, 50304)
    assert has_chat_template(pairs[None].tokenizer) != bool(ANY_TOKENIZER)


@pytest.mark.parametrize(("way", "bytes_each"), [("8bit", 1), ("4bit", 0.5 + 4 / 64)])
def test_fewer_bits_take_the_memory_that_they_should_and_answer(pairs, way, bytes_each):
    whole, small = (loading.memory_of(pairs[each].base, pairs[each].dynamo) for each in (None, way))
    assert whole == pytest.approx(4 * pairs[None].dynamo.num_parameters(), rel=1e-3)
    # Six layers and two heads shrink; embeddings stay.
    assert whole - small == pytest.approx(8 * LAYER * (4 - bytes_each), rel=0.01)
    full, rough = logits(pairs[None].dynamo), logits(pairs[way].dynamo)
    error = (full - rough).square().mean().sqrt() / full.std()
    assert 0 < error < {"8bit": 0.05, "4bit": 0.4}[way]
    for model in (pairs[way].base, pairs[way].dynamo):
        assert sum(map(len, replies(model))) >= 6


@pytest.mark.parametrize("way", [None, "8bit", "4bit"])
def test_saved_and_loaded_it_is_the_same_model(pairs, way, tmp_path):
    before = logits(pairs[way].dynamo)
    save_model(pairs[way].dynamo, pairs[way].tokenizer, tmp_path / "again")
    again = loading.load(str(tmp_path / "again"), device="cpu")
    assert torch.equal(before, logits(again.dynamo)) and torch.equal(before[0], logits(again.base))


def test_half_of_it_on_disk_answers_alike(checkpoint, pairs):
    spread = loading.load(str(checkpoint), device_map="auto", max_memory={"cpu": 54_000_000})
    held = loading.memory_by_device(spread.dynamo)
    assert held["cpu"] > 10e6 and held["disk"] > 10e6
    assert sum(held.values()) == loading.memory_of(pairs[None].dynamo)
    assert replies(spread.dynamo, 3) == replies(pairs[None].dynamo, 3)  # each pass reads the disk


def test_it_comes_back_from_the_hub_as_it_went(checkpoint, pairs, hub, monkeypatch, capsys):
    at = functools.partial(HfApi, endpoint=hub.url)
    monkeypatch.setattr(downloads, "HfApi", at)
    monkeypatch.setattr("huggingface_hub.HfApi", at)
    command = ["push", str(checkpoint), "someone/dynamo-14m", "--licence", "apache-2.0"]
    assert main([*command, "--base", "EleutherAI/pythia-14m"]) == 0
    assert json.loads(capsys.readouterr().out)["uploaded"]
    fetched = []
    pair = loading.load("someone/dynamo-14m", device="cpu", progress=lambda done, total: fetched.append(done))
    assert torch.equal(logits(pair.dynamo), logits(pairs[None].dynamo))
    assert max(fetched) > 28e6


@pytest.mark.parametrize("way", [None, "8bit", "4bit"])
def test_the_page_answers_with_it(pairs, way):
    host = PageService(ModelPair.from_pair(pairs[way]))
    *_, view = host.answer(Chat(), "hello", SETTINGS)
    for wire in (view.base, view.dynamo):
        trace = read_trace(wire.splitlines())
        assert sum(len(line.tokens) for line in trace.passes) == 8
    assert any(len(line.tokens) > 1 for line in read_trace(view.dynamo.splitlines()).passes)


def test_a_program_asks_the_served_page(pairs):
    demo = build_demo(ModelPair.from_pair(pairs["8bit"]))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        result = client_of(url).predict("hello", threshold=0.2, max_new_tokens=8, api_name="/compare")
    finally:
        demo.close()
    assert result["dynamo"]["tokens"] == result["base"]["tokens"] == 8
    assert result["dynamo"]["tokens_per_forward"] > 1


def test_the_command_that_tells_its_memory(checkpoint, capsys, monkeypatch):
    measured = measure_memory(str(checkpoint), "float32")
    assert measured["weights_mb"] == {"cpu": pytest.approx(57.9, abs=0.1)}
    assert measured["peak_mb"] >= measured["before_mb"] > 0  # this process may have held more before
    monkeypatch.setattr("dynamo.commands.memory.subprocess.run", completed)
    command = ["memory", "--model", "embedded", "--ways", "8bit"]
    assert main(command) == 0
    shown = capsys.readouterr()
    weights = json.loads(shown.out)["ways"]["8bit"]["weights_mb"]["cpu"]
    assert 25 < weights < 40 and f"{weights:.1f}" in shown.err
    assert main([*command, "bfloat16", "--here"]) == 2
    assert "here: name one of the ways" in capsys.readouterr().err
