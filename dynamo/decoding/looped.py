"""A model's last layer and its extra heads in one compiled loop (`dynamo.kernels`), for a lane's few new
positions on CPU.

Of these layers only the last position, or the few that exact mode asks for, need more than keys and values:
so little that torch takes longer to call its operators, some nine a layer, than to run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo import kernels
from dynamo.cooccurrence.trie import side_by_side
from dynamo.decoding.cache import OneLane
from dynamo.model.packing import is_half

Part = tuple[Tensor, Tensor | None]  # a weight (out, in) and its bias (out,)


def activation_of(layer: GPTNeoXLayer) -> Callable[[Tensor], Tensor]:
    """The function itself where transformers wraps it in a module."""
    return getattr(layer.mlp.act, "act", layer.mlp.act)


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


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias


def _stacked(each: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(tuple(each)).detach().numpy()


def _matrices(weights: Sequence[Tensor], half: bool) -> np.ndarray:
    """(layers, out, in): float32, or the bits of float16 as uint16."""
    stacked = torch.stack(tuple(weights)).detach()
    return stacked.half().numpy().view(np.uint16) if half else stacked.numpy()
