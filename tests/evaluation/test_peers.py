import sys
import textwrap
from pathlib import Path

import pytest
from conftest import tiny_dynamo
from replies import PROMPTS

from dynamo import Pair, SamplingOptions
from dynamo.evaluation import bench, peers
from dynamo.evaluation.subprocess_lane import LaneLost

ENGINE = """
    import time
    __version__ = "1.2"
    class Llama:
        def __init__(self, model_path, **settings):
            print("what libraries print is no answer")
            assert open(model_path).read() == "weights" and settings["n_threads"] == 1
            self.seed = 0
        def reset(self): pass
        def set_seed(self, seed): self.seed = seed
        def generate(self, prompt, top_k, **sampling):
            if self.seed == 99:
                raise MemoryError("none left")
            time.sleep(0.05)  # reading the prompt
            yield from [prompt[-1], self.seed, top_k, 2, 7, 8]
"""


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A Python with a llama.cpp of our own, and without CTranslate2."""
    (tmp_path / "llama_cpp.py").write_text(textwrap.dedent(ENGINE))
    (tmp_path / "ctranslate2.py").write_text("raise ModuleNotFoundError('No module named ctranslate2')")
    (tmp_path / "model.gguf").write_text("weights")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def start():
    model, lost, started = tiny_dynamo(), {}, {}
    model.generation_config.eos_token_id = 2
    base = model.to_pythia()
    base.generation_config.eos_token_id = 2
    pair = Pair("tiny", "", base, model, None, None)

    def start(*asked, file=None, most=24):
        options = SamplingOptions(top_k=9)
        started.update(peers.start(asked, pair, options, most, 64, 1, lost, sys.executable, file))
        return started, lost

    yield start
    for lane in started.values():
        lane.close()


def test_a_peer_answers_until_the_text_ends_and_is_timed_apart_from_the_prompt(engines, start, capfd):
    lanes, lost = start("llama.cpp", file=engines / "model.gguf")
    assert not lost and list(lanes) == ["llamacpp"]
    run = lanes["llamacpp"]([5, 6], 4)
    assert run.tokens == [6, 4, 9, 2], "the end counts, nothing comes behind it"
    assert (run.decode_tokens, run.decode_passes, run.passes) == (3, 3, 4)
    assert run.prefill_seconds >= 0.05 > run.decode_seconds > 0
    flags = lanes["llamacpp"].flags
    assert flags["library"] == "llama-cpp-python 1.2" and flags["top_k"] == 9
    times = bench.interleave(lanes, PROMPTS[:2], runs=1)
    assert times["llamacpp"].tokens_per_forward == 1
    assert "no answer" not in capfd.readouterr().out, "stdout is for the command's result alone"


def test_replies_are_as_long_as_asked(engines, start):
    lanes, _ = start("llama.cpp", file=engines / "model.gguf", most=2)
    assert lanes["llamacpp"]([5, 6], 4).tokens == [6, 4]


def test_what_is_not_installed_or_has_no_file_is_left_out_and_named(engines, start, monkeypatch):
    monkeypatch.setattr(peers, "gguf_of", lambda folder: None)
    lanes, lost = start("llama.cpp")
    assert not lanes and "--peer-model" in lost["llamacpp"]
    lanes, lost = start("ctranslate2")
    assert not lanes
    for name in ("ctranslate2", "ctranslate2_int8"):
        assert "No module named ctranslate2" in lost[name] and "--peer-python" in lost[name]


def test_a_peer_that_fails_ends_with_its_own_words(engines, start):
    lanes, _ = start("llama.cpp", file=engines / "model.gguf")
    with pytest.raises(LaneLost, match=r"^MemoryError: none left$"):
        lanes["llamacpp"]([5], 99)


@pytest.mark.parametrize(
    "program, seconds, reason",
    [("import time; time.sleep(600)", 0.2, "no reply within 0 s"), ("", 60, "its process ended")],
)
def test_a_process_that_says_nothing_is_left_out(program, seconds, reason):
    with pytest.raises(LaneLost, match=reason):
        peers.PeerLane([sys.executable, "-c", program], seconds)
    with pytest.raises(LaneLost):
        peers.PeerLane([str(Path("no") / "such" / "python")])
