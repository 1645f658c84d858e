"""Token heads alone: what comes back, on which base, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import tiny_base, tiny_config
from processes import printed
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from dynamo import DynamoForCausalLM
from dynamo.model import heads_file

IDS = torch.arange(2, 22).reshape(2, 10)


def llama(seed: int, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    fields = {"num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 3, **changes}
    return LlamaForCausalLM(
        LlamaConfig(**{**tiny_config().to_dict(), "model_type": "llama", **fields})
    ).eval()


BASES = {"untied NeoX": tiny_base, "tied Llama": llama}
SHAPES = {
    "plain": {},
    "correlator": {"correlator_rank": 4},
    "own output": {"own_output_embedding": True, "own_final_norm": True, "head_layers": 0},
    "last, Markov": {
        "head_source": "last",
        "num_token_heads": 4,
        "correlator_rank": 4,
        "correlator_kind": "markov",
    },
}


@torch.no_grad()
def trained(model: DynamoForCausalLM) -> DynamoForCausalLM:
    """Heads as training might leave them, the correlators' zeros included."""
    for weight in model.token_heads.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.fixture
def base_folder(tmp_path):
    tiny_base(1).half().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def heads_folder(tmp_path, base_folder):
    trained(DynamoForCausalLM.from_base(str(base_folder))).save_heads(tmp_path / "heads")
    return tmp_path / "heads"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_come_back_bit_for_bit_in_16_bits(tmp_path, base, shape):
    BASES[base](1).half().save_pretrained(tmp_path / "base")
    model = trained(DynamoForCausalLM.from_base(str(tmp_path / "base"), **SHAPES[shape])).eval()
    model.token_heads.half().float()
    model.save_heads(tmp_path / "heads")
    again = DynamoForCausalLM.from_heads(tmp_path / "heads")
    for name in ("num_token_heads", "head_layers", "head_source", "correlator_kind", "base_model"):
        assert getattr(again.config, name) == getattr(model.config, name)
    assert not again.config.heads_only and again.config.text_config is again.backbone.config
    with torch.no_grad():
        assert torch.equal(again(IDS).head_logits, model(IDS).head_logits)
    half = dict(DynamoForCausalLM.from_heads(tmp_path / "heads", dtype=torch.float16).named_parameters())
    assert half.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert torch.equal(half[name].float(), weight), name


def test_a_loaded_base_becomes_the_backbone(heads_folder, base_folder, caplog):
    base = GPTNeoXForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model = DynamoForCausalLM.from_heads(heads_folder, base=base)
    assert not caplog.records  # float32 of 16-bit files is the same base
    assert model.backbone is base and {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_model_from_heads_trains_and_is_saved_whole(heads_folder, tmp_path):
    model = DynamoForCausalLM.from_heads(heads_folder)
    model(IDS, labels=IDS).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.save_pretrained(tmp_path / "whole")
    again = DynamoForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(IDS).head_logits, model.eval()(IDS).head_logits)
    again.save_heads(tmp_path / "again")  # the base is still known
    DynamoForCausalLM.from_heads(tmp_path / "again")


def test_the_list_of_frequent_tokens_is_kept(heads_folder, base_folder, tmp_path):
    model = DynamoForCausalLM.from_base(str(base_folder))
    assert model.tokens_by_frequency is None
    model.count_tokens(torch.tensor([[9, 4, 4], [7, 9, 4]]))
    assert model.tokens_by_frequency[:5].tolist() == [4, 9, 7, 0, 1]  # ties in the order of ids
    model.save_heads(tmp_path / "listed")
    model.save_pretrained(tmp_path / "whole")
    alone = DynamoForCausalLM.from_heads(tmp_path / "listed", dtype=torch.float16)
    for again in (alone, DynamoForCausalLM.from_pretrained(tmp_path / "whole")):
        assert torch.equal(again.tokens_by_frequency, model.tokens_by_frequency)
    assert DynamoForCausalLM.from_heads(heads_folder).tokens_by_frequency is None


def test_weights_beyond_float16_are_kept_as_bfloat16(tmp_path, base_folder):
    model = DynamoForCausalLM.from_base(str(base_folder))
    with torch.no_grad():
        next(model.token_heads.parameters()).fill_(1e6)
    model.save_heads(tmp_path / "heads")
    kept = next(DynamoForCausalLM.from_heads(tmp_path / "heads").token_heads.parameters())
    assert torch.equal(kept, torch.full_like(kept, 1e6).bfloat16().float())


