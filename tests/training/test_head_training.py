"""Heads trained on a frozen base's stored states: the same losses as the whole model's, and no lost step."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DIALOGUES, tiny_base, tiny_dynamo
from processes import killed_itself
from trainings import same_weights
from transformers import LlamaConfig, LlamaForCausalLM

from dynamo.data import instructions
from dynamo.data.rows import Row
from dynamo.model import DynamoForCausalLM
from dynamo.training.head_losses import head_losses, measure_heads, overlap
from dynamo.training.head_trainer import HeadTrainer, StateRows
from dynamo.training.options import TrainingOptions, TrainingRun
from dynamo.training.stem_states import StemStates, run_base
from dynamo.training.train import train

OPTIONS = TrainingOptions(
    steps=8,
    batch_size=2,
    head_lr=1e-2,
    heads_only=True,
    weight_decay=0.1,
    checkpoint_every=3,
    evaluate_every=4,
)


@pytest.fixture(scope="module")
def conversations(tokenizer):
    rows = [Row(turns) for turns in (*DIALOGUES, DIALOGUES[0][:2])]
    return instructions.encode(rows, tokenizer, 512)


def small(seed=0, llama=False, **changes):
    changes = {"correlator_rank": 8, "head_init": "copy", **changes}
    if not llama:
        return tiny_dynamo(3, seed, **changes)
    fields = tiny_base().config.to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = LlamaConfig(
        **{name: fields[name] for name in names}, num_key_value_heads=2, tie_word_embeddings=True,
        initializer_range=0.2,
    )  # fmt: skip
    return DynamoForCausalLM.from_base(LlamaForCausalLM(config), num_token_heads=3, **changes).eval()


def kept(folder, model, conversations, seed=5):
    states = StemStates(folder, model)
    states.add(model, conversations)
    return StateRows(states, states.places(conversations), seed)


def batch_of(rows, count=3):
    return rows.batch(0, count, torch.device("cpu"))


VARIANTS = {
    "penultimate": {},
    "last": {"head_source": "last"},
    "two layers": {"head_layers": 2},
    "own norm and embedding": {"own_final_norm": True, "own_output_embedding": True},
    "markov": {"correlator_kind": "markov"},
    "grouped keys, tied": {"llama": True},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_losses_on_stored_states_are_those_of_the_whole_model(variant, conversations, tmp_path):
    """Hard labels at every position: the model's own forward pass on each conversation is the oracle."""
    model = small(**variant)
    for head in model.token_heads:
        torch.nn.init.normal_(head.correlator.to_hidden, std=0.3)
    losses = head_losses(model, batch_of(kept(tmp_path, model, conversations)), soft_share=0.0)
    sums, given, counts = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    with torch.no_grad():
        for ids, labels in conversations:
            ids, labels = (torch.from_numpy(each).long()[None] for each in (ids, labels))
            output = model(ids, labels=labels)
            count = torch.tensor([(labels[:, distance:] != -100).sum() for distance in (2, 3)])
            sums, counts = sums + output.head_losses[1:] * count, counts + count
            given += output.correlator_losses * count
    torch.testing.assert_close(losses.head_losses, sums / counts, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses.correlator_losses, given / counts, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses.loss, (sums + given).div(counts).sum(), rtol=1e-3, atol=1e-3)


def test_soft_labels_are_what_the_first_head_says_later(conversations, tmp_path):
    """A double loop: the base's distribution one (two) positions later is the teacher of head 2 (3)."""
    model = small()
    rows = kept(tmp_path, model, conversations)
    found = head_losses(model, batch_of(rows), soft_share=1.0).head_losses
    terms = [[], []]
    with torch.no_grad():
        for ids, labels in conversations:
            ids = torch.from_numpy(ids).long()
            logits = model(ids[None]).head_logits[:, 0].double().log_softmax(-1)
            for head in (1, 2):
                for target in range(head + 1, len(ids)):
                    if labels[target] == -100:
                        continue
                    teacher, student = logits[0, target - 1], logits[head, target - head - 1]
                    top = teacher.topk(64).indices
                    others = torch.ones(300, dtype=torch.bool)
                    others[top] = False
                    cross = (teacher[top].exp() * student[top]).sum()
                    cross += teacher[others].exp().sum() * student[others].logsumexp(0)
                    terms[head - 1].append(-cross.item())
    for head in range(2):
        expected = math.fsum(terms[head]) / len(terms[head])
        assert found[head].item() == pytest.approx(expected, rel=2e-3)


