"""Which loaded models run on packed copies of their layers (`dynamo.decoding.packed`), and what these take.

What a copy takes depends on its weights, as 16 bits may hold them or not; the formulas are `LayerShape`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dynamo.model.architectures import LayerWeights, architecture_of, model_shape
from dynamo.model.shape import LARGEST_COPY

PLAIN = ("torch.nn.", "transformers.")  # where the modules are from that these formulas know


def split_layers(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """All layers but the base's last; that one and the extra heads', which may go side by side."""
    # The stem's output goes into all of the rest, which then can be one batch of products.
    layers = architecture_of(model).layers(getattr(model, "backbone", model))
    heads = getattr(model, "token_heads", ())
    return layers[:-1], [layers[-1], *(layer for head in heads for layer in head.layers)]


def can_pack(model: nn.Module, weights: str = "own") -> bool:
    """Whether a `Decoder` of this model can run on packed copies.

    Its layers must be plain: float32 on CPU, neither quantised, hooked nor with an adapter around a module;
    and their copies not too large.
    Queries and keys that are normalised by head go through the modules. weights: "own", or another
    for copies in 8 bits or fewer.
    """
    shape = model_shape(model)
    if shape.layer.qk_norm or not shape.side_by_side:
        return False
    stem, finals = split_layers(model)
    modules = [module for layer in (*stem, *finals) for module in layer.modules()]
    parameters = [weight for module in modules for weight in module.parameters(recurse=False)]
    count = sum(weight.numel() for weight in parameters)
    return (
        all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in parameters)
        # accelerate's hooks move weights when a module is called, and a copy would not call it.
        and not any(hasattr(module, "_hf_hook") for module in modules)
        # A subclass, quantised or an adapter, computes something else than its weight says.
        and all(type(module) is nn.Linear for module in modules if isinstance(module, nn.Linear))
        and all(type(module).__module__.startswith(PLAIN) for module in modules)
        and (
            (4 if weights == "own" else 1) * count <= LARGEST_COPY
            or (2 * count <= LARGEST_COPY and all(map(fits_half, parameters)))
        )
    )


def bytes_of_copies(model: nn.Module) -> int:
    """Bytes of the packed copies that a `Decoder` of this model holds; 0 where it has none."""
    if not can_pack(model):
        return 0
    architecture, shape = architecture_of(model), model_shape(model)
    stem, finals = split_layers(model)
    halves = []  # of each layer, by the matrix's name: looked at once, as that reads every weight
    for layer in (*stem, *finals):
        parts = architecture.layer_weights(layer).packed()
        halves.append({name: fits_half(weight) for name, (weight, _) in parts.items()})
    total = sum(map(shape.layer.packed_bytes, halves))
    layers, in_loop = [*stem, *finals], shape.layer.in_loop(len(halves), len(finals))
    embedding = model.get_output_embeddings()
    passes = shape.layer.fits_passes(len(halves)) and all(all(each.values()) for each in halves)
    if type(embedding) is nn.Linear and fits_half(embedding.weight):
        total += shape.embedding_copy_bytes(passes or in_loop == len(layers))
    if passes:
        total += len(layers) * shape.layer.passes_bytes()
    if in_loop:
        half = all_half(map(architecture.layer_weights, layers[-in_loop:]))
        total += in_loop * shape.layer.looped_bytes(half)
    return total


def has_halves_in_loops(model: nn.Module) -> bool:
    """Whether a `Decoder` has further copies in 16 bits, for passes in one compiled loop."""
    architecture, shape = architecture_of(model), model_shape(model)
    layers = [architecture.layer_weights(layer) for part in split_layers(model) for layer in part]
    return shape.layer.fits_passes(len(layers)) and all(
        fits_half(weight) for layer in layers for weight, _ in layer.packed().values()
    )


def all_half(layers: Iterable[LayerWeights]) -> bool:
    """Whether 16 bits hold every matrix of these layers."""
    return all(is_half(weight) for each in layers for weight, _ in each.packed().values())


def is_half(weight: Tensor) -> bool:
    """Whether 16 bits hold every number of it exactly."""
    return torch.equal(weight.half().float(), weight)


def power_to_half(weight: Tensor) -> float | None:
    """The power of two times which 16 bits hold every number of it exactly; None where there is no such.

    float16 has more digits than bfloat16 and fewer powers of two, which are enough around a matrix's largest.
    """
    if is_half(weight):
        return 1.0
    power = 2.0 ** (15 - math.frexp(weight.abs().max().item())[1])  # the largest float16 is below 2^16
    return power if is_half(weight * power) else None


def power_of_copy(weight: Tensor) -> float | None:
    """That power, where this machine has the kernel that reads 16-bit weights into float32 sums."""
    return power_to_half(weight) if "fbgemm" in torch.backends.quantized.supported_engines else None


def fits_half(weight: Tensor) -> bool:
    return power_of_copy(weight) is not None
