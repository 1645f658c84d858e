"""Products with weights in 8 or 4 bits on CPU: in compiled loops (`dynamo.decoding.in_loops`), and by torch's
own kernels where there are none.

int8: a scale for each of the weight's rows. int4: each group of 32 along a row has its least and its largest
number on a grid of 16, as Q4_1 of llama.cpp has them: weights that were read from such a file get the file's
own bits back.

Beside weights in 8 bits activations keep 16 in the loops, scaled by their own row's largest; torch's kernels
work in bfloat16, which has 8. A row's largest would be too coarse a scale for 8 bits: a few of a Llama's
activations are very large. Beside weights in 4 bits each 16 of them have a scale of their own, and 8 bits are
enough. What a row gives does not depend on the rows beside it (in the loops up to the rounding of a few
float32 sums), so there is one distribution, which exact mode keeps to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynamo import kernels
from dynamo.decoding.in_loops import InLoop
from dynamo.kernels.layouts import in_4_bits, in_8_bits
from dynamo.model.shape import LayerShape

GROUP = 32  # weights along a row that share a scale and a least number
BYTES = {"int8": 1, "int4": 1 / 2 + 4 / GROUP}  # of a weight with its share of these two
ROWS = 16  # the 4-bit kernel's blocks
LEAST = torch.finfo(torch.float32).tiny  # a scale of weights that are all the same


def fits_few_bits(layer: LayerShape) -> bool:
    """Whether the kernels take the matrices of such layers; they read past the end of other widths."""
    read = (layer.hidden, layer.inner, layer.heads * layer.head_dim)
    return all(width % GROUP == 0 for width in read) and layer.projected % ROWS == 0


def in_loops(weights: str) -> bool:
    """Whether products with these weights can be compiled loops."""
    loops = kernels.loops()
    return loops is not None and weights in BYTES and (weights == "int8" or loops.widens_halves())


def int8_product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x @ weight.T + bias with the weight as `in_rows` has it."""
    bits, scales = in_rows(weight)
    if in_loops("int8"):
        return InLoop(in_8_bits(bits, scales), len(weight), bias)
    scales = scales.bfloat16()
    multiply = torch.ops.aten._weight_int8pack_mm.default
    return _shifted(lambda x: multiply(x, bits, scales), bias)


def in_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bits -127 to 127 (out, in) and scales (out,): a weight is their product."""
    # Rounded as torch's kernel reads them before the bits are chosen, so that these make up for it.
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(LEAST).bfloat16().float()
    return (weight / scales[:, None]).round().to(torch.int8), scales


def int4_product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x @ weight.T + bias with the weight as `in_groups` has it."""
    looped = in_loops("int4")
    bits, scales, least = in_groups(weight, looped)
    if looped:
        return InLoop(in_4_bits(bits, scales, least), len(weight), bias)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(bits, 1)
    grids = torch.stack([scales, least + 8 * scales], dim=-1).bfloat16()  # (out, groups, 2)
    grids = grids.transpose(0, 1).contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return _shifted(lambda x: multiply(x, packed, GROUP, grids), bias)


def in_groups(weight: Tensor, half: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Bits 0 to 15 (out, in), scales and least numbers (out, groups): a weight is bits * scale + least.

    half: as the loop has them, in float16; otherwise as torch's kernel, scale and middle in bfloat16.
    """
    groups = weight.unflatten(1, (-1, GROUP))  # (out, groups, 32)
    least, most = groups.aminmax(dim=-1)
    step = (most - least) / 15
    if half:
        scales, least = step.half().float(), least.half().float()
    else:
        scales, middle = step.bfloat16().float(), (least + 8 * step).bfloat16().float()
        least = middle - 8 * scales
    bits = ((groups - least[..., None]) / scales.clamp_min(LEAST)[..., None]).round()
    return bits.clamp(0, 15).int().flatten(1), scales, least


def _shifted(multiply: Callable[[Tensor], Tensor], bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if bias is None:
        return lambda x: multiply(x.bfloat16().contiguous()).float()
    return lambda x: multiply(x.bfloat16().contiguous()).float().add_(bias)
