"""What a measurement ran on: printed and written with every number that depends on it."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from dynamo.common.device_map import execution_device


def describe(model: torch.nn.Module) -> dict[str, Any]:
    """Device, threads, dtype, versions and date; nothing that names the machine's owner."""
    device = execution_device(model)
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.system(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    """The processor's name as Linux knows it, elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())
