"""The Pythia suite's sizes, what a pair of each takes in memory, and what this machine has.

Bytes are computed from shapes: weights of base and DynaMo model, the packed copies that small float32 models
run on, and two lanes' key-value caches at full length. The runtime itself (libraries, activations) is a
flat reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from dynamo.loading.quantised import BITS, KEPT
from dynamo.model.shape import LayerShape, ModelShape, papers_layer

POSITIONS = 2048
# Measured: 0.5 GB resident once torch, transformers and the page are imported, 0.1 GB more while lanes run.
RESERVE = 3 * 2**28
# In the suite's own files, and not loaded: frequencies, and masks of all positions (410m: 0.4 GB in float32).
NOT_LOADED = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


class Shape(NamedTuple):
    """What tells one size of the suite from another; MLPs are four times as wide as the hidden units."""

    layers: int
    hidden: int
    attention_heads: int
    vocabulary: int


# HuggingFaceTB/SmolLM2-135M (its config.json).
SMOLLM2 = ModelShape(
    LayerShape(
        hidden=576, inner=1536, heads=9, kv_heads=3, head_dim=64, rotary_dim=64, norm="rms",
        activation="silu", gated=True, parallel=False, qkv_bias=False, output_bias=False, mlp_bias=False,
    ),
    layers=30,
    vocabulary=49152,
    positions=8192,
    tied=True,
)  # fmt: skip

# EleutherAI/pythia-* (Biderman et al., Pythia, 2023, and its model files).
PYTHIA = {
    "14m": Shape(6, 128, 4, 50304),
    "31m": Shape(6, 256, 8, 50304),
    "70m": Shape(6, 512, 8, 50304),
    "160m": Shape(12, 768, 12, 50304),
    "410m": Shape(24, 1024, 16, 50304),
    "1b": Shape(16, 2048, 8, 50304),
    "1.4b": Shape(24, 2048, 16, 50304),
    "2.8b": Shape(32, 2560, 32, 50304),
    "6.9b": Shape(32, 4096, 32, 50432),
    "12b": Shape(36, 5120, 40, 50688),
}


@dataclass(frozen=True)
class ModelSize:
    """One row of a model picker. parameters: of the base; bytes: of base, DynaMo model and their working
    memory together; fits: whether the machine has them; reason: why not, "" if it fits.
    """

    name: str
    parameters: int
    bytes: int
    fits: bool
    reason: str


def model_sizes(
    dtype: torch.dtype, memory: int | None, quantize: str | None = None, packed: bool = False
) -> list[ModelSize]:
    """Every Pythia size as a pair with three token heads, smallest first.

    memory: bytes that may be taken (`available_memory`), None where unknown: then everything fits; packed:
    whether small models will run on packed copies (float32 on CPU).
    """
    rows = []
    for size in PYTHIA:
        needed = pair_bytes(size, dtype, quantize, packed)
        fits = memory is None or needed <= memory
        reason = "" if fits else f"needs about {gigabytes(needed)}, {gigabytes(memory)} are free"
        rows.append(
            ModelSize(f"EleutherAI/pythia-{size}", pythia_shape(size).parameters, needed, fits, reason)
        )
    return rows


def pythia_shape(size: str, heads: int = 1) -> ModelShape:
    """Of a Pythia model with so many token heads. Raises ValueError for a size that is not in the suite."""
    if size not in PYTHIA:
        raise ValueError(f"size: expected one of {', '.join(PYTHIA)}, got {size!r}")
    layers, hidden, attention_heads, vocabulary = PYTHIA[size]
    layer = papers_layer(hidden, attention_heads)
    return ModelShape(layer, layers, vocabulary, POSITIONS, extra_heads=heads - 1)


def pair_bytes(size: str, dtype: torch.dtype, quantize: str | None = None, packed: bool = False) -> int:
    """Bytes that a base and its model of three token heads take together while both run."""
    total = RESERVE
    for shape in (pythia_shape(size), pythia_shape(size, heads=3)):
        total += shape.weight_bytes(dtype.itemsize, _bytes_each(dtype, quantize))
        total += shape.cache_bytes(dtype.itemsize)
        total += sum(shape.copies().values()) if packed and quantize is None else 0
    return total


def stored_bytes(folders: list[Path], dtype: torch.dtype, quantize: str | None) -> int:
    """Bytes that the weights in these folders take once loaded, by the files' headers alone."""
    total = 0
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        if file.name == "cooccurrence.safetensors":
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    total += _stored(name, tensors.get_slice(name).get_shape(), dtype, quantize)
        except SafetensorError:
            continue  # a damaged file is named by the loader itself
    return total


def _stored(name: str, shape: list[int], dtype: torch.dtype, quantize: str | None) -> int:
    if name.endswith(NOT_LOADED):
        return 0
    count = torch.Size(shape).numel()
    linear = len(shape) == 2 and not any(kept in name for kept in ("embed", *KEPT))
    return round(count * (_bytes_each(dtype, quantize) if linear else dtype.itemsize))


def _bytes_each(dtype: torch.dtype, quantize: str | None) -> float:
    """Of a weight in a linear layer; 4 bits bring a float32 scale for every 64 weights."""
    if quantize is None:
        return dtype.itemsize
    return BITS[quantize] / 8 + (4 / 64 if quantize == "4bit" else 0)


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes free for a model on a device; None where the system does not say. `root` is the file system's."""
    if device.type == "cuda":
        # What torch's allocator keeps of earlier models counts as used there, and is this process's to fill.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    kilobytes = _number(root / "proc/meminfo", "MemAvailable:")
    if kilobytes is None:
        return None
    group = root / "sys/fs/cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return kilobytes * 1024
    # Files that were read count as used, but give way.
    cached = sum(_number(group / "memory.stat", line) or 0 for line in ("inactive_file ", "active_file "))
    return min(kilobytes * 1024, max(0, limit - used + cached))


def _number(file: Path, line: str = "") -> int | None:
    """The first number of a file, or of its line that begins so."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rest = next(each.removeprefix(line) for each in lines if each.startswith(line))
        return int(rest.split()[0])
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
