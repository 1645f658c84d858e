"""A pair of random weights in a real model's shape, to time passes without its checkpoint.

The weights are drawn so that every head is sure of some token: at the default threshold every pass then emits
all its tokens. They are half-precision numbers, like those of the models' files. Milliseconds are meaningful,
texts and tokens per forward pass are not. There is no table, so the mask's look-up is not timed.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from dynamo.loading import Pair, default_dtype, sizes
from dynamo.model import DynamoConfig, DynamoForCausalLM
from dynamo.model.architectures import new_base_config
from dynamo.model.shape import ModelShape, papers_layer

SHAPES = {f"pythia-{size}": sizes.pythia_shape(size) for size in sizes.PYTHIA} | {
    "smollm2-135m": sizes.SMOLLM2
}
POSITIONS = 2048
SURE = 200.0  # standard deviation of the logits
WEIGHT_STD = 0.02


def random_pair(shape: str, device: torch.device, dtype: torch.dtype | None = None) -> Pair:
    """A pair by a name of `SHAPES` or as LAYERSxHIDDENxHEADSxVOCABULARY; base and DynaMo share weights.

    Raises ValueError for a shape that is neither.
    """
    base = replace(_shape(shape), positions=POSITIONS)
    config = DynamoConfig.from_base(
        new_base_config(base, bos_token_id=None, eos_token_id=None), num_token_heads=3
    )
    with torch.device("meta"):
        model = DynamoForCausalLM(config)
    model = model.to(dtype or default_dtype(device)).to_empty(device=device)
    model.tie_weights()
    _fill(model)
    description = f"Random weights in the shape of {shape}, not a checkpoint."
    model.eval()
    return Pair(shape, description, model.to_base(shared=True), model, None, None)


@torch.no_grad()
def _fill(model: DynamoForCausalLM) -> None:
    generator = torch.Generator(model.device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, WEIGHT_STD, generator=generator)
        else:
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    head = model.get_output_embeddings().weight
    head.mul_(SURE / (WEIGHT_STD * head.shape[1] ** 0.5))
    for weight in model.parameters():
        weight.copy_(weight.half())
    # Buffers that are computed and not stored are lost on the way from the meta device.
    decoder = model.backbone.base_model
    decoder.rotary_emb = type(decoder.rotary_emb)(model.config.text_config).to(model.device)


def _shape(shape: str) -> ModelShape:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", shape)
    if shape in SHAPES:
        return SHAPES[shape]
    if match is None:
        raise ValueError(
            f"shape: expected one of {', '.join(SHAPES)} or LAYERSxHIDDENxHEADSxVOCABULARY, got {shape!r}"
        )
    layers, hidden, heads, vocabulary = map(int, match.groups())
    if layers < 2 or not heads or hidden % heads or hidden // heads % 8 or not vocabulary:
        raise ValueError(
            f"shape: expected 2 or more layers and hidden units that divide by 8 times the attention heads, "
            f"got {shape!r}"
        )
    return ModelShape(papers_layer(hidden, heads), layers, vocabulary, POSITIONS)
