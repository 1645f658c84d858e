"""Where models are put: on one device, or spread over several by accelerate's device map.

A map fills the GPUs first, then the CPU's memory, then leaves the rest in its files on disk, layer by layer;
what waits elsewhere is brought to the first device for its turn, pass by pass, which is slow and works. It
is given as "auto" (or another of accelerate's strategies), or as {module of the DynaMo model: device}.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynamo.common.device_map import waiting_weights
from dynamo.loading.quantised import tensors_of
from dynamo.loading.sizes import available_memory

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
KEPT_FREE = 0.1  # of a device, for caches and activations

DeviceMap = str | dict[str, Any]
MaxMemory = dict[int | str, int | str]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPU, bfloat16 on GPUs that have it natively, else float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def checked_device(device: str | torch.device | None, device_map: DeviceMap | None = None) -> torch.device:
    """The device itself, or the default for None; with a map, the one that it fills first.

    Raises ValueError for a device or a map that is none.
    """
    if device_map is not None and device is not None:
        raise ValueError(f"device: a device map places the layers; leave out the device, got {device!r}")
    if isinstance(device_map, str) and device_map not in MAPS:
        raise ValueError(
            f"device_map: expected {', '.join(MAPS)} or a mapping of modules to devices, got {device_map!r}"
        )
    if device is None:
        return default_device()
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device} is not there, this machine has no CUDA; leave it out or use cpu")
    return device


def map_options(device_map: DeviceMap | None, max_memory: MaxMemory | None, stock: bool) -> dict[str, Any]:
    """The options of `from_pretrained` about devices: none for None.

    stock: whether the model is a base, whose modules are those of the map's without "backbone.".
    """
    if device_map is None:
        if max_memory is not None:
            raise ValueError("max_memory: it limits a device map; give device_map='auto' too")
        return {}
    if isinstance(device_map, dict):
        for name, device in device_map.items():
            _check_place(name, device)
        return {"device_map": _of_backbone(device_map) if stock else dict(device_map)}
    return {"device_map": device_map, "max_memory": dict(max_memory or free_memory())}


def _check_place(name: str, device: Any) -> None:
    if device == "disk":
        return
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device_map: {name}: expected disk, cpu, cuda or a GPU's number, got {device!r}"
        ) from None


def _of_backbone(device_map: dict[str, Any]) -> dict[str, Any]:
    prefix = "backbone."
    whole = {name: device_map[name] for name in ("",) if name in device_map}
    if "backbone" in device_map:
        whole = {"": device_map["backbone"]}
    return whole | {
        name.removeprefix(prefix): device for name, device in device_map.items() if name.startswith(prefix)
    }


def free_memory() -> MaxMemory:
    """Bytes that a map may fill, by device: accelerate's own count knows no container's limit."""
    places = {i: torch.device("cuda", i) for i in range(torch.cuda.device_count())}
    places["cpu"] = torch.device("cpu")
    free = {place: available_memory(device) for place, device in places.items()}
    return {place: int(count * (1 - KEPT_FREE)) for place, count in free.items() if count is not None}


def memory_by_device(*models: nn.Module) -> dict[str, int]:
    """Bytes of all weights, buffers and quantisation constants where they are, "disk" among the places; what
    models share counts once.
    """
    held: dict[tuple[str, int], int] = {}
    for module in (module for model in models for module in model.modules()):
        for tensor in tensors_of(module):
            if tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                held[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
        for place, tensor in waiting_weights(module):
            identity = id(tensor) if place == "disk" else tensor.untyped_storage().data_ptr()
            held[(place, identity)] = tensor.nbytes
    total: dict[str, int] = {}
    for (place, _), count in held.items():
        total[place] = total.get(place, 0) + count
    return total


def memory_of(*models: nn.Module) -> int:
    """The same in all, without what waits on disk."""
    return sum(count for place, count in memory_by_device(*models).items() if place != "disk")
