"""A model's last layer and its extra heads in one compiled loop (`dynamo.kernels`), for a lane's few new
positions on CPU.

Of these layers only the last position, or the few that exact mode asks for, need more than keys and values:
so little that torch takes longer to call its operators, some nine a layer, than to run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo import kernels
from dynamo.cooccurrence.trie import side_by_side
from dynamo.decoding.cache import OneLane

MOST_NUMBERS = (
    2**23
)  # of weights: more leave the processor's caches, and several threads read faster than one

Part = tuple[Tensor, Tensor | None]  # a weight (out, in) and its bias (out,)


def is_half(weight: Tensor) -> bool:
    """Whether 16 bits hold every number of it exactly."""
    return torch.equal(weight.half().float(), weight)


def can_loop(layers: Sequence[GPTNeoXLayer]) -> bool:
    """Whether these layers, which can be packed, are few and small enough for the loop, and there is one."""
    return _has_loop(sum(map(_numbers, layers))) and all(activation_of(layer) is F.gelu for layer in layers)


def _has_loop(numbers: int) -> bool:
    loops = kernels.loops()
    return loops is not None and loops.widens_halves() and numbers <= MOST_NUMBERS


def activation_of(layer: GPTNeoXLayer) -> Callable[[Tensor], Tensor]:
    """The function itself where transformers wraps it in a module."""
    return getattr(layer.mlp.act, "act", layer.mlp.act)


def looped_bytes(layers: Sequence[GPTNeoXLayer], holds: Callable[[Tensor], bool] = is_half) -> int:
    """What `LoopedLayers` of these take; holds: which weights 16 bits hold. 0 where there is no such loop."""
    if not can_loop(layers):
        return 0
    each = 2 if all(holds(linear.weight) for layer in layers for linear in _linears(layer)) else 4
    # Four rows of norms; a bias for each of queries, keys, values, inner values and the output.
    singles = sum(8 * layer.mlp.dense_h_to_4h.in_features + _inner(layer) for layer in layers)
    return each * sum(map(_numbers, layers)) + 4 * singles


def looped_bytes_of(layers: int, hidden: int) -> int:
    """The same of so many Pythia layers of this width whose weights 16 bits hold, as they will be loaded."""
    numbers = 12 * hidden**2 * layers
    return 2 * numbers + 4 * 12 * hidden * layers if _has_loop(numbers) else 0


class LoopedLayers:
    """Copies of layers as `kernels.layers.side_by_side` wants them, with caches from `slot` on.

    project, contract: each layer's, as `PackedLayers` orders and joins them. Weights are kept in 16 bits
    where these hold all of them.
    """

    def __init__(
        self, layers: Sequence[GPTNeoXLayer], project: Sequence[Part], contract: Sequence[Part], slot: int
    ):
        first = layers[0]
        self._slot, self._scaling = slot, float(first.attention.scaling)
        expand = [(layer.mlp.dense_h_to_4h.weight, layer.mlp.dense_h_to_4h.bias) for layer in layers]
        parts = (project, expand, contract)
        half = all(is_half(weight) for part in parts for weight, _ in part)
        arrays = [
            _stacked([torch.stack(_norms(layer)) for layer in layers]),
            *(_matrices([weight for weight, _ in part], half) for part in parts),
            _stacked([torch.cat([_bias(*each) for each in layer]) for layer in zip(*parts, strict=True)]),
        ]
        # Read once a pass from end to end, they come faster from few large pages.
        self._weights = (float(first.input_layernorm.eps), *side_by_side(arrays))

    def forward(self, hidden_states: Tensor, n: int, step: OneLane) -> Tensor:
        """As `PackedLayers.forward` of the first `n`, where the step has its loop."""
        place = (tuple(step.turns), step.memory, self._slot, step.start)
        outputs = kernels.loops().side_by_side(
            hidden_states.numpy(), n, *self._weights, *place, self._scaling, step.queries
        )
        return torch.from_numpy(outputs)


def _norms(layer: GPTNeoXLayer) -> list[Tensor]:
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return [each for norm in norms for each in (norm.weight, norm.bias)]


def _linears(layer: GPTNeoXLayer) -> tuple[nn.Linear, ...]:
    attention, mlp = layer.attention, layer.mlp
    return attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h


def _numbers(layer: GPTNeoXLayer) -> int:
    return sum(linear.in_features * linear.out_features for linear in _linears(layer))


def _inner(layer: GPTNeoXLayer) -> int:
    return layer.mlp.dense_h_to_4h.out_features


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias


def _stacked(each: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(tuple(each)).detach().numpy()


def _matrices(weights: Sequence[Tensor], half: bool) -> np.ndarray:
    """(layers, out, in): float32, or the bits of float16 as uint16."""
    stacked = torch.stack(tuple(weights)).detach()
    return stacked.half().numpy().view(np.uint16) if half else stacked.numpy()
