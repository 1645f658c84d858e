"""Where a model's modules compute and where its weights are, which accelerate's hooks may part.

A hooked module's weights may wait in the CPU's memory or on disk and be a "meta" tensor meanwhile; its hook
knows the device that it computes on, and the map that the weights come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_dispatched(model: nn.Module) -> bool:
    """Whether a model's weights are on several devices, or elsewhere than where they compute."""
    devices = {weight.device for weight in model.parameters()}
    return len(devices) > 1 or any(device.type == "meta" for device in devices)


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: for a whole model, where its inputs go."""
    for each in module.modules():
        for hook in _hooks(each):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return next(module.parameters()).device


def waiting_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own weights that wait for its turn: ("cpu", the weight) or ("disk", a stand-in of its shape
    and dtype).
    """
    for hook in _hooks(module):
        if not hook.offload:
            continue
        for name, stand_in in module.named_parameters(recurse=False):
            weight = _in_memory(hook.weights_map, name)
            yield ("disk", stand_in) if weight is None else (weight.device.type, weight)


def _in_memory(weights: Any, name: str) -> Tensor | None:
    """A weight of accelerate's map, unless it would have to be read for this."""
    prefix = getattr(weights, "prefix", "")
    weights = getattr(weights, "dataset", weights)
    held: Mapping[str, Tensor] = getattr(weights, "state_dict", weights)
    return held.get(prefix + name) if isinstance(held, Mapping) else None


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks on one module that place it."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if hasattr(each, "execution_device"):
            yield each
