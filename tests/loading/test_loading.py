import json
import shutil

import pytest
import torch
from conftest import DIALOGUES, tiny_dynamo
from tables import save_pair

from dynamo import CooccurrenceTable, loading
from dynamo.training.trainer import save_model


@pytest.fixture
def pair_folder(tmp_path, tokenizer):
    return save_pair(tmp_path / "pair", tokenizer)


def test_pair_folder_gives_every_part(pair_folder, tokenizer):
    pair = loading.load(str(pair_folder), device="cpu")
    assert type(pair.base).__name__ == "GPTNeoXForCausalLM" and pair.dynamo.config.num_token_heads == 3
    assert pair.base.dtype == pair.dynamo.dtype == torch.float32
    assert not pair.base.training and not pair.dynamo.training
    assert pair.table.order == 3
    assert pair.tokenizer.apply_chat_template(DIALOGUES[0]) == tokenizer.apply_chat_template(DIALOGUES[0])
    for model in (pair.base, pair.dynamo):
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_lone_checkpoint_races_against_its_own_first_head(pair_folder):
    pair = loading.load(str(pair_folder / "dynamo"), device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(pair.base(ids).logits, pair.dynamo(ids).logits)


def test_half_precision_files_are_read_in_float32(tmp_path, tokenizer):
    save_model(tiny_dynamo().half(), tokenizer, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    model, _, table = loading.load_model(str(tmp_path / "half"), device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and table is None


def test_hub_id_is_served_from_a_filled_cache(pair_folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    repo = cache / "models--someone--tiny-dynamo"
    shutil.copytree(pair_folder / "dynamo", repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    pair = loading.load("someone/tiny-dynamo", device="cpu")
    assert pair.table is not None and pair.dynamo.config.num_token_heads == 3


def test_part_of_a_model_in_the_cache_is_not_taken_for_the_model(pair_folder, tmp_path, monkeypatch):
    """Another program fetched only the tokenizer; the hub, asked for the rest, is away."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--partly" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(pair_folder / "dynamo" / "tokenizer.json", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(OSError, match="cannot be fetched from the hub"):
        loading.load("someone/partly")


def test_table_of_another_tokenizer_of_the_same_size_is_refused(pair_folder):
    blocks = [[1, 2, 3, 4]]
    other = CooccurrenceTable.count(blocks, vocab_size=300, tokenizer="0123456789abcdef")
    other.save(pair_folder / "dynamo" / loading.TABLE_FILE)
    with pytest.raises(ValueError, match="counts tokens of 0123456789abcdef"):
        loading.load(str(pair_folder))


@pytest.mark.parametrize("device, message", [("quantum", "expected cpu or cuda"), ("cuda", "has no CUDA")])
def test_device_that_is_not_there_is_refused(pair_folder, device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=f"device: .*{message}"):
        loading.load(str(pair_folder), device=device)


def test_weights_of_another_shape_are_refused(pair_folder):
    config = pair_folder / "base" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "intermediate_size": 128}))
    with pytest.raises(ValueError, match=r"do not fill a GPT-NeoX model.*mismatched_keys"):
        loading.load(str(pair_folder))


def test_impossible_shape_in_a_config_is_refused(pair_folder):
    config = pair_folder / "dynamo" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_token_heads": 9}))
    with pytest.raises(
        ValueError, match=r"config.json is not valid: .*num_token_heads: expected 1 to 5, got 9"
    ):
        loading.load(str(pair_folder))


def test_id_that_is_not_cached_says_so_at_once_when_the_hub_is_away():
    with pytest.raises(OSError, match="nobody/nothing is not in the cache and cannot be fetched"):
        loading.load("nobody/nothing")


@pytest.mark.parametrize("name", ["no-such-folder", "./nowhere", "a/b/c", ""])
def test_name_that_is_nothing_is_refused(name):
    with pytest.raises(ValueError, match="model: "):
        loading.load(name)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no model folder: it holds no config.json"):
        loading.load(str(tmp_path))


def test_stock_model_has_no_heads_to_race(pair_folder):
    with pytest.raises(ValueError, match=r"has no token heads .*python -m dynamo train --model"):
        loading.load(str(pair_folder / "base"))


def test_truncated_weights_are_named(pair_folder):
    weights = pair_folder / "dynamo" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="its weight file is damaged"):
        loading.load(str(pair_folder))


def test_table_of_another_vocabulary_is_refused(pair_folder):
    CooccurrenceTable.count([[1, 2, 3, 4]], vocab_size=50).save(pair_folder / "dynamo" / loading.TABLE_FILE)
    with pytest.raises(ValueError, match="vocabulary of 50, the model has 300"):
        loading.load(str(pair_folder))


def test_broken_table_is_named(pair_folder):
    table = pair_folder / "dynamo" / loading.TABLE_FILE
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a usable co-occurrence table"):
        loading.load(str(pair_folder))
