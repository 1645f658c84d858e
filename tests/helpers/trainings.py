"""A short training of a tiny model with dropout."""

from __future__ import annotations

import torch
from conftest import tiny_dynamo

from dynamo.data.blocks import TokenBlocks
from dynamo.training.options import TrainingOptions
from dynamo.training.trainer import Trainer

OPTIONS = TrainingOptions(
    steps=12, batch_size=2, base_lr=1e-3, head_lr=1e-2, warmup=0.25, weight_decay=0.1, checkpoint_every=3
)


def trainer(documents, output, options=OPTIONS, **more):
    # Dropout makes the random state part of what must be resumed.
    model = tiny_dynamo(heads=3, head_init="copy")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return Trainer(model, TokenBlocks(documents, 0, 64, seed=5), options, output, documents, **more)


def same_weights(one, other):
    return all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


ALPACA = [
    {"instruction": "Name a city.", "input": "", "output": "Oakland."},
    {"instruction": "Double it.", "input": "21", "output": "It will be 42."},
    {"instruction": "Be polite.", "output": "At your service, please."},
]
