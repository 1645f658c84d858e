"""Matrices and whole passes of a Llama as the compiled loops have them (`dynamo.kernels.products`, `passes`).

For one text's few new positions all layers are one call: between calls of operators, threads would be stopped
and started some hundred times a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from dynamo import kernels
from dynamo.cooccurrence.trie import in_large_pages, side_by_side
from dynamo.decoding.attention import AttentionStep
from dynamo.decoding.shared import Shared
from dynamo.kernels.layouts import in_16_bits
from dynamo.model import LayerWeights

MATRICES = ("project", "output", "expand", "contract")


class InLoop:
    """x @ weight.T + bias for weights (width, in) in a flat array, `numbers`."""

    def __init__(self, numbers: Tensor, width: int, bias: Tensor | None):
        self.numbers = numbers.numpy()
        self.plus = np.zeros((1, width), np.float32) if bias is None else bias.detach().numpy()[None]

    def in_large_pages(self) -> InLoop:
        """The same, for numbers of many megabytes: read in small pages, they come slower."""
        (self.numbers,) = side_by_side([self.numbers])
        return self

    def __call__(self, x: Tensor) -> Tensor:
        given = x.contiguous().numpy(), self.numbers, self.plus
        alone = torch.get_num_threads() == 1
        found = kernels.loops().product(*given) if alone else kernels.run("product_on_all_cores", *given)
        return torch.from_numpy(found)


def half_product(weight: Tensor, bias: Tensor | None, power: float) -> InLoop:
    """With the weight in 16 bits, which hold it times that power of two."""
    return InLoop(in_16_bits(weight, power), len(weight), bias)


class GatedPass:
    """All layers of a Llama with its heads, whose products are `InLoop`; these share their weights with it.

    copies: of each layer, as its decoder has them; products: by layer and by `MATRICES`.
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        copies: Sequence[Shared],
        products: Sequence[dict[str, InLoop]],
    ):
        self._copies = list(copies)
        self._eps, self._scaling = float(layers[0].eps), float(layers[0].scaling)
        self._inner = len(layers[0].expand[0])
        self._gains = _array([torch.stack([gain for gain, _ in layer.norms]) for layer in layers])
        self._biases = np.stack([each["project"].plus for each in products])
        matrices: list[np.ndarray] = []
        for name in MATRICES:  # one by one, so that not all are there twice
            own = [each[name] for each in products]
            arrays = [each.numbers for each in own]
            piece = in_large_pages(len(arrays) * arrays[0].nbytes).view(arrays[0].dtype)
            stacked = np.stack(arrays, out=piece.reshape(len(arrays), -1))
            for each, numbers in zip(own, stacked, strict=True):
                each.numbers = numbers
            matrices.append(stacked)
        self._matrices = tuple(matrices)
        self._loops = kernels.loops()
        for other in list(_passes):
            if self.begins_with(other._copies):
                other._matrices = self._matrices
        _passes.add(self)

    def begins_with(self, copies: Sequence[Shared]) -> bool:
        """Whether these are its first layers, all or not: it then runs passes of such a model as well."""
        first = self._copies[: len(copies)]
        return len(first) == len(copies) and all(map(is_, first, copies))

    def forward(self, hidden_states: Tensor, first: int, n: int, step: AttentionStep, apart: bool) -> Tensor:
        """`n` layers from `first` on, hidden_states (new, hidden): one after the other, (1, new, hidden), or
        `apart`, each on the same, (n, queries, hidden)."""
        states = hidden_states.contiguous().numpy()
        queries = step.queries if apart else len(states)
        place = (*step.rotary, step.memory[:, :, 0], step.start, self._scaling)
        weights = (self._inner, self._eps, self._gains, self._matrices, self._biases)
        found = kernels.run("layers_of_a_pass", states, n, first, apart, queries, *weights, place)
        return torch.from_numpy(found)

    def normed(self, states: Tensor, norm: nn.Module) -> Tensor:
        """Behind the model's final norm, which is as the layers' are, states (.., hidden)."""
        rows = states.flatten(0, -2).numpy()
        found = self._loops.rms_normed(rows, norm.weight.detach().numpy(), self._eps)
        return torch.from_numpy(found).view_as(states)


_passes: WeakSet[GatedPass] = WeakSet()


def gated_pass(
    layers: Sequence[LayerWeights],
    copies: Sequence[Shared],
    products: Callable[[], Sequence[dict[str, InLoop]]],
) -> GatedPass:
    """`GatedPass`, one that is there already where another decoder's begins with the same layers."""
    held = next((each for each in list(_passes) if each.begins_with(copies)), None)
    return held or GatedPass(layers, copies, products())


def _array(each: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(tuple(each)).detach().numpy()
