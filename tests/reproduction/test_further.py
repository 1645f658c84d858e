"""Experiments that train: each run once, compared on the same documents, judged by intervals."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from workspaces import files, shared, short_rows, two_heads, workspace

from dynamo.data.blocks import TokenBlocks
from dynamo.data.held_out import held_out_nats
from dynamo.model import load_dynamo
from dynamo.reproduction import continual, data_scaling, first_head, further, measures, num_heads, variants
from dynamo.training.trainer import Trainer

__all__ = ["files", "shared", "short_rows", "workspace"]  # fixtures


# -- runs -------------------------------------------------------------------------------------------------


def test_a_finished_run_is_loaded_and_not_trained_again(workspace):
    trained = further.trained(workspace, "one", lambda: two_heads(workspace), further.blocks(workspace))
    again = further.trained(workspace, "one", pytest.fail, further.blocks(workspace))
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in trained.state_dict().items())
    embedding = two_heads(workspace).get_input_embeddings().weight
    assert not torch.equal(embedding, trained.get_input_embeddings().weight)


def test_a_finished_run_of_other_options_is_refused(workspace):
    further.trained(workspace, "one", lambda: two_heads(workspace), further.blocks(workspace))
    with pytest.raises(ValueError, match="other options or data; delete it"):
        further.trained(workspace, "one", pytest.fail, further.blocks(workspace), heads_only=True)
    other_rows = TokenBlocks(workspace.documents, 0, 32)
    with pytest.raises(ValueError, match="other options or data; delete it"):
        further.trained(workspace, "one", pytest.fail, other_rows)


def test_a_killed_run_goes_on_from_its_checkpoint(workspace):
    messages = []
    watched = replace(workspace, progress=messages.append)
    rows = further.blocks(watched)
    torch.manual_seed(0)
    folder = watched.folder_of("training", further.DEPENDS) / "one"
    Trainer(two_heads(watched), rows, further.training_options(watched), folder).run(stop=lambda: True)
    further.trained(watched, "one", lambda: two_heads(watched), rows)
    assert messages == ["one: training from step 1 to 2"]
    assert not (folder / "checkpoint").exists()


def test_the_pair_is_as_it_was_after_training(workspace):
    before = {name: weight.clone() for name, weight in workspace.pair.base.state_dict().items()}
    further.base_trained_on(workspace)
    after = workspace.pair.base.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_rates_keep_the_papers_ratio():
    """LR_B is a hundredth of LR_M in every row of the paper's table."""
    assert pytest.approx(100) == further.HEAD_LR / further.BASE_LR


# -- measures ---------------------------------------------------------------------------------------------


def test_losses_of_documents_are_the_projects_own(workspace):
    model = tiny_dynamo(heads=3)
    measured = measures.document_losses(model, workspace.documents, cut=64)
    nats, targets = held_out_nats(model, workspace.documents, 64)
    np.testing.assert_array_equal(measured.targets, targets)
    np.testing.assert_allclose(measured.nats, nats, rtol=5e-3)  # bfloat16 products


def test_perplexities_by_hand():
    losses = measures.Losses(np.log([[4.0, 9.0], [4.0, 9.0]]) * 2, np.array([[2, 2], [2, 2]]))
    assert losses.ppl["PPL_1"].value == pytest.approx(4) and losses.ppl["PPL_2"].value == pytest.approx(9)
    assert losses.ppl["PPL_1:2"].value == pytest.approx(6)  # the geometric mean of 4 and 9
    assert (
        losses.ppl["PPL_1"].low == losses.ppl["PPL_1"].high == pytest.approx(4)
    )  # both documents say the same


def test_excess_is_paired_over_documents():
    """Documents differ by far more than the models, and every document says the same of the two."""
    targets = np.full((4, 1), 10)
    easy_and_hard = np.array([[1.0], [90.0], [5.0], [40.0]])
    one, other = measures.Losses(easy_and_hard + 0.5, targets), measures.Losses(easy_and_hard, targets)
    excess = one.excess(other, 1)
    assert (excess.value, excess.low, excess.high) == pytest.approx((0.05, 0.05, 0.05))
    with pytest.raises(AssertionError, match="other documents"):
        one.excess(measures.Losses(easy_and_hard, targets + 1), 1)


def test_speed_and_drift_of_replies_by_hand():
    """Three tokens a pass against two, two nats a token against one and a half; prompts agree."""
    twice = np.array([1.0, 2.0])
    one = measures.Answers(30 * twice, 10 * twice, 60 * twice, 0 * twice)
    other = measures.Answers(20 * twice, 10 * twice, 30 * twice, 0 * twice)
    assert one.faster(other).value == pytest.approx(1.0)
    assert (one.drift(other).value, one.drift(other).low) == pytest.approx((0.5, 0.5))


def test_heads_alone_leave_the_first_head_the_base(shared):
    base = measures.document_losses(further.with_heads(shared, num_token_heads=1), shared.documents)
    heads = measures.document_losses(variants.model_of(shared, "t2-heads-only"), shared.documents)
    np.testing.assert_array_equal(base.nats[:, 0], heads.nats[:, 0])


