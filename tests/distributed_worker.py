"""What two processes of tests/test_distributed.py run: the commands of a job, then one step with FSDP2."""

import json
import os
import sys
from pathlib import Path

import torch
from conftest import tiny_dynamo
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo.__main__ import main
from dynamo.model import count_targets
from dynamo.training import ADAMW_BETAS, ADAMW_EPS, gathered


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
    rank = torch.distributed.get_rank()
    model = tiny_dynamo(heads=3).train()
    model.activation_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GPTNeoXLayer):
            fully_shard(module)
    fully_shard(model)
    ids, labels = rows()
    half = slice(2 * rank, 2 * rank + 2)
    losses = step(model, ids[half], labels[half], world=2)
    torch.distributed.all_reduce(losses)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = gathered(model, get_model_state_dict(model, options=options))
    if rank == 0:
        whole.save_pretrained(os.path.join(folder, "sharded"))
        torch.save(losses, os.path.join(folder, "sharded_losses.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    for arguments in job["commands"]:
        assert main(arguments) == 0
    assert torch.distributed.get_world_size() == 2
    sharded_step(job["folder"])