def test_the_first_heads_loss_is_the_bases(conversations, tmp_path):
    model = small()
    rows = kept(tmp_path, model, conversations)
    measured = measure_heads(model, rows.once(torch.device("cpu")))
    total, count = 0.0, 0
    for ids, labels in conversations:
        ids, labels = (torch.from_numpy(each).long()[None] for each in (ids, labels))
        valid = (labels[:, 1:] != -100).sum().item()
        total, count = total + tiny_base()(ids, labels=labels).loss.item() * valid, count + valid
    assert measured["first_nats"] == pytest.approx(total / count, rel=1e-4)
    assert measured["positions"][0] <= count


def test_only_a_share_of_the_positions_is_learned_from_and_every_step_another(conversations, tmp_path):
    model = small()
    batch = batch_of(kept(tmp_path, model, conversations))
    whole = head_losses(model, batch, 0.0).head_losses
    parts = [
        head_losses(model, batch, 0.0, 0.25, np.random.default_rng(seed)).head_losses for seed in range(60)
    ]
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=0.03, atol=0.03)


def test_conversations_that_are_there_are_not_run_again(conversations, tmp_path, monkeypatch):
    model = small()
    whole = batch_of(kept(tmp_path / "whole", model, conversations))
    kept(tmp_path / "parts", model, conversations[:1])
    runs = []
    monkeypatch.setattr(
        "dynamo.training.stem_states.run_base",
        lambda model, rows, top: runs.append(len(rows)) or run_base(model, rows, top),
    )
    rows = kept(tmp_path / "parts", model, [*conversations, *conversations])
    assert runs == [2] and len(rows) == 3
    assert rows.fingerprint() == kept(tmp_path / "parts", model, conversations).fingerprint()
    assert batch_of(rows).states.shape == whole.states.shape


