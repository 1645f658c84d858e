"""Products with weights in 8 or 4 bits on CPU: 8 in a compiled loop (`dynamo.kernels`), 4 by torch's own
kernel, and 8 too where there are no loops.

int8: a scale for each of the weight's rows. int4: each group of 32 along a row has its least and its largest
number on a grid of 16, as Q4_1 of llama.cpp has them: weights that were read from such a file get the file's
own bits back.

Only weights have fewer bits. Activations in 8 bits would lose much: a few of a Llama's are very large, and
set the scale of all others. torch's products are in bfloat16 with wider sums, the loop's in float32. What a
row gives does not depend on the rows beside it (in the loop up to the rounding of float32 sums), so there is
one distribution, which exact mode keeps to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynamo import kernels
from dynamo.model.shape import LayerShape

GROUP = 32  # weights along a row that share a scale and a zero
BYTES = {"int8": 1, "int4": 1 / 2 + 4 / GROUP}  # of a weight with its share of these two
ROWS = 16  # the 4-bit kernel's blocks
LEAST = torch.finfo(torch.float32).tiny  # a scale of weights that are all the same


def fits_few_bits(layer: LayerShape) -> bool:
    """Whether the kernels take the matrices of such layers; they read past the end of other widths."""
    read = (layer.hidden, layer.inner, layer.heads * layer.head_dim)
    return all(width % GROUP == 0 for width in read) and layer.projected % ROWS == 0


def int8_product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x @ weight.T + bias with the weight as `in_rows` has it."""
    bits, scales = in_rows(weight)
    loops = kernels.loops()
    if loops is not None:
        in_loop, on_all_cores = loops.product, loops.product_on_all_cores
        weights = bits.numpy(), scales.numpy()

        def looped(x: Tensor) -> Tensor:
            threads = torch.get_num_threads()
            if threads > 1:
                loops.use_threads(threads)  # numba counts its own
            run = in_loop if threads == 1 else on_all_cores
            return torch.from_numpy(run(x.contiguous().numpy(), *weights))

        return looped if bias is None else lambda x: looped(x).add_(bias)
    scales = scales.bfloat16()
    multiply = torch.ops.aten._weight_int8pack_mm.default
    return _shifted(lambda x: multiply(x, bits, scales), bias)


def in_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bits -127 to 127 (out, in) and scales (out,): a weight is their product."""
    # Rounded as the kernel reads them before the bits are chosen, so that these make up for it.
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(LEAST).bfloat16().float()
    return (weight / scales[:, None]).round().to(torch.int8), scales


def int4_product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x @ weight.T + bias with the weight as `in_groups` has it."""
    bits, scales, zeros = in_groups(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(bits, 1)
    grids = torch.stack([scales, zeros], dim=-1).bfloat16().transpose(0, 1).contiguous()  # (groups, out, 2)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return _shifted(lambda x: multiply(x, packed, GROUP, grids), bias)


def in_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits 0 to 15 (out, in), scales and zeros (out, groups): a weight is (bits - 8) * scale + zero."""
    groups = weight.unflatten(1, (-1, GROUP))  # (out, groups, 32)
    least, most = groups.aminmax(dim=-1)
    step = (most - least) / 15
    scales, zeros = step.bfloat16().float(), (least + 8 * step).bfloat16().float()
    bits = ((groups - zeros[..., None]) / scales.clamp_min(LEAST)[..., None]).round() + 8
    return bits.clamp(0, 15).int().flatten(1), scales, zeros


def _shifted(multiply: Callable[[Tensor], Tensor], bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if bias is None:
        return lambda x: multiply(x.bfloat16().contiguous()).float()
    return lambda x: multiply(x.bfloat16().contiguous()).float().add_(bias)