def test_copies_and_random_heads_begin_apart_and_low_rates_stay_near(shared):
    base_layer = shared.pair.base.gpt_neox.layers[-1].mlp.dense_h_to_4h.weight

    def distance(name):
        layer = variants.model_of(shared, name).token_heads[0].layers[0].mlp.dense_h_to_4h.weight
        return float((layer - base_layer).norm().detach())

    assert distance("t2-low-rate") < distance("t2") < distance("t2-random")


# -- amounts ----------------------------------------------------------------------------------------------


def test_smaller_parts_lie_within_larger_ones(workspace):
    parts = [data_scaling.part(workspace, share) for share in (0.02, 0.1, 1.0)]
    assert [len(part.lengths) for part in parts] == [2, 10, 100]
    for smaller, larger in pairwise(parts):
        for index in range(len(smaller.lengths)):
            np.testing.assert_array_equal(smaller[index], larger[index])


def test_the_smallest_part_fills_a_row(workspace, monkeypatch):
    whole = data_scaling.part(workspace, 1.0)
    monkeypatch.setattr(further, "BLOCK_SIZE", 200)
    part = data_scaling.part(workspace, 0.0)
    tokens = part.lengths + 1
    assert tokens[:-1].sum() < 200 <= tokens.sum() and further.blocks(workspace, part).blocks_per_epoch == 1
    monkeypatch.setattr(further, "BLOCK_SIZE", 10**6)
    assert len(data_scaling.part(workspace, 0.0).lengths) == len(whole.lengths)


def test_a_part_that_was_no_limit_decides_nothing(shared):
    """Two steps of 64 tokens read the smallest part twice and no other."""
    result = data_scaling.HOW_MUCH.run(shared)
    times = [measured["times_read"] for measured in result["parts"].values()]
    assert times[0] == pytest.approx(128 / (len(data_scaling.part(shared, 0.01)[0]) + 1))
    result["excess_nats"]["heads-of-25-percent"] = {"value": 3.0, "low": 2.9, "high": 3.1}
    for name, low, times, verdict in (
        ("heads-of-1-percent", 0.01, 4.0, "holds"),
        ("heads-of-1-percent", 0.5, 4.0, "differs"),
        ("heads-of-1-percent", 0.5, 1.0, "cannot be tested here"),
    ):
        result["excess_nats"][name] = {"value": low, "low": low, "high": low + 0.01}
        result["parts"][name]["times_read"] = times
        finding = data_scaling.HOW_MUCH.show(result).finding
        assert finding.verdict == verdict
        assert "up to 3.000 nats apart" in finding.sentence


# -- whole experiments ------------------------------------------------------------------------------------

EXPERIMENTS = (variants.TABLE_10, variants.TABLE_10_SHAPES, num_heads.HOW_MANY, data_scaling.HOW_MUCH,
               first_head.BETTER, continual.CONTINUAL)  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_an_experiment_ends_in_json_that_is_read_back_and_shown(experiment, shared):
    result = json.loads(json.dumps(experiment.run(shared)))
    shown = experiment.show(result)
    assert shown.tables and shown.finding.sentence
    assert experiment.run(shared) == result  # from what is there, without training


def test_the_first_head_is_judged_by_paired_differences_that_agree(shared):
    """One that is sure decides where the other is open; one against the paper decides always."""
    result = first_head.BETTER.run(shared)
    assert "pair" not in result["ppl_1"]  # of this pair it is not known how it was trained
    below, above, open_ = (-3.0, -1.0), (1.0, 3.0), (-1.0, 1.0)
    for here, pair, verdict in (
        (below, None, "holds"),
        (above, None, "differs"),
        (open_, None, "cannot be tested here"),
        (open_, below, "holds"),
        (open_, open_, "cannot be tested here"),
        (above, below, "differs"),
    ):
        for key, interval in (("dynamo-further", here), ("pair-base", pair)):
            result["excess_nats"].pop(key, None)
            if interval is not None:
                result["excess_nats"][key] = {"value": 0.0, "low": interval[0], "high": interval[1]}
        assert first_head.BETTER.show(result).finding.verdict == verdict


def test_the_embedded_pair_is_a_control_too(workspace):
    embedded = replace(workspace, pair=replace(workspace.pair, name="embedded", dynamo=tiny_dynamo(seed=1)))
    result = first_head.BETTER.run(embedded)
    assert result["ppl_1"]["pair"] != result["ppl_1"]["base"]
    assert "in the embedded pair" in first_head.BETTER.show(result).finding.sentence


def test_more_heads_cost_more_parameters_and_their_table_reaches_as_far(shared):
    result = num_heads.HOW_MANY.run(shared)
    extra = [result["variants"][name]["extra"] for name in num_heads.NAMES]
    np.testing.assert_array_equal(np.diff(extra), extra[0])  # a layer more each
    assert result["table_order"] == 5
    assert result["base_replies"]["tokens_per_forward"]["value"] == 1.0
    assert further.long_table(shared).sizes.keys() == {2, 3, 4, 5}


def test_the_saved_run_says_what_it_was(shared):
    variants.model_of(shared, "t2")
    folder = shared.folder_of("training", further.DEPENDS) / "t2" / "model"
    run = json.loads((folder / "run.json").read_text())
    assert run["options"]["steps"] == 2 and run["rows"] == further.blocks(shared).fingerprint()
    assert load_dynamo(str(folder)).config.num_token_heads == 2
