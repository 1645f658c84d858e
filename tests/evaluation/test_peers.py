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
            self.seed, self.model = 0, self
        def reset(self): pass
        def set_seed(self, seed): self.seed = seed
        def generate(self, prompt, top_k, **sampling):
            if self.seed == 99:
                raise MemoryError("none left")
            time.sleep(0.05)  # reading the prompt
            yield from [prompt[-1], self.seed, top_k, 2, 7, 8]
        def _init_sampler(self, **sampling):
            return SimpleNamespace(sampler=self.seed)
"""
# Texts are kept by sequence; what is drawn depends on all of a text, and on its seed.
TOGETHER = """
    from collections import defaultdict
    from types import SimpleNamespace
    def llama_context_default_params():
        return SimpleNamespace()
    def llama_init_from_model(model, settings):
        assert settings.n_threads == settings.n_threads_batch == 1
        settings.texts, settings.passes = defaultdict(list), 0
        time.perf_counter = lambda: float(settings.passes)
        return settings
    def llama_batch_init(size, embeddings, sequences):
        names, empty = ("token", "pos", "n_seq_id", "logits"), [None] * size
        return SimpleNamespace(seq_id=[[None] for _ in empty], **{name: empty.copy() for name in names})
    def llama_decode(context, batch):
        if 255 in batch.token:
            return 1
        assert batch.n_tokens <= context.n_batch
        context.drawn = {}
        for place in range(batch.n_tokens):
            (row,) = batch.seq_id[place][: batch.n_seq_id[place]]
            text = context.texts[row]
            assert row < context.n_seq_max and batch.pos[place] == len(text), "a gap in the cache"
            text.append(batch.token[place])
            assert len(text) <= context.n_ctx // context.n_seq_max
            if batch.logits[place]:
                context.drawn[place] = list(text)
        context.passes += 1
        return 0
    def llama_sampler_sample(seed, context, place):
        text = context.drawn[place]
        return 2 if len(text) == 9 else sum(text) * (seed + 3) % 97 + 3
    def llama_batch_free(batch): pass
    def llama_free(context): pass
"""


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A Python with a llama.cpp of our own, and without CTranslate2."""
    (tmp_path / "llama_cpp.py").write_text(textwrap.dedent(ENGINE) + textwrap.dedent(TOGETHER))
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

    start.pair = pair
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


def test_a_peer_answers_many_at_once_as_each_alone(engines, start):
    """Texts of 3, 6 and 8 tokens end at 10, or where they have 5 new ones; one leaves the batch early."""
    lane = start("llama.cpp", file=engines / "model.gguf")[0]["llamacpp"]
    prompts, seeds = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [3, 1, 4, 1, 5, 9, 2, 6]], [4, 0, 7]

    def alone(prompt, seed):
        text = list(prompt)
        while text[-1] != 2 and len(text) < len(prompt) + 5:
            text.append(2 if len(text) == 9 else sum(text) * (seed + 3) % 97 + 3)
        return text[len(prompt) :]

    line = {"prompts": prompts, "seeds": seeds, "max_new_tokens": 5}
    said = lane._ask(line)
    assert said["tokens"] == [alone(*each) for each in zip(prompts, seeds, strict=True)]
    assert [len(tokens) for tokens in said["tokens"]] == [5, 4, 2]
    assert said["seconds"] == 4, "passes that read prompts do not count"
    assert lane.together(prompts, range(3), 5)[0] == 4 + 3 + 1, "nor do the tokens that they draw"
    with pytest.raises(LaneLost, match="RuntimeError: llama_decode said 1 to 2 tokens"):
        lane.together([[5, 255]], [0], 5)


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


CONVERTER = """
    import json, os
    from types import SimpleNamespace
    from transformers import AutoModelForCausalLM
    __version__ = "1.3"
    class TransformersConverter:
        def __init__(self, folder): self.folder = folder
        def load_model(self, cls, folder): return cls.from_pretrained(folder)
        def load_tokenizer(self, cls, folder): raise OSError("there is none")
        def convert(self, folder, quantization, force):
            model = self.load_model(AutoModelForCausalLM, self.folder)
            words = self.load_tokenizer(None, self.folder).get_vocab()
            assert [words[str(token)] for token in range(model.config.vocab_size)] == list(words.values())
            rotary = model.config.rotary_pct * model.config.hidden_size
            sums = [len(words), 1000 * float(model.embed_out.weight.detach().double().sum()), rotary]
            with open(os.path.join(folder, "model.json"), "w") as file:
                json.dump(sums, file)
    class Generator:
        def __init__(self, folder, compute_type, intra_threads):
            self.compute = compute_type
            with open(os.path.join(folder, "model.json")) as file:
                self.sums = json.load(file)
        def generate_tokens(self, prompt, max_length, end_token, **sampling):
            for value in (*self.sums, self.compute == "int8", len(prompt)):
                yield SimpleNamespace(token_id=round(value))
    converters = SimpleNamespace(TransformersConverter=TransformersConverter)
    def set_random_seed(seed): pass
"""


def test_a_model_that_lies_in_no_folder_and_has_no_tokenizer_is_converted(engines, start):
    """CTranslate2 4.8 wants a tokenizer, and of a GPT-NeoX names that transformers 5 changed."""
    (engines / "ctranslate2.py").write_text(textwrap.dedent(CONVERTER))
    lanes, lost = start("ctranslate2")
    assert not lost and list(lanes) == ["ctranslate2", "ctranslate2_int8"]
    base = start.pair.base
    config = base.config
    total = round(1000 * float(base.get_output_embeddings().weight.detach().double().sum()))
    rotary = round(config.rope_parameters["partial_rotary_factor"] * config.hidden_size)
    for compute, lane in enumerate(lanes.values()):
        assert lane([5, 6], 0).tokens == [config.vocab_size, total, rotary, compute, 2][:5]


@pytest.mark.parametrize(
    "program, seconds, reason",
    [("import time; time.sleep(600)", 0.2, "no reply within 0 s"), ("", 60, "its process ended")],
)
def test_a_process_that_says_nothing_is_left_out(program, seconds, reason):
    with pytest.raises(LaneLost, match=reason):
        peers.PeerLane([sys.executable, "-c", program], seconds)
    with pytest.raises(LaneLost):
        peers.PeerLane([str(Path("no") / "such" / "python")])
