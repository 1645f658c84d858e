"""Checkpoints to the hub and back: one commit, a card from what is known, the table beside the weights."""

import functools
import json

import pytest
import torch
import yaml
from conftest import DIALOGUES
from hub import Repo
from huggingface_hub import HfApi
from tables import save_pair

from dynamo import CooccurrenceTable, loading
from dynamo.__main__ import main
from dynamo.data import text
from dynamo.hub import cards
from dynamo.hub.push import explained
from dynamo.loading import downloads
from dynamo.training.trainer import save_model

REPORT = {
    "perplexity": {"mean_nats": [1.5, 2.5, 3.5], "ppl": [4.48, 12.18, 33.12], "bits_per_byte": 0.9,
                   "documents": 1234, "cut": 512},
    "sweep": {
        "prompts": 40, "seeds": 3,
        "machine": {"device": "a CPU", "threads": 2, "dtype": "float32", "torch": "2.13.0",
                    "date": "2026-11-21"},
        "points": [
            {"threshold": 0.5, "tokens_per_forward": {"value": 2.1, "low": 2.0, "high": 2.2},
             "speed_up": {"value": 1.6, "low": 1.5, "high": 1.75}, "share_by_order": {"1": 0.4, "3": 0.6}},
        ],
    },
    "commands": ["python -m dynamo train ..", "python -m dynamo count .."],
}  # fmt: skip


@pytest.fixture
def pair_folder(tmp_path, tokenizer):
    blocks = [text.encode_turns(tokenizer, turns).ids for turns in DIALOGUES]
    table = CooccurrenceTable.count(
        blocks, vocab_size=300, tokenizer=text.fingerprint(tokenizer), source="talk"
    )
    folder = save_pair(tmp_path / "pair", tokenizer, table)
    (folder / "dynamo" / "optimizer.bin").write_bytes(b"no part of a model")
    return folder


@pytest.fixture
def at_hub(hub, monkeypatch):
    at = functools.partial(HfApi, endpoint=hub.url)
    monkeypatch.setattr(downloads, "HfApi", at)
    monkeypatch.setattr("huggingface_hub.HfApi", at)
    return hub


