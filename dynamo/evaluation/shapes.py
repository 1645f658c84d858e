"""A pair of random weights in a real Pythia's shape, to time passes without its checkpoint.

The weights are drawn so that every head is sure of some token: at the default threshold every pass then emits
all its tokens. They are half-precision numbers, like those of Pythia's files. Milliseconds are meaningful,
texts and tokens per forward pass are not. There is no table, so the mask's look-up is not timed.
"""

from __future__ import annotations

import re

import torch
from transformers import GPTNeoXForCausalLM

from dynamo.loading import Pair, default_dtype, sizes
from dynamo.model import DynamoConfig, DynamoForCausalLM

PYTHIA = {f"pythia-{size}": shape for size, shape in sizes.PYTHIA.items()}
SURE = 200.0  # standard deviation of the logits
WEIGHT_STD = 0.02


def random_pair(
    shape: str, device: torch.device, dtype: torch.dtype | None = None, heads: int = 3, seed: int = 0
) -> Pair:
    """A pair by the name of a Pythia or as LAYERSxHIDDENxHEADSxVOCABULARY; base and DynaMo share weights.

    Raises ValueError for a shape that is neither.
    """
    layers, hidden, attention_heads, vocabulary = _numbers(shape)
    config = DynamoConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=2048,
        num_token_heads=heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = DynamoForCausalLM(config)
        base = GPTNeoXForCausalLM(config.to_neox())
    model = model.to(dtype or default_dtype(device)).to_empty(device=device)
    _fill(model, seed)
    base.gpt_neox, base.lm_head = model.backbone.gpt_neox, model.backbone.lm_head
    description = f"Random weights in the shape of {shape}, not a checkpoint."
    return Pair(shape, description, base.eval(), model.eval(), None, None)


@torch.no_grad()
def _fill(model: DynamoForCausalLM, seed: int) -> None:
    generator = torch.Generator(model.device).manual_seed(seed)
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
    rotary = model.backbone.gpt_neox.rotary_emb
    model.backbone.gpt_neox.rotary_emb = type(rotary)(model.config).to(model.device)


def _numbers(shape: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", shape)
    numbers = PYTHIA.get(shape) or (tuple(map(int, match.groups())) if match else None)
    if numbers is None:
        raise ValueError(
            f"shape: expected one of {', '.join(PYTHIA)} or LAYERSxHIDDENxHEADSxVOCABULARY, got {shape!r}"
        )
    layers, hidden, heads, vocabulary = numbers
    if layers < 2 or not heads or hidden % heads or hidden // heads % 8 or not vocabulary:
        raise ValueError(
            f"shape: expected 2 or more layers and hidden units that divide by 8 times the attention heads, "
            f"got {shape!r}"
        )
    return numbers
