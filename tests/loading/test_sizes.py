"""What fits: computed bytes against models that are built, and the memory that the system reports."""

from itertools import pairwise

import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dynamo import loading
from dynamo.loading import devices, sizes
from dynamo.model import DynamoConfig, DynamoForCausalLM
from dynamo.model.packing import copies_of
from dynamo.training.trainer import save_model

CPU = torch.device("cpu")


def config(size):
    layers, hidden, attention_heads, vocabulary = sizes.PYTHIA[size]
    return GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=4 * hidden,
        num_attention_heads=attention_heads,
    )  # fmt: skip


@pytest.mark.parametrize("size", ["14m", "70m", "410m", "1.4b", "6.9b"])
def test_parameters_are_those_of_the_architecture(size):
    with torch.device("meta"):
        base = GPTNeoXForCausalLM(config(size))
        heads = DynamoForCausalLM(DynamoConfig.from_base(config(size), num_token_heads=3)).token_heads
    assert sizes.pythia_shape(size).parameters == base.num_parameters()
    layers, hidden, _, _ = sizes.PYTHIA[size]
    caches = 2 * 2048 * 2 * hidden * 2 * layers
    weights = 2 * base.num_parameters() + sum(each.numel() for each in heads.parameters())
    needed = sizes.pair_bytes(size, torch.bfloat16)
    assert needed - sizes.RESERVE - caches - 2 * weights == 2 * 2048 * 2 * hidden * 2


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="copies in 16 bits need it"
)
def test_copies_estimated_for_a_pythia_are_those_of_its_float16_checkpoint():
    models = [GPTNeoXForCausalLM(config("14m"))]
    models.append(DynamoForCausalLM.from_base(models[0], num_token_heads=3))
    with torch.no_grad():
        for weight in (weight for model in models for weight in model.parameters()):
            weight.copy_(weight.half())
    pair = [sizes.pair_bytes("14m", torch.float32, packed=packed) for packed in (True, False)]
    assert pair[0] - pair[1] == sum(sum(each.values()) for each in copies_of(*models))


def test_fewer_bits_and_fewer_copies_need_less():
    needed = [
        sizes.pair_bytes("410m", torch.float32, packed=True),
        sizes.pair_bytes("410m", torch.float32),
        sizes.pair_bytes("410m", torch.float32, "8bit"),
        sizes.pair_bytes("410m", torch.float32, "4bit"),
        sizes.pair_bytes("410m", torch.bfloat16, "4bit"),
    ]
    assert needed[0] >= needed[1] and all(a > b for a, b in pairwise(needed[1:]))


def test_a_picker_shows_every_size_and_why_some_do_not_fit():
    rows = loading.model_sizes(torch.float32, memory=16 * 10**9)
    assert [row.name for row in rows][:3] == [f"EleutherAI/pythia-{s}" for s in ("14m", "31m", "70m")]
    assert [row.name.split("-")[-1] for row in rows if row.fits][-1] == "1.4b"
    assert all((row.reason == "") == row.fits for row in rows)
    assert rows[-1].reason.startswith("needs about ") and rows[-1].reason.endswith("16.0 GB are free")
    assert all(row.fits for row in loading.model_sizes(torch.float32, memory=None))


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="size: "):
        sizes.pythia_shape("3b")


@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_bytes_of_a_folder_are_those_of_the_loaded_model(tmp_path, tokenizer, quantize):
    save_model(tiny_dynamo(), tokenizer, tmp_path / "model")
    model, _, _ = loading.load_model(str(tmp_path / "model"), device="cpu", quantize=quantize)
    foretold = sizes.stored_bytes([tmp_path / "model"], torch.float32, quantize)
    assert foretold == pytest.approx(loading.memory_of(model), rel=0.05)


def test_masks_in_the_suites_own_files_are_not_counted(tmp_path, tokenizer):
    save_model(tiny_base(), tokenizer, tmp_path)
    before = sizes.stored_bytes([tmp_path], torch.float32, None)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        weights[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 640, 640, dtype=torch.bool)
        weights[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        weights[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert sizes.stored_bytes([tmp_path], torch.float32, None) == before
    assert loading.load_model(str(tmp_path), device="cpu")[0].num_parameters() == tiny_base().num_parameters()


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, tokenizer, monkeypatch):
    save_model(tiny_base(), tokenizer, tmp_path / "base")
    save_model(tiny_dynamo(), tokenizer, tmp_path / "dynamo")
    monkeypatch.setattr("dynamo.loading.pairs.available_memory", lambda _: 1000)
    monkeypatch.setattr("dynamo.loading.pairs.load_dynamo", None)
    with pytest.raises(
        ValueError, match=r"needs 0.0 GB for its weights as float32, .*8bit or 4bit, spread it .*, or choose"
    ):
        loading.load(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=r"weights in 4bit, and 0.0 GB are free on cpu; choose a smaller"):
        loading.load(str(tmp_path), device="cpu", quantize="4bit")


def test_running_out_of_memory_is_a_sentence_with_a_remedy(tmp_path, tokenizer, monkeypatch):
    save_model(tiny_dynamo(), tokenizer, tmp_path / "model")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..")

    monkeypatch.setattr("dynamo.loading.pairs.load_dynamo", full)
    with pytest.raises(ValueError, match=r"the memory of cpu does not hold .* as float32; load it in 8bit"):
        loading.load(str(tmp_path / "model"), device="cpu")


def system(root, available_kb, limit="", current="", stat=""):
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kb} kB\n")
    for name, text in (("memory.max", limit), ("memory.current", current), ("memory.stat", stat)):
        if text:
            (group / name).write_text(text)
    return root


def test_what_a_gpus_allocator_keeps_of_earlier_models_is_free(monkeypatch):
    reported = {"mem_get_info": (1000, 9999), "memory_reserved": 700, "memory_allocated": 400}
    for name, value in reported.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert sizes.available_memory(torch.device("cuda")) == 1000 + 700 - 400
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = devices.free_memory()
    assert free[0] == free[1] == 1170 and set(free) <= {0, 1, "cpu"}


def test_memory_is_the_systems_or_what_is_left_of_the_containers(tmp_path):
    assert sizes.available_memory(CPU, system(tmp_path / "bare", 1000)) == 1024_000
    assert sizes.available_memory(CPU, system(tmp_path / "open", 1000, "max\n", "5\n")) == 1024_000
    stat = "anon 7\ninactive_file 300\nactive_file 50\n"
    boxed = system(tmp_path / "boxed", 1000, "2000\n", "900\n", stat)
    assert sizes.available_memory(CPU, boxed) == 2000 - 900 + 350
    assert sizes.available_memory(CPU, tmp_path / "nowhere") is None
