"""Token heads without their base, by name: which base they are set on, and what lies beside them."""

import json
import shutil

import pytest
import torch
from command_line import run
from conftest import tiny_base
from tables import table_for

from dynamo import DynamoForCausalLM, loading
from dynamo.loading import names
from dynamo.model.heads_file import read_heads
from dynamo.sampling.options import SamplingOptions
from dynamo.training.trainer import save_model

IDS = torch.arange(2, 10)[None]


@pytest.fixture
def folders(tmp_path, tokenizer):
    """A pair folder whose `dynamo` holds heads alone, and the whole model."""
    save_model(tiny_base(seed=1).half(), tokenizer, tmp_path / "base")
    model = DynamoForCausalLM.from_base(str(tmp_path / "base"), correlator_rank=4).eval()
    model.token_heads.half().float()
    model.save_heads(tmp_path / "dynamo")
    return tmp_path, model


def rename_base(folder, name):
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"base_model": fields["base_model"] | {"name": name}}))


@pytest.mark.parametrize("where", ["by its name", "beside them"])
def test_heads_are_set_on_their_base_and_share_its_weights(folders, tokenizer, where):
    folder, model = folders
    table_for(tokenizer).save(folder / "dynamo" / loading.TABLE_FILE)
    if where == "beside them":
        rename_base(folder / "dynamo", "someone/else")
    pair = loading.load(str(folder if where == "beside them" else folder / "dynamo"), device="cpu")
    with torch.no_grad():
        assert torch.equal(pair.dynamo(IDS).head_logits, model(IDS).head_logits)
        assert torch.equal(pair.base(IDS).logits, model(IDS).logits)
    assert pair.base.get_output_embeddings().weight is pair.dynamo.get_output_embeddings().weight
    assert pair.table.order == 3 and len(pair.tokenizer) == len(tokenizer)
    assert pair.dynamo.generation_config.eos_token_id == tokenizer.eos_token_id
    lone, _, table = loading.load_model(str(folder / "dynamo" if where != "beside them" else folder), "cpu")
    assert lone.config.num_token_heads == 3 and table is not None


def test_a_tokenizer_beside_heads_is_theirs(folders):
    folder, _ = folders
    for file in (folder / "base").glob("tokenizer*"):
        shutil.move(file, folder / "dynamo")
    assert loading.load(str(folder / "dynamo"), device="cpu").tokenizer is not None


@pytest.mark.parametrize("how", [{"device_map": "auto"}, {"quantize": "8bit"}], ids=str)
def test_heads_and_base_are_spread_and_quantised_as_one(folders, how, caplog):
    folder, model = folders
    pair = loading.load(str(folder / "dynamo"), **how)
    assert not [said for said in caplog.messages if said.startswith("base: ")]  # recognised by its files
    layer = pair.dynamo.token_heads[0].layers[0].mlp.dense_h_to_4h
    assert type(layer).__name__ == ("Linear8bitLt" if "quantize" in how else "Linear")
    with torch.no_grad():
        torch.testing.assert_close(
            pair.dynamo(IDS).head_logits.float().cpu(), model(IDS).head_logits, atol=0.3, rtol=0.05
        )


def test_a_base_that_is_nowhere_is_named_with_a_remedy(folders):
    folder, _ = folders
    rename_base(folder / "dynamo", "someone/base")
    shutil.move(folder / "dynamo", folder / "heads")
    with pytest.raises(OSError, match=r"someone/base.*base/"):
        loading.load(str(folder / "heads"))
    rename_base(folder / "heads", "")
    with pytest.raises(ValueError, match=r"^base: "):
        loading.load(str(folder / "heads"))
    rename_base(folder / "heads", 7)
    with pytest.raises(ValueError, match=r"^base: "):
        loading.load(str(folder / "heads"))


def test_a_pair_keeps_the_options_that_were_chosen_for_it(folders):
    folder, _ = folders
    config = folder / "dynamo" / "config.json"
    fields = json.loads(config.read_text())
    assert loading.load(str(folder / "dynamo"), device="cpu").options == SamplingOptions()
    config.write_text(json.dumps(fields | {"sampling": {"correction": "correlator", "exact": True}}))
    pair = loading.load(str(folder / "dynamo"), device="cpu")
    assert pair.options == SamplingOptions(correction="correlator", exact=True)
    pair.dynamo.save_heads(folder / "again", str(folder / "base"))
    assert loading.load(str(folder / "again"), device="cpu").options == pair.options


def test_commands_take_the_chosen_options_where_no_flag_says_otherwise(folders, capsys):
    config = folders[0] / "dynamo" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sampling": {"temperature": 0}}))

    def texts(*flags):
        common = ("generate", "Hello", "--model", folders[0] / "dynamo", "--max-new-tokens", 12, *flags)
        return {run(capsys, *common, "--seed", seed)[1]["text"] for seed in range(3)}

    assert len(texts()) == 1 and len(texts("--temperature", 2)) > 1


@pytest.mark.parametrize("wrong", [{"treshold": 0.5}, {"threshold": 2}, {"exact": "yes"}], ids=str)
def test_options_that_are_none_are_named(folders, wrong):
    config = folders[0] / "dynamo" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sampling": wrong}))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        loading.load(str(folders[0] / "dynamo"), device="cpu")


def test_the_smollm2_heads_are_whole_and_name_their_base_and_options():
    saved = read_heads(names.SMOLLM2_FOLDER)
    assert saved.config.base_model["name"] == names.SMOLLM2_HUB and saved.config.num_token_heads == 3
    options = SamplingOptions.chosen(saved.config.sampling)
    assert options.exact and options.correction == "correlator"
    assert all(tensor.isfinite().all() for tensor in saved.heads.values())


def test_a_copy_without_the_smollm2_heads_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "SMOLLM2_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"smollm2.*not there"):
        loading.load("smollm2")
