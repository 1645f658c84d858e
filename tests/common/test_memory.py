"""Memory that runs out, also in the middle of a run, is one sentence with a remedy; the next run works."""

import gc
import re
import weakref
from pathlib import Path

import gradio as gr
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from page_handlers import SETTINGS, handlers, send

from dynamo import Engine, SamplingOptions
from dynamo.__main__ import main
from dynamo.common import memory
from dynamo.common.memory import enough_memory, is_out_of_memory
from dynamo.decoding.generate import GenerateEngine
from dynamo.evaluation.audit import audit
from dynamo.loading import Pair
from dynamo.trace.ndjson import read_trace
from dynamo.training.trainer import save_model
from dynamo.ui import ModelPair

ROOT = Path(__file__).resolve().parents[2]
IDS = list(range(5, 30))
OPTIONS = SamplingOptions(threshold=0.2)
SENTENCE = r"memory: cpu has no room left for this run; shorten the chat .* 8bit or 4bit, .* smaller one$"
WORDS = {
    "a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "a GPU's driver": lambda: torch.AcceleratorError("CUDA error: out of memory"),
    "a GPU's library": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"
    ),
    "the CPU's allocator": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "Python": MemoryError,
}


class Full:
    """A model that finds no memory left at its `at`-th pass from now on, once."""

    def __init__(self, model, at, error=WORDS["a GPU"]):
        self.left, self.error = at, error
        # Every pass ends in the final norm or begins with the embedding, packed or not.
        self.handle = model.get_input_embeddings().register_forward_hook(self)

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            self.handle.remove()
            raise self.error()


def tokens(engine, **changes):
    steps = engine.stream(IDS, OPTIONS, **{"max_new_tokens": 24, "seed": 1, **changes})
    return [step.tokens for step in steps]


@pytest.mark.parametrize("error", WORDS.values(), ids=WORDS)
def test_every_way_of_saying_it_is_understood_and_nothing_is_kept(error, monkeypatch):
    kept, released = [], []
    monkeypatch.setattr(memory, "_releases", [lambda: released.append(1)])

    def fail():
        tensor = torch.zeros(10)
        kept.append(weakref.ref(tensor))
        raise error()

    with pytest.raises(ValueError, match="no room") as refused, enough_memory(lambda: "no room"):
        fail()
    gc.collect()
    assert released == [1] and kept[0]() is None and refused.value.__context__.__traceback__ is None


def test_other_errors_pass():
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError())
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(lambda: "no room"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("error", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("at", [1, 3])
def test_an_engine_lets_go_of_its_memory_and_runs_again(at, error):
    model = tiny_dynamo()
    engine = Engine(model)
    expected = tokens(engine)
    assert engine._pool.idle == 1
    Full(model, at, error)
    seen = []
    with pytest.raises(ValueError, match=SENTENCE):
        for step in engine.stream(IDS, OPTIONS, max_new_tokens=24, seed=1):
            seen.append(step.tokens)
    assert seen == expected[: at - 1]
    assert engine._pool.idle == 0
    assert tokens(engine) == expected


def test_engines_that_share_a_machine_let_go_together():
    model, other = tiny_dynamo(), Engine(tiny_base())
    tokens(other)
    Full(model, 2)
    with pytest.raises(ValueError, match="memory: "):
        tokens(Engine(model))
    assert other._pool.idle == 0


def test_replies_decoded_together_stop_in_the_same_sentence():
    model = tiny_dynamo()
    engine = Engine(model)
    expected = list(engine.stream_batch([IDS, IDS[:4]], OPTIONS, max_new_tokens=8))
    Full(model, 4)
    with pytest.raises(ValueError, match=SENTENCE):
        list(engine.stream_batch([IDS, IDS[:4]], OPTIONS, max_new_tokens=8))
    again = list(engine.stream_batch([IDS, IDS[:4]], OPTIONS, max_new_tokens=8))
    assert [(i, step.tokens) for i, step in again] == [(i, step.tokens) for i, step in expected]


def test_generate_and_the_audit_say_it_too():
    model = tiny_base()
    engine = GenerateEngine(model)
    expected = tokens(engine)
    Full(model, 3)
    with pytest.raises(ValueError, match=SENTENCE):
        tokens(engine)
    assert tokens(engine) == expected
    Full(model, 1)
    with pytest.raises(ValueError, match=SENTENCE):
        audit(model, IDS, IDS)


def test_on_the_page_it_is_a_sentence_and_the_next_answer_comes(tokenizer):
    base, dynamo = tiny_base(), tiny_dynamo()
    wired = handlers(ModelPair.from_pair(Pair("tiny", "", base, dynamo, tokenizer, None)))
    for model, opponent in ((dynamo, "loop"), (base, "loop"), (base, "generate")):
        Full(model, 3)
        values = {**SETTINGS, "max_new_tokens": 24}.values()
        answers = []
        with pytest.raises(gr.Error, match="memory: "):
            for answer in wired.send("hello", False, False, opponent, "", "", *values):
                answers.append(answer)
        assert answers  # what came before stays on the page
        *_, (_, reply, _, _, _) = send(wired, opponent=opponent, max_new_tokens=24)
        assert len(read_trace(reply.splitlines()).passes) > 3


@pytest.mark.parametrize("verb", ["generate", "compare"])
def test_a_command_says_it_in_a_line(verb, tmp_path, tokenizer, capsys, monkeypatch):
    save_model(tiny_dynamo(), tokenizer, tmp_path / "model")
    from dynamo.loading import pairs

    real = pairs.load_dynamo

    def nearly_full(*arguments, **options):
        model = real(*arguments, **options)
        Full(model, 3)
        return model

    monkeypatch.setattr(pairs, "load_dynamo", nearly_full)
    arguments = [verb, "Hello", "--model", str(tmp_path / "model"), "--device", "cpu", "--threshold", "0"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: memory: cpu has no room left")
    monkeypatch.setattr(pairs, "load_dynamo", real)
    assert main(arguments) == 0


def test_a_command_that_is_no_run_says_it_too(capsys, monkeypatch):
    def full(_):
        raise WORDS["a GPU"]()

    monkeypatch.setattr("dynamo.commands.perplexity.run", full)
    assert main(["perplexity", "--model", "embedded", "--data", "x"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: memory: there is none left for this; use smaller batches"
    )


def test_no_module_needs_at_import_what_windows_does_not_have():
    absent = re.compile(r"^(?:import|from) (?:resource|fcntl|pwd|grp|termios)\b", re.MULTILINE)
    files = [ROOT / "app.py", *(ROOT / "dynamo").rglob("*.py")]
    assert not [str(file) for file in files if absent.search(file.read_text(encoding="utf-8"))]
