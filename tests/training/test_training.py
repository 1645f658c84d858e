import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from processes import killed_itself
from trainings import OPTIONS, same_weights, trainer

from dynamo.common.files import replace_folder
from dynamo.data.blocks import TokenBlocks
from dynamo.data.held_out import held_out_nats
from dynamo.training.options import TrainingOptions, learning_rate_scale
from dynamo.training.trainer import Trainer


def test_stopped_and_resumed_run_ends_with_the_same_weights(documents, tmp_path):
    whole = trainer(documents, tmp_path / "whole").run()
    steps = iter(range(100))
    first = trainer(documents, tmp_path / "parts")
    first.run(stop=lambda: next(steps) == 4)
    assert first.step == 5
    second = trainer(documents, tmp_path / "parts")
    assert second.step == 5
    assert same_weights(second.run(), whole)
    assert not same_weights(whole, tiny_dynamo(heads=3, head_init="copy"))


def _train_until_killed(documents, output):
    run = trainer(documents, output)
    run.run(stop=lambda: run.step == 8 and os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(documents, tmp_path):
    """kill -9 at step 8; the last checkpoint is of step 6."""
    assert killed_itself(_train_until_killed, documents, tmp_path / "killed")
    resumed = trainer(documents, tmp_path / "killed")
    assert resumed.step == 6
    assert same_weights(resumed.run(), trainer(documents, tmp_path / "whole").run())


def test_checkpoint_of_other_options_is_refused(documents, tmp_path):
    run = trainer(documents, tmp_path)
    run.save_checkpoint()
    with pytest.raises(ValueError, match=r"other options \(base_lr: 0.001 then, 0.5 now\)"):
        trainer(documents, tmp_path, replace(OPTIONS, base_lr=0.5))


def test_a_kill_while_a_checkpoint_is_replaced_leaves_a_whole_one(documents, tmp_path):
    run = trainer(documents, tmp_path)
    run.step = 4
    run.save_checkpoint()
    os.replace(tmp_path / "checkpoint", tmp_path / "checkpoint.old")  # the state between the two renames
    (tmp_path / "checkpoint.partial").mkdir()
    assert trainer(documents, tmp_path).step == 4


def test_replacing_a_folder_leaves_the_new_one_alone(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "new"


def test_learning_rates_follow_warm_up_and_cosine_and_keep_their_ratio(documents, tmp_path):
    run = trainer(documents, tmp_path)
    rates = []
    run.run(stop=lambda: rates.append([g["lr"] for g in run._optimizer.param_groups]) or False)
    expected = [learning_rate_scale(step, OPTIONS) for step in range(1, 13)]
    assert learning_rate_scale(0, OPTIONS) == pytest.approx(1 / 3) and expected[1] == 1.0
    assert expected[-1] == pytest.approx(0.0, abs=1e-12)
    base, heads = np.array(rates)[:, 0], np.array(rates)[:, -1]
    np.testing.assert_allclose(base, [1e-3 * e for e in expected], atol=1e-12)
    np.testing.assert_allclose(heads, [1e-2 * e for e in expected], atol=1e-12)


def test_learning_rate_by_hand():
    """20 steps, 4 of them rising: half the cosine is behind step 12, so the rate is half way down."""
    options = TrainingOptions(steps=20, warmup=0.2)
    assert learning_rate_scale(1, options) == pytest.approx(2 / 4)
    assert learning_rate_scale(12, options) == pytest.approx(0.5)
    assert learning_rate_scale(8, options) == pytest.approx((1 + 2**-0.5) / 2)
    assert learning_rate_scale(12, replace(options, final_lr=0.2)) == pytest.approx(0.6)
    assert {learning_rate_scale(step, replace(options, final_lr=1.0)) for step in range(4, 20)} == {1.0}


def test_bf16_run_returns_a_model_that_computes_in_float32(documents, tmp_path):
    run = trainer(documents, tmp_path, replace(OPTIONS, mixed_precision="bf16", steps=3))
    model = run.run()
    ids = torch.from_numpy(documents[0][None].astype(np.int64))
    with torch.no_grad():
        expected = model.backbone.lm_head(model.head_states(ids)[0])
        assert torch.equal(model(ids).logits, expected) and expected.dtype == torch.float32
    nats, targets = (sums.sum(0) for sums in held_out_nats(model, documents, 512))
    assert run.last_validation == pytest.approx((nats / targets).tolist(), rel=1e-6)


def test_checkpoint_of_another_block_size_or_model_is_refused(documents, tmp_path):
    trainer(documents, tmp_path).save_checkpoint()
    with pytest.raises(ValueError, match=r"other options .*blocks"):
        trainer(documents[:1], tmp_path)
    with pytest.raises(ValueError, match=r"other options .*num_token_heads"):
        Trainer(tiny_dynamo(heads=2), TokenBlocks(documents, 0, 64, seed=5), OPTIONS, tmp_path)


def test_training_lowers_every_heads_loss_and_logs_it(documents, tmp_path):
    run = trainer(documents, tmp_path, replace(OPTIONS, steps=60, evaluate_every=30))
    before = run.validate()
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    validations = [row["validation"] for row in rows if "validation" in row]
    assert len(validations) == 3 and validations[-1] == run.last_validation
    assert all(after < start for after, start in zip(validations[-1], before, strict=True))
    assert all(len(row["losses"]) == 3 for row in rows if "losses" in row)


def test_heads_only_training_leaves_the_base_bit_for_bit(documents, tmp_path):
    run = trainer(documents, tmp_path, replace(OPTIONS, heads_only=True, steps=4))
    before = {name: p.clone() for name, p in run.model.backbone.state_dict().items()}
    after = run.run()
    assert all(torch.equal(before[name], p) for name, p in after.backbone.state_dict().items())
    assert not same_weights(after.token_heads, tiny_dynamo(heads=3, head_init="copy").token_heads)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_held_out_nats_equal_sums_by_hand_alone_and_in_padded_batches(documents, batch_size):
    model = tiny_dynamo()
    nats, targets = held_out_nats(model, documents, cut=40, batch_size=batch_size)
    expected = np.zeros((len(documents), 3))
    for row, document in enumerate(documents):
        ids = torch.from_numpy(document[:40].astype(np.int64))[None]
        with torch.no_grad():
            log_p = model(ids).head_logits[:, 0].double().log_softmax(-1)
        for head in range(3):
            for t in range(ids.shape[1] - head - 1):
                expected[row, head] -= log_p[head, t, ids[0, t + head + 1]]
    if batch_size == 1:
        np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(nats.sum(0), expected.sum(0), rtol=1e-5, atol=1e-4)
    assert targets.sum(0).tolist() == [sum(min(40, len(d)) - n for d in documents) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps: "),
        ({"head_lr": -1.0}, "head_lr: "),
        ({"base_lr": float("nan")}, "base_lr: "),
        ({"warmup": 2.0}, "warmup: "),
        ({"mixed_precision": "fp8"}, "mixed_precision: "),
    ],
)
def test_bad_training_option_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**wrong)
