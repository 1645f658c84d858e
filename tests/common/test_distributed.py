"""Two real processes (gloo, CPU) against one: same losses, same weights."""

import json

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from conftest import DIALOGUES, tiny_base, tiny_dynamo
from distributed_worker import CONFIGURATION, plugin_of, rows, step, work
from processes import printed_by_ranks
from trainings import ALPACA
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo import loading
from dynamo.__main__ import main
from dynamo.model import DynamoConfig, DynamoForCausalLM, architecture_of, load_dynamo
from dynamo.model.architectures import ARCHITECTURES
from dynamo.training.trainer import save_model

pytestmark = pytest.mark.timeout(900)  # a server of processes imports everything, and two of them train


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Training and finetuning by one process at once and by two with everything divided."""
    folder = tmp_path_factory.mktemp("distributed")
    save_model(tiny_base(seed=1), tokenizer, folder / "base")
    save_model(tiny_dynamo(seed=2), tokenizer, folder / "dynamo")
    (folder / "data.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for turns in DIALOGUES))
    (folder / "alpaca.json").write_text(json.dumps(ALPACA))
    shape = ["--steps", "4", "--batch-size", "8", "--base-lr", "1e-3", "--head-lr", "1e-2", "--warmup", "0.5"]
    data = ["--data", str(folder / "data.jsonl")]
    train = ["train", "--model", str(folder / "base"), *data, "--validation", str(folder / "data.jsonl"),
             "--block-size", "32", "--checkpoint-every", "3", *shape]  # fmt: skip
    finetune = ["finetune", "--model", str(folder / "dynamo"), "--data", str(folder / "alpaca.json"), *shape]
    divided = ["--accumulation", "2", "--activation-checkpointing"]
    for verb in (train, finetune):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([*verb, "--output", str(folder / f"{verb[0]}-one")]) == 0
    commands = [[*verb, *divided, "--output", str(folder / f"{verb[0]}-two")] for verb in (train, finetune)]
    printed_by_ranks(folder, 2, work, commands, str(folder))
    return folder


def logged(folder, name, what):
    rows = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    return [row[what] for row in rows if what in row]


def alike(name, one, other):
    """Adam divides a gradient by its size, so one that is zero but for rounding makes a step anywhere: the
    bias of keys has no influence on attention at all."""
    return name.endswith("query_key_value.bias") or (one - other).abs().mean() < 1e-5


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_two_processes_in_parts_train_like_one_at_once(folder, verb):
    """The finetuned rows have different numbers of targets: a mean of the processes' means would differ."""
    one, two = (logged(folder, f"{verb}-{count}", "losses") for count in ("one", "two"))
    assert len(one) == 1 and one[0] == pytest.approx(two[0], rel=1e-4)
    first, second = (
        loading.load_model(str(folder / f"{verb}-{count}/model"))[0].state_dict() for count in ("one", "two")
    )
    start = (tiny_base(seed=1) if verb == "train" else tiny_dynamo(seed=2)).state_dict()
    moved = 0.0
    for name, weight in first.items():
        assert alike(name, weight, second[name]), name
        before = start.get(name.removeprefix("backbone.") if verb == "train" else name)
        if before is not None:
            moved = max(moved, float((weight - before).abs().mean()))
    assert moved > 1e-3


def test_two_processes_validate_and_log_once(folder):
    one, two = (logged(folder, f"train-{count}", "validation") for count in ("one", "two"))
    assert len(one) == len(two) == 1 and one[0] == pytest.approx(two[0], rel=1e-4)
    assert logged(folder, "train-two", "tokens_per_second")[0] > 0
    assert not (folder / "train-two/checkpoint").exists()


def test_sharded_weights_take_the_step_of_whole_ones(folder):
    """accelerate's FSDP2 by our configuration, layers recomputed: loss, step, gathered model.

    The output embedding is a unit of its own there, and its weight is read where nobody calls it.
    """
    model = tiny_dynamo(heads=3).train()
    losses = step(model, *rows(), world=1)
    torch.testing.assert_close(torch.load(folder / "sharded_losses.pt"), losses, rtol=1e-5, atol=1e-6)
    sharded = load_dynamo(str(folder / "sharded")).state_dict()
    for name, weight in model.state_dict().items():
        assert alike(name, weight, sharded[name]), name
    before = tiny_dynamo(heads=3).state_dict()
    assert all((weight - sharded[name]).abs().max() > 5e-4 for name, weight in before.items())


def test_every_layer_of_base_and_heads_is_a_unit_of_its_own(folder):
    units = json.loads((folder / "sharded_units.json").read_text())
    layers = [name for name, each in tiny_dynamo(heads=3).named_modules() if type(each) is GPTNeoXLayer]
    assert len(layers) == 5 and set(layers) <= set(units)
    assert set(units) - set(layers) == {"", "backbone.gpt_neox.embed_in", "backbone.lm_head"}


def test_the_fsdp_configuration_finds_the_layers_of_every_family():
    config = load_config_from_file(str(CONFIGURATION))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2
    assert yaml.safe_load(CONFIGURATION.read_text())["mixed_precision"] == "bf16"
    plugin = plugin_of(config.fsdp_config)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    models = [tiny_base(), tiny_dynamo()]
    for architecture in ARCHITECTURES:
        config = architecture.config_class(vocab_size=100, **sizes)
        models.append(DynamoForCausalLM(DynamoConfig.from_base(config)))
    for model in models:
        layer_class = architecture_of(model).layer_class
        wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
        found = {name for name, each in model.named_modules() if wrapped(each)}
        assert found == {name for name, each in model.named_modules() if type(each) is layer_class} != set()
    plugin.transformer_cls_names_to_wrap = ["NoSuchLayer"]
    with pytest.raises(ValueError, match="Could not find the transformer layer class NoSuchLayer"):
        fsdp2_prepare_auto_wrap_policy(plugin, tiny_base())
