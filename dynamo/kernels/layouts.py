"""Matrices as the products of `dynamo.kernels.products` have them: flat, eight rows side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_8_bits(bits: Tensor, scales: Tensor) -> Tensor:
    """bits (width, in) int8, scales (width,) -> flat int8."""
    return _joined(_interleaved(bits, 4), _by_eights(scales.float())).view(torch.int8)


def in_4_bits(bits: Tensor, scales: Tensor, least: Tensor) -> Tensor:
    """bits (width, in) 0 to 15, scales and least (width, groups) -> flat uint8."""
    groups = scales.shape[1]
    fours = _by_eights(bits.to(torch.uint8)).unflatten(2, (groups, 2, 2, 2, 4)).permute(5, 0, 2, 4, 1, 3, 6)
    both = fours[0] | fours[1] << 4  # (.., groups, 2, 8, 2, 4)
    grids = (_by_eights(each.half()).transpose(1, 2) for each in (scales, least))  # (.., groups, 8)
    return _joined(both.flatten(2), *grids)


def in_16_bits(weight: Tensor, power: float) -> Tensor:
    """weight (width, in), which float16 holds times a power of two -> flat uint16."""
    numbers = _interleaved((weight * power).half(), 2)
    return _joined(numbers, torch.full((len(numbers), 8), 1 / power)).view(torch.uint16)


def in_32_bits(weight: Tensor) -> Tensor:
    """weight (width, in) -> flat float32."""
    return _interleaved(weight.float(), 2).flatten()


def _interleaved(rows: Tensor, together: int) -> Tensor:
    """(width, in) -> (width / 8, 8 in): by turns, so many numbers of each of eight rows."""
    return _by_eights(rows).unflatten(2, (-1, together)).transpose(1, 2).flatten(1)


def _by_eights(rows: Tensor) -> Tensor:
    """(width, ..) -> (width / 8, 8, ..), filled up with zeros."""
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, -len(rows) % 8)).unflatten(0, (-1, 8))


def _joined(*parts: Tensor) -> Tensor:
    """Flat, their last dimensions' bytes end to end."""
    return torch.cat([each.contiguous().view(torch.uint8) for each in parts], dim=-1).flatten()
