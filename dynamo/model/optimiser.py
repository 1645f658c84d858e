"""What training needs to know of a model: targets to count, a gradient to scale, parameters to group.

Three learning rates act (paper, section 3.2): the base's, the heads', and that of the gradient which the
heads send into what they share with the base. The first two are parameter groups, the third is a gradient
scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynamo.model.loss import IGNORED_LABEL


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.scale, None


def scale_gradient(tensor: Tensor, scale: float) -> Tensor:
    """The tensor itself; its gradient is multiplied by `scale` on the way back."""
    return tensor if scale == 1.0 else _ScaleGradient.apply(tensor, scale)


def scaled_call(module: nn.Module, hidden_states: Tensor, scale: float) -> Tensor:
    """`module(hidden_states)`; the gradient that its weights get from this is multiplied by `scale`.

    Whatever they are: its own, or those of an adapter around it.
    """
    if scale == 1.0 or not torch.is_grad_enabled():
        return module(hidden_states)  # by its hooks, if it has any
    weights = {
        name: scale_gradient(weight, scale)
        for name, weight in module.named_parameters()
        if weight.requires_grad
    }
    return functional_call(module, weights, (hidden_states,))


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a product with its weight and no more."""
    unchanged = type(module).forward is nn.Linear.forward and "forward" not in vars(module)
    return isinstance(module, nn.Linear) and unchanged and module.bias is None


def count_targets(labels: Tensor, heads: int) -> Tensor:
    """How many valid targets heads 1 .. `heads` have in labels (batch, seq): (heads,)."""
    # Head n at position t predicts the label at t + n, so its first n labels are nobody's target.
    return torch.stack([(labels[:, distance:] != IGNORED_LABEL).sum() for distance in range(1, heads + 1)])


def parameter_groups(
    parts: dict[str, tuple[nn.Module, float]], weight_decay: float, whole: nn.Module
) -> list[dict[str, Any]]:
    """Optimiser groups of {name: (module, rate)}, proven to partition `whole`'s trainable parameters."""
    groups = []
    for name, (module, lr) in parts.items():
        trainable = {key: p for key, p in module.named_parameters() if p.requires_grad}
        # Decay is for matrices: norms and biases have one dimension, embeddings are left out by name.
        decayed = {
            key for key, p in trainable.items() if p.ndim > 1 and "embed" not in key and "lm_head" not in key
        }
        for suffix, keys, decay in (
            ("decay", decayed, weight_decay),
            ("no_decay", trainable.keys() - decayed, 0.0),
        ):
            params = [p for key, p in trainable.items() if key in keys]
            if params:
                groups.append({"name": f"{name}_{suffix}", "params": params, "lr": lr, "weight_decay": decay})
    # A parameter in no group would never be trained, one in two groups twice, both without an error.
    grouped = [id(p) for group in groups for p in group["params"]]
    expected = {id(p) for p in whole.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == expected, (
        f"parameter groups hold {len(grouped)} parameters ({len(set(grouped))} distinct) of {len(expected)}"
    )
    return groups
