"""Which loaded models run on packed copies of their layers (`dynamo.decoding.packed`), and what these take.

What a copy takes depends on its weights, as 16 bits may hold them or not; the formulas are `LayerShape`'s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynamo.model.architectures import architecture_of, model_shape
from dynamo.model.shape import LARGEST_COPY, Copies, Powers

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


def copies_of(*models: nn.Module) -> list[Copies]:
    """Bytes of the packed copies that a `Decoder` of each of these models holds (`ModelShape.copies`)."""
    seen: dict[int, Powers] = {}  # by a layer's first weight: looking at them all takes a while
    return [_copies_of(model, seen) for model in models]


def _copies_of(model: nn.Module, seen: dict[int, Powers]) -> Copies:
    if not can_pack(model):
        return {}
    powers = []
    for layer in (layer for part in split_layers(model) for layer in part):
        first = id(next(layer.parameters()))
        if first not in seen:
            parts = architecture_of(model).layer_weights(layer).packed()
            seen[first] = {name: power_of_copy(weight) for name, (weight, _) in parts.items()}
        powers.append(seen[first])
    embedding = model.get_output_embeddings()
    output = type(embedding) is nn.Linear and fits_half(embedding.weight)
    return model_shape(model).copies(powers, output)


def is_half(weight: Tensor) -> bool:
    """Whether 16 bits hold every number of it exactly."""
    # In pieces that stay in the processor's caches and are too small for several threads.
    return all(torch.equal(piece.half().float(), piece) for piece in weight.detach().flatten().split(2**15))


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
