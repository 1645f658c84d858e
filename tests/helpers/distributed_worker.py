"""What two processes of tests/common/test_distributed.py run: commands, then one step with FSDP2."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from conftest import tiny_dynamo
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from dynamo.__main__ import main
from dynamo.model import count_targets
from dynamo.training.loop import ADAMW_BETAS, ADAMW_EPS
from dynamo.training.trainer import gathered

CONFIGURATION = Path(__file__).resolve().parents[2] / "configs/fsdp.yaml"


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of which the second half has far fewer targets."""
    ids = torch.randint(300, (4, 24), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[2:, :15] = -100
    return ids, labels


def step(model, ids, labels, world):
    """One optimiser step on a part of `rows`."""
    counts = count_targets(rows()[1], 3)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3, 1e-2), betas=ADAMW_BETAS, eps=ADAMW_EPS)
    output = model(ids, labels=labels, target_counts=counts)
    (output.loss * world).backward()
    optimizer.step()
    return output.head_losses


def sharded_step(folder: str) -> None:
    """As accelerate shards a model on GPUs, by our own configuration; on CPU it would take DDP instead."""
    rank = torch.distributed.get_rank()
    model = tiny_dynamo(heads=3).train()
    model.activation_checkpointing_enable()
    plugin = plugin_of(load_config_from_file(str(CONFIGURATION)).fsdp_config)
    state = SimpleNamespace(fsdp_plugin=plugin)
    model = fsdp2_prepare_model(
        SimpleNamespace(state=state, mixed_precision="no", is_main_process=rank == 0), model
    )
    ids, labels = rows()
    half = slice(2 * rank, 2 * rank + 2)
    losses = step(model, ids[half], labels[half], world=2)
    torch.distributed.all_reduce(losses)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = gathered(model, get_model_state_dict(model, options=options))
    if rank == 0:
        whole.save_pretrained(os.path.join(folder, "sharded"))
        torch.save(losses, os.path.join(folder, "sharded_losses.pt"))
        units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        Path(folder, "sharded_units.json").write_text(json.dumps(units))


def plugin_of(fields: dict) -> FullyShardedDataParallelPlugin:
    """What `accelerate launch` hands over as variables, as the plugin takes it."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=fields["fsdp_version"],
        auto_wrap_policy=fields["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=fields["fsdp_reshard_after_forward"],
        state_dict_type=fields["fsdp_state_dict_type"],
        cpu_offload=fields["fsdp_offload_params"],
        cpu_ram_efficient_loading=fields["fsdp_cpu_ram_efficient_loading"],
        activation_checkpointing=fields["fsdp_activation_checkpointing"],
    )


def work(commands: list[list[str]], folder: str) -> None:
    for arguments in commands:
        assert main(arguments) == 0
    assert torch.distributed.get_world_size() == 2
    sharded_step(folder)