def test_the_hash_is_that_of_the_values():
    stock = tiny_base(1).half()
    same = heads_file.weights_hash(stock)
    assert heads_file.weights_hash(stock.float()) == same
    with torch.no_grad():
        stock.get_output_embeddings().weight.mul_(1.001)
    assert heads_file.weights_hash(stock) != same


def test_another_precision_of_the_base_is_taken_and_said(heads_folder, base_folder, caplog):
    for bits in (16, 8, 4):
        base = GPTNeoXForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        if bits == 16:
            base.bfloat16()
        else:
            round_layers(base, bits)
        caplog.clear()
        assert DynamoForCausalLM.from_heads(heads_folder, base=base).backbone is base
        (said,) = caplog.messages
        assert f"{base_folder} is not exactly {base_folder}" in said


@torch.no_grad()
def round_layers(model: nn.Module, bits: int) -> None:
    """Linear layers' weights, to 2 ** bits steps between the least and the largest of 32 in a row."""
    for layer in (each for each in model.base_model.modules() if isinstance(each, nn.Linear)):
        groups = layer.weight.reshape(-1, 32)
        low, high = groups.aminmax(dim=-1, keepdim=True)
        step = (high - low) / (2**bits - 1)
        layer.weight.copy_((((groups - low) / step).round() * step + low).reshape(layer.weight.shape))


def test_the_weights_are_as_they_were_after_saving(base_folder, tmp_path):
    model = DynamoForCausalLM.from_base(str(base_folder)).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model.save_heads(tmp_path / "heads")
    assert model.training and model.backbone.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_another_model_is_refused_by_both_names(heads_folder, base_folder, tmp_path):
    tiny_base(2).save_pretrained(tmp_path / "other")
    for base in (str(tmp_path / "other"), GPTNeoXForCausalLM.from_pretrained(tmp_path / "other")):
        with pytest.raises(ValueError, match=r"^base: ") as refused:
            DynamoForCausalLM.from_heads(heads_folder, base=base)
        assert str(tmp_path / "other") in str(refused.value) and str(base_folder) in str(refused.value)


@pytest.mark.parametrize(
    "other",
    [tiny_base(1, vocab_size=310), tiny_base(1, num_hidden_layers=4), llama(1)],
    ids=["vocabulary", "layers", "family"],
)
def test_a_base_of_another_shape_is_refused(heads_folder, base_folder, other):
    with pytest.raises(ValueError, match=f"^base: .*{base_folder}"):
        DynamoForCausalLM.from_heads(heads_folder, base=other)


