"""Linear layers in 8 or 4 bits, through bitsandbytes: a half to a fifth of the memory, on GPU and CPU.

The layers of the stem and of every token head are quantised alike; embeddings, norms and the output
embedding (also a head's own) are not. On CPU this saves memory and costs time. Nothing else of the project
knows about it: the decoder runs the model's own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from dynamo.common.validation import short_repr
from dynamo.loading.names import read_config

QUANTISATIONS = ("8bit", "4bit")
BITS = {"8bit": 8, "4bit": 4}
# Given a list, transformers drops its own, so the output embedding must be in it. Matched as suffixes.
KEPT = ["lm_head", "output_embedding", "correlator"]
# What the CUDA kernels ask for (bitsandbytes' documentation).
LEAST_CAPABILITY = {"8bit": (7, 5), "4bit": (6, 0)}


def loading_options(
    quantize: str | None, folder: Path, dtype: torch.dtype, device: torch.device, mapped: bool = False
) -> dict[str, Any]:
    """The options of `from_pretrained` that say how to quantise and where to put the layers.

    quantize None keeps the weights as they are saved; a folder saved quantised stays so. mapped: whether a
    device map says where the layers go. Raises ValueError where the machine, the library or the folder does
    not allow it.
    """
    saved = _saved_as(folder)
    if quantize is None and saved is None:
        return {}
    if quantize is not None and quantize not in QUANTISATIONS:
        raise ValueError(f"quantize: expected {' or '.join(QUANTISATIONS)} or none, got {quantize!r}")
    if None not in (saved, quantize) and saved != quantize:
        raise ValueError(f"quantize: {folder} is saved in {saved} already; load it so, not as {quantize}")
    _check_support(quantize or saved, device)
    options: dict[str, Any] = {}
    if not mapped:
        options["device_map"] = {"": device.index or 0 if device.type == "cuda" else device.type}
    if saved is None:
        options["quantization_config"] = _config(quantize, dtype)
    return options


def _config(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=KEPT,  # for 4 bits too, whatever its name says
    )


def _saved_as(folder: Path) -> str | None:
    fields = read_config(folder).get("quantization_config")
    if not fields:
        return None
    if not isinstance(fields, dict):
        raise ValueError(
            f"model: {folder}: its quantization_config is {short_repr(fields)}, expected names and values"
        )
    found = [name for name, bits in BITS.items() if fields.get(f"load_in_{bits}bit")]
    if not found:
        raise ValueError(
            f"model: {folder} is quantised by {short_repr(fields.get('quant_method'))}; "
            "only bitsandbytes in 8 or 4 bits is read here"
        )
    return found[0]


def _check_support(quantize: str, device: torch.device) -> None:
    _silence()
    try:
        import bitsandbytes
    except Exception as error:  # a missing CUDA library shows as OSError or RuntimeError
        raise ValueError(
            f"quantize: {quantize} needs bitsandbytes, which does not load here ({error}); "
            "install it from requirements.txt, or load the model unquantised"
        ) from None
    if device.type not in bitsandbytes.supported_torch_devices:
        raise ValueError(f"quantize: bitsandbytes does not support {device.type}; use cpu or cuda")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY[quantize]:
        least = ".".join(map(str, LEAST_CAPABILITY[quantize]))
        raise ValueError(
            f"quantize: {quantize} needs a GPU of compute capability {least} or more, "
            f"{torch.cuda.get_device_name(device)} has less; load the model unquantised"
        )


def _silence() -> None:
    """The library's words about what is as it should be.

    In 8 bits it says, per layer and pass, that it computes in float16 inside, which it always does. On some
    processors its import looks for a faster kernel in a package that this project does not use.
    """
    for module in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{module}").setLevel(logging.ERROR)


def mend_saving(model: nn.Module) -> None:
    """Let 4-bit layers be saved as they are, also after a pass.

    On processors with AVX512-BF16 the library packs such a layer at its first pass, its scales turned round,
    and where it is saved turns the weights back and the scales only if they are quantised themselves
    (bitsandbytes 0.50): what is saved, and the model itself, is wrong from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.register_state_dict_pre_hook(_unpacked)


def _unpacked(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    state = getattr(layer.weight, "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False) or state.original_nested:
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as inverse

    layer.weight.data, state = inverse(layer.weight.data, state)
    if state.absmax.ndim == 2:
        state.absmax = state.absmax.T.reshape(-1).float().contiguous()
    layer.weight.quant_state = state


def quantised_as(model: nn.Module) -> str:
    """ "8bit", "4bit", or "" for a model whose layers are as they were."""
    kinds = {"Linear8bitLt": "8bit", "Linear4bit": "4bit"}
    names = (type(module).__name__ for module in model.modules())
    return next((kinds[name] for name in names if name in kinds), "")


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's own weights and buffers, and what a quantised one keeps beside them."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    # bitsandbytes keeps scales beside the weight, and moves 8-bit ones to the layer at its first pass.
    for holder in (*own, getattr(module, "state", None)):
        state = getattr(holder, "quant_state", None)
        for part in (holder, state, getattr(state, "state2", None)):
            names = ("CB", "SCB", "absmax", "code", "offset")
            found = (part, *(getattr(part, name, None) for name in names))
            yield from (each for each in found if isinstance(each, Tensor))