def test_what_a_kill_left_behind_is_cut_off(conversations, tmp_path):
    model = small()
    expected = batch_of(kept(tmp_path / "whole", model, conversations))
    kept(tmp_path / "cut", model, conversations[:1])
    for name in ("states", "ids", "log_rest"):
        with (tmp_path / "cut" / f"{name}.bin").open("ab") as file:
            file.write(b"half a row")
    found = batch_of(kept(tmp_path / "cut", model, conversations))
    for name in ("states", "ids", "top_ids", "log_rest"):
        one, other = getattr(found, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_states_of_another_base_are_refused(conversations, tmp_path):
    kept(tmp_path, small(), conversations)
    with pytest.raises(ValueError, match="states"):
        StemStates(tmp_path, small(seed=1))
    with pytest.raises(ValueError, match="mixed_precision"):
        StemStates(tmp_path, small(), "bf16")


def test_states_that_the_disk_has_no_room_for_are_refused(conversations, tmp_path, monkeypatch):
    monkeypatch.setattr("dynamo.training.stem_states.SPARE_BYTES", 2**62)
    with pytest.raises(ValueError, match="states"):
        kept(tmp_path, small(), conversations)


def trainer(conversations, output, options=OPTIONS):
    model = small()
    rows = kept(output.parent / "states", model, conversations)
    return HeadTrainer(model, rows, options, output, 0.5, 0.5, rows)


def _train_until_killed(conversations, output):
    run = trainer(conversations, output)
    run.run(stop=lambda: run.step == 5 and os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(conversations, tmp_path):
    """kill -9 at step 5; the checkpoint is of step 3."""
    whole = trainer(conversations, tmp_path / "whole").run()
    assert killed_itself(_train_until_killed, conversations, tmp_path / "killed")
    resumed = trainer(conversations, tmp_path / "killed")
    assert resumed.step == 3
    assert same_weights(resumed.run(), whole)
    assert same_weights(whole.backbone, tiny_base()), "the base stays as it is"
    with pytest.raises(ValueError, match="head_lr"):
        trainer(conversations, tmp_path / "killed", replace(OPTIONS, head_lr=0.5))


def test_training_lowers_the_losses_and_logs_them(conversations, tmp_path):
    run = trainer(conversations, tmp_path / "run", replace(OPTIONS, steps=30, checkpoint_every=0))
    run.validate()
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, *_, last = (row["measured"] for row in rows if "validation" in row)
    for kind in ("heads", "correlator"):
        for before, after in zip(first[kind], last[kind], strict=True):
            assert after["nats"] < before["nats"] - 0.5


def test_the_overlaps_weight_counts_drafts_that_the_base_would_reject(conversations, tmp_path):
    """Only of what is drafted, given the tokens before, and as the held-out overlap counts it, but that
    drafts are not cut to their 50 likeliest tokens."""
    model = small()
    rows = kept(tmp_path, model, conversations)
    plain, weighted = (head_losses(model, batch_of(rows), 0.5, overlap_weight=each) for each in (0.0, 2.0))
    torch.testing.assert_close(weighted.head_losses, plain.head_losses)
    measured = measure_heads(model, rows.once(torch.device("cpu")))["correlator"]
    rejected = (weighted.correlator_losses - plain.correlator_losses) / 2
    for found, each in zip(rejected.tolist(), measured, strict=True):
        assert 1 - found == pytest.approx(each["overlap"], abs=0.05)


def test_overlap_of_a_distribution_with_itself_is_one():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2))
    log_q, ids = logits.log_softmax(-1).topk(64)
    assert overlap(logits, ids, log_q).tolist() == pytest.approx([1.0] * 4)
    assert overlap(-logits, ids, log_q).max() < 0.01


def test_train_makes_a_model_of_conversations(tokenizer, tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lines = [json.dumps({"messages": turns}) + "\n" for turns in DIALOGUES]
    (tmp_path / "talks.jsonl").write_text("".join(lines))
    run = TrainingRun(
        data=(str(tmp_path / "talks.jsonl"),),
        output=tmp_path / "run",
        model=str(tmp_path / "base"),
        validation=str(tmp_path / "talks.jsonl"),
        correlator_rank=8,
        distill=0.5,
        options=replace(OPTIONS, steps=2),
    )
    result = train(run)
    assert len(result.validation_nats) == 3 and not (tmp_path / "run/checkpoint.pt").exists()
    model = DynamoForCausalLM.from_pretrained(result.output)
    assert model.config.correlator_rank == 8 and same_weights(model.backbone, tiny_base())
    answers = [
        labels[labels >= 0] for _, labels in instructions.encode(list(map(Row, DIALOGUES)), tokenizer, 512)
    ]
    counts = np.bincount(np.concatenate(answers), minlength=model.config.vocab_size)
    assert counts[model.tokens_by_frequency].tolist() == sorted(counts.tolist(), reverse=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"distill": 1.5},
        {"position_share": 0.0},
        {"overlap_weight": -1.0},
        {"distill": None, "overlap_weight": 1.0},
        {"accumulation": 2},
        {"heads_only": False, "distill": 0.5},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_runs_that_make_no_sense_are_refused(changes, tmp_path):
    of_the_run = ("distill", "position_share", "overlap_weight")
    own = {"distill": 0.5} | {k: v for k, v in changes.items() if k in of_the_run}
    inner = {k: v for k, v in changes.items() if k not in own}
    with pytest.raises(ValueError, match=list(changes)[-1]):
        TrainingRun(data=("x",), output=tmp_path, options=replace(OPTIONS, **inner), **own)
