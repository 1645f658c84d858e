"""Bases from GGUF files: read as transformers reads them, whole, or refused in a sentence."""

from __future__ import annotations

import json
import math
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ggufs import TEMPLATE, Kind, tiny, write_gguf
from hostile import refusal
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from dynamo.model import DynamoForCausalLM, gguf, gguf_cache, load_base
from dynamo.model.gguf_cache import base_folder, dequantised, gguf_of

IDS = torch.tensor([[5, 17, 3, 250, 8, 8, 99, 1, 120, 64]])
SHAPES = {
    "llama": ("llama", {}),
    "llama, untied, a head of its own size": (
        "llama", {"tie_word_embeddings": False, "head_dim": 32, "num_key_value_heads": 4}
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dynamo-multi-token" / "gguf"


@pytest.fixture
def write(tmp_path, tokenizer):
    """Writes a GGUF file of a tiny model, a Llama unless told otherwise."""

    def written(model=None, name="model.gguf", **options):
        return write_gguf(tmp_path / name, model or tiny(), tokenizer, **options)

    return written


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize("shape", SHAPES)
def test_a_base_is_what_was_written(write, shape):
    family, changes = SHAPES[shape]
    model = tiny(family, **changes)
    base = load_base(str(write(model, matrices=Kind.F32)))
    assert type(base) is type(model)
    torch.testing.assert_close(logits(base), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0, Kind.F16])
def test_weights_are_those_of_transformers_reader(write, kind):
    file = write(matrices=kind)
    base = load_base(str(file))
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True)
    )
    state = theirs.float().state_dict()
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, state[name]), name