def pushed(capsys, *arguments) -> dict:
    assert main(["push", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pair_comes_back_from_the_hub_as_it_went(at_hub, pair_folder, capsys):
    result = pushed(capsys, pair_folder, "someone/talker", "--licence", "apache-2.0")
    repo = at_hub.model("someone/talker")
    assert len(repo.commits) == 1 and set(result["files"]) | {".gitattributes"} == set(repo.files)
    assert "dynamo/cooccurrence.safetensors" in repo.files and "dynamo/optimizer.bin" not in repo.files
    assert any("/lfs/objects/batch" in request for request in at_hub.requests)
    here, there = loading.load(str(pair_folder), device="cpu"), loading.load("someone/talker", device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(here.dynamo(ids).head_logits, there.dynamo(ids).head_logits)
        assert torch.equal(here.base(ids).logits, there.base(ids).logits)
    assert there.table.sizes == here.table.sizes and there.table.source == "talk"


def test_a_second_push_leaves_what_it_does_not_know(at_hub, pair_folder, capsys):
    pushed(capsys, pair_folder / "dynamo", "someone/talker", "--licence", "mit")
    at_hub.model("someone/talker").files["notes.md"] = b"of their own"
    pushed(capsys, pair_folder / "dynamo", "someone/talker", "--licence", "mit")
    assert at_hub.model("someone/talker").files["notes.md"] == b"of their own"


def test_heads_go_alone_and_come_back_on_their_base(at_hub, pair_folder, capsys, tmp_path, tokenizer):
    here = loading.load(str(pair_folder / "dynamo"), device="cpu")
    save_model(here.dynamo.to_base(), tokenizer, tmp_path / "base")
    base = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    at_hub.repos[("model", "someone/base")] = Repo(base)
    arguments = ("someone/heads", "--heads-only", "--licence", "mit", "--base", "someone/base")
    result = pushed(capsys, pair_folder, *arguments)
    files = at_hub.model("someone/heads").files
    assert set(result["files"]) | {".gitattributes"} == set(files)
    assert {"heads.safetensors", "cooccurrence.safetensors", "modeling_dynamo.py"} < set(files)
    assert "model.safetensors" not in files and str(tmp_path) not in files["config.json"].decode()
    card = files["README.md"].decode()
    assert "base_model: someone/base" in card and 'from_heads("someone/heads")' in card
    there = loading.load("someone/heads", device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(here.base(ids).logits, there.base(ids).logits)
        torch.testing.assert_close(
            here.dynamo(ids).head_logits, there.dynamo(ids).head_logits, atol=2e-2, rtol=0
        )
    assert there.table.sizes == here.table.sizes
    at_hub.requests.clear()
    loading.load("someone/heads", device="cpu")  # a repository of heads is complete in the cache
    assert at_hub.requests == []


def test_heads_that_do_not_fit_the_named_base_are_not_pushed(at_hub, pair_folder, capsys):
    base = {file.name: file.read_bytes() for file in (pair_folder / "base").iterdir()}
    at_hub.repos[("model", "someone/base")] = Repo(base)
    loading.resolve("someone/base")
    arguments = (pair_folder, "someone/heads", "--heads-only", "--licence", "mit")
    assert "another model than someone/base" in refused(capsys, *arguments, "--base", "someone/base")
    assert "error: base: " in refused(capsys, *arguments)
    assert ("model", "someone/heads") not in at_hub.repos


def test_the_card_says_what_is_known_and_nothing_else(pair_folder):
    (pair_folder / cards.REPORT_FILE).write_text(json.dumps(REPORT))
    origin = cards.Origin("apache-2.0", "EleutherAI/pythia-70m", "Dialogues of our own.")
    card = cards.card(pair_folder, "someone/talker", origin)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0", "library_name": "transformers", "language": "en",
        "base_model": "EleutherAI/pythia-70m", "pipeline_tag": "text-generation",
        "tags": ["dynamo", "multi-token-prediction", "gpt_neox"],
    }  # fmt: skip
    for said in (
        "# talker\n", "made from EleutherAI/pythia-70m", "3 layers of 32) with 3 token heads",
        'load("someone/talker")', "up to 3 tokens of talk", "**Data.** Dialogues of our own.",
        "1,234 held-out documents", "| 3 | 3.500 | 33.12 |",
        "| 0.5 | 2.10 (2.00 to 2.20) | 40 / 60 | 1.60 (1.50",
        "python -m dynamo count ..",
    ):  # fmt: skip
        assert said in body
    (pair_folder / cards.REPORT_FILE).unlink()
    (pair_folder / "dynamo" / loading.TABLE_FILE).unlink()
    bare = cards.card(pair_folder, "someone/talker", cards.Origin("mit"))
    assert "joint is not masked" in bare
    assert not any(word in bare for word in ("Data", "Losses", "Speed", "Recipe", "base_model", "made from"))


def test_a_folders_own_readme_is_its_card(at_hub, pair_folder, capsys):
    (pair_folder / "dynamo" / "README.md").write_text("mine")
    pushed(capsys, pair_folder / "dynamo", "someone/talker")
    assert at_hub.model("someone/talker").files["README.md"] == b"mine"


def test_a_dry_run_asks_nobody(at_hub, pair_folder, capsys):
    assert main(["push", str(pair_folder), "someone/talker", "--licence", "mit", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["uploaded"] is False and "license: mit" in shown.err
    assert at_hub.requests == []


def refused(capsys, *arguments) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_is_no_finished_dynamo_model_is_refused(at_hub, pair_folder, capsys, tmp_path):
    assert "holds no DynaMo model" in refused(capsys, pair_folder / "base", "a/b", "--licence", "mit")
    assert "needs --licence" in refused(capsys, pair_folder, "a/b")
    assert "expected OWNER/NAME, got 'talker'" in refused(capsys, pair_folder, "talker", "--licence", "mit")
    assert "holds no config.json" in refused(capsys, tmp_path, "a/b", "--licence", "mit")
    assert "there is no folder" in refused(capsys, tmp_path / "nowhere", "a/b", "--licence", "mit")
    assert at_hub.requests == []


def test_what_the_hub_refuses_is_a_sentence_without_the_token(at_hub, pair_folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_someone")
    message = refused(capsys, pair_folder, "someone/talker", "--licence", "mit")
    assert "the hub answered 401" in message and "hf auth login" in message and "secret" not in message
    monkeypatch.setenv("HF_TOKEN", "token")
    at_hub.failing["/api/models/someone/talker/preupload"] = 403
    assert "the token may not write there" in refused(
        capsys, pair_folder, "someone/talker", "--licence", "mit"
    )


def test_a_transfer_by_xet_that_fails_is_a_sentence():
    sentence = r"uploading to a/b: the transfer failed \(no route\); try again$"
    with pytest.raises(OSError, match=sentence), explained("uploading to a/b"):
        raise RuntimeError("no route\nand more")