def test_a_base_that_was_trained_along_is_another_model(heads_folder, base_folder):
    base = GPTNeoXForCausalLM.from_pretrained(base_folder, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(base.parameters(), lr=1e-2)
    for _ in range(20):
        base(IDS, labels=IDS).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with pytest.raises(ValueError, match=r"^base: "):
        DynamoForCausalLM.from_heads(heads_folder, base=base)


def test_a_base_that_cannot_be_had_is_named(heads_folder, tmp_path):
    model = DynamoForCausalLM.from_heads(heads_folder)
    model.save_heads(tmp_path / "far", base_name="someone/base")
    with pytest.raises(OSError, match=r"^base: someone/base.*base="):
        DynamoForCausalLM.from_heads(tmp_path / "far")
    DynamoForCausalLM.from_base(tiny_base()).save_heads(tmp_path / "nameless")
    with pytest.raises(ValueError, match=r"^base: .*base="):
        DynamoForCausalLM.from_heads(tmp_path / "nameless")


def test_an_id_of_the_hubs_cache_is_recorded_with_its_revision(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--base" / "snapshots" / ("0123456789" * 4)
    tiny_base().save_pretrained(snapshot)
    (tmp_path / "hub" / "models--someone--base" / "refs").mkdir()
    (tmp_path / "hub" / "models--someone--base" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    known = {"name": "someone/base", "revision": snapshot.name}
    assert heads_file.origin(str(snapshot)) == known
    monkeypatch.setattr(heads_file, "try_to_load_from_cache", lambda *_, **__: str(snapshot / "config.json"))
    assert heads_file.origin("someone/base") == known


def test_what_is_no_heads_folder_is_refused(heads_folder, base_folder, tmp_path):
    whole = DynamoForCausalLM.from_heads(heads_folder)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole model"):
        DynamoForCausalLM.from_heads(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"^folder: "):
        whole.save_heads(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"^num_token_heads: "):
        DynamoForCausalLM.from_base(tiny_base(), num_token_heads=1).save_heads(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["cut", "a head missing", "another shape"])
def test_a_damaged_folder_is_refused(heads_folder, damage):
    file, config = heads_folder / "heads.safetensors", heads_folder / "config.json"
    fields = json.loads(config.read_text())
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "a head missing":
        config.write_text(json.dumps(fields | {"num_token_heads": 4}))
    else:
        config.write_text(json.dumps(fields | {"own_output_embedding": True}))
    with pytest.raises(ValueError, match=r"heads\.safetensors"):
        DynamoForCausalLM.from_heads(heads_folder)


def test_a_write_that_fails_leaves_the_folder_as_it_was(heads_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in heads_folder.iterdir()}
    model = trained(DynamoForCausalLM.from_heads(heads_folder))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(model.generation_config), "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            model.save_heads(heads_folder)
    assert {path.name: path.read_bytes() for path in heads_folder.iterdir()} == before
    (heads_folder / "cooccurrence.safetensors").write_bytes(b"a table")
    model.save_heads(heads_folder)
    assert (heads_folder / "cooccurrence.safetensors").read_bytes() == b"a table"
    assert (heads_folder / "heads.safetensors").read_bytes() != before["heads.safetensors"]


def test_heads_alone_say_what_they_are(heads_folder):
    assert AutoConfig.from_pretrained(heads_folder).heads_only
    for reader in (AutoModelForCausalLM, DynamoForCausalLM):
        with pytest.raises(ValueError, match="token heads alone"):
            reader.from_pretrained(heads_folder)
    with pytest.raises(OSError):
        DynamoForCausalLM.from_pretrained(heads_folder.parent / "nowhere")


def test_heads_are_all_that_is_saved(heads_folder):
    with safe_open(heads_folder / "heads.safetensors", "pt") as file:
        kinds = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118 - not a dict
    assert kinds == {"token_heads", "probes"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["import dynamo; ", ""])
def test_auto_classes_load_a_saved_model_in_a_fresh_process(tmp_path, how):
    """Without the import they need `trust_remote_code`, and find the installed package all the same."""
    model = DynamoForCausalLM.from_base(tiny_base(1))
    model.save_pretrained(tmp_path / "model")
    trusted = "" if how else ", trust_remote_code=True"
    code = (
        f"{how}import torch; from transformers import AutoConfig, AutoModelForCausalLM\n"
        f"folder = {str(tmp_path / 'model')!r}\n"
        f"assert AutoConfig.from_pretrained(folder{trusted}).num_token_heads == 3\n"
        f"model = AutoModelForCausalLM.from_pretrained(folder{trusted})\n"
        "print(type(model).__module__, float(model.float()(torch.arange(8)[None]).head_logits.sum()))\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    if how:
        output = printed(code)
    else:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    module, total = output.split()[-2:]
    with torch.no_grad():
        expected = model(torch.arange(8)[None]).head_logits.sum()
    assert module == "dynamo.model.causal_lm" and float(total) == pytest.approx(expected.item(), rel=1e-4)
    names = [sorted(path.name for path in (tmp_path / each).iterdir()) for each in ("model", "again")]
    assert names[0] == names[1]


def test_the_file_for_auto_classes_says_what_to_install(tmp_path):
    DynamoForCausalLM.from_base(tiny_base(1)).save_pretrained(tmp_path)
    code = (tmp_path / "modeling_dynamo.py").read_text(encoding="utf-8")
    run = f"import sys; sys.modules['dynamo'] = None\nexec({code!r})"
    done = subprocess.run([sys.executable, "-S", "-c", run], capture_output=True, text=True, timeout=60)
    assert "ImportError" in done.stderr and "dynamo-multi-token" in done.stderr.splitlines()[-1]