def test_bfloat16_stays_bfloat16(write):
    """float16 has no room for the numbers that it holds."""
    model = tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 5] = 1e6
    base = load_base(str(write(model, matrices=Kind.BF16)))
    assert base.get_input_embeddings().weight[7, 5] == torch.tensor(1e6).bfloat16()
    assert json.loads((Path(base.name_or_path) / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_large_model_is_saved_in_parts(write, monkeypatch):
    file = write()
    whole = load_base(str(file))
    monkeypatch.setattr(gguf, "SHARD_BYTES", 20_000)
    shutil.rmtree(whole.name_or_path)
    folder = Path(base_folder(file))
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert torch.equal(logits(load_base(str(folder))), logits(whole))


def test_ends_of_text_and_of_a_turn_are_kept(write):
    folder = base_folder(write(fields={"tokenizer.ggml.eot_token_id": 9}))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [3, 9]
    assert load_base(folder).config.eos_token_id == 3


def test_tokenizer_and_template_come_along(write, tokenizer):
    read = AutoTokenizer.from_pretrained(base_folder(write()))
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read.chat_template == TEMPLATE
    for text in ("Please book a table for two.", "  12 at 7\n\n35", "<|user|>Hello<|end|>", "Zürich \u4e16"):
        assert read(text).input_ids == tokenizer(text).input_ids
        assert read.decode(read(text).input_ids) == text


def test_a_tokenizer_beside_the_file_is_not_taken_for_its_own(write, tokenizer):
    file = write()
    tokenizer.save_pretrained(file.parent)
    assert AutoTokenizer.from_pretrained(base_folder(file)).chat_template == TEMPLATE


def test_digits_stand_apart_where_the_vocabulary_wants_it(write, tokenizer):
    """transformers alone cuts a second newline off before a number; SmolLM2 has learnt one token for both."""
    read = AutoTokenizer.from_pretrained(base_folder(write(split="smollm")))
    right = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    right.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    texts = ("at half past 7", "  12 34\n\n56", "x  1")
    assert [read(text).input_ids for text in texts] == [right.encode(text).ids for text in texts]
    pieces = read.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n35")
    assert [piece for piece, _ in pieces] == ["ĊĊ", "3", "5"]


def test_llama_3s_scaling_is_found_in_the_divisors(write):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192, **scaling}
    model = tiny(rope_parameters=rope, max_position_embeddings=2048)
    divisors = []
    for n in range(8):
        turns = 8192 / (2 * math.pi * 5e5 ** (n / 8))  # in the original context
        share = min(max((turns - 1) / 3, 0), 1)
        divisors.append(1 / ((1 - share) / 8 + share))
    assert divisors[0] == 1 and divisors[-1] == 8
    file = write(model, matrices=Kind.F32, tensors={"rope_freqs.weight": np.array(divisors, np.float32)})
    base = load_base(str(file))
    assert base.config.rope_parameters == rope
    torch.testing.assert_close(logits(base), logits(model), rtol=0, atol=1e-5)
    file = write(model, name="b.gguf", tensors={"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)})
    with pytest.raises(ValueError, match="rope_freqs"):
        base_folder(file)


# -- the cache --------------------------------------------------------------------------------------------


def test_a_file_is_dequantised_once_and_stays_known(write, monkeypatch):
    file = write()
    folder = Path(base_folder(file))
    assert gguf_of(folder) == file
    monkeypatch.setattr(gguf_cache, "GGUFModel", None)  # not needed again
    assert base_folder(file) == base_folder(file.parent) == str(folder)
    assert base_folder(str(folder)) == str(folder)


def test_a_changed_file_is_dequantised_anew(write):
    folder = base_folder(write())
    before = load_base(folder).get_input_embeddings().weight
    again = base_folder(write(tiny(seed=1)))
    assert again == folder
    assert not torch.equal(load_base(again).get_input_embeddings().weight, before)


def test_what_is_cut_off_leaves_nothing_that_is_taken_for_whole(write, cache, monkeypatch):
    file = write()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="make room"):
        patch.setattr(gguf_cache, "write_json", full_disk)
        base_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    left = cache / f".{gguf_cache._place(file).name}.part"  # as a kill would
    shutil.copytree(file.parent, left, ignore=lambda *_: ["cache"])
    folder = Path(base_folder(file))
    assert not left.exists() and not (folder / "model.gguf").exists()
    assert gguf_of(folder) == file


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_of_two_at_once_one_does_the_work(write, monkeypatch):
    file, made = write(), []

    class Counted(gguf_cache.GGUFModel):
        def save(self, folder):
            made.append(folder)
            super().save(folder)

    monkeypatch.setattr(gguf_cache, "GGUFModel", Counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(dequantised, [file] * 4))
    assert len(folders) == len(made) == 1


def test_no_room_is_said_before_anything_is_written(write, cache, monkeypatch):
    file = write()
    monkeypatch.setattr(gguf_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"model: model.gguf takes .* XDG_CACHE_HOME"):
        base_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_folder_of_several_says_how_to_name_one(write):
    folder = write(name="b-Q8_0.gguf").parent
    write(name="a-Q4_K.gguf")
    with pytest.raises(ValueError, match=rf"a-Q4_K.gguf, b-Q8_0.gguf.*{folder}/a-Q4_K.gguf"):
        base_folder(folder)
    assert gguf_of(Path(base_folder(folder / "b-Q8_0.gguf"))) == folder / "b-Q8_0.gguf"


def test_safetensors_come_before_a_gguf_beside_them(write):
    file = write()
    tiny(seed=3).save_pretrained(file.parent)
    assert base_folder(file.parent) == str(file.parent)


def test_heads_are_put_on_it_and_removed_again(write):
    file = write()
    base = load_base(str(file))
    for place in ({"base": str(file)}, {"base": str(file.parent), "gguf_file": file.name}):
        model = DynamoForCausalLM.from_base(num_token_heads=2, **place)
        assert torch.equal(logits(model.to_base()), logits(base))


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"general.architecture": "gemma2"}, "gemma2.*supported in GGUF files are: Llama"),
        ({"general.architecture": "gptneox"}, "gptneox.*supported"),
        ({"llama.expert_count": 8}, "mixture"),
        ({"split.count": 3}, "part of a model"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.block_count": 4}, r"blk\.3\."),
        ({"llama.block_count": 2**31}, "too small"),
        ({"llama.embedding_length": 128}, "expected"),
        ({"llama.attention.head_count": 0}, "damaged"),
        ({"llama.block_count": "many"}, "damaged"),
        ({"tokenizer.ggml.pre": "klingon"}, "klingon"),
        ({"tokenizer.ggml.model": "unheard-of"}, "tokenizer"),
        ({"tokenizer.ggml.eot_token_id": "the end"}, "damaged"),
    ],
)
def test_another_model_is_refused_by_what_it_is(write, cache, fields, said):
    with pytest.raises(ValueError, match=rf"^model: .*{said}"):
        base_folder(write(fields=fields))
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_a_weight_without_a_place_is_not_passed_over(write):
    """As a Llama with biases has them, which transformers' reader leaves out."""
    with pytest.raises(ValueError, match=r"blk.0.attn_q.bias"):
        base_folder(write(tensors={"blk.0.attn_q.bias": np.ones(64, np.float32)}))


def test_a_cut_file_is_refused_and_leaves_nothing(write, cache):
    file = write()
    whole = file.read_bytes()
    for stop in (0, 3, 20, 200, len(whole) // 4, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:stop])
        said = refusal(lambda: base_folder(file))
        assert said is not None and said.startswith("model: "), stop
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_any_bytes_changed_are_read_or_refused(write):
    file = write(tiny(num_hidden_layers=1))
    whole, draw = file.read_bytes(), random.Random(0)
    for _ in range(30):
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 3))):
            spoiled[draw.randrange(len(whole) // 4)] = draw.randrange(256)  # most of that is metadata
        file.write_bytes(bytes(spoiled))
        refusal(lambda: load_base(str(file)))


def test_without_the_package_it_is_named(write, monkeypatch):
    file = write()
    monkeypatch.setattr("dynamo.model.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="package gguf"):
        base_folder(file)
