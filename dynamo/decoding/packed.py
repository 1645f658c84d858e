"""Decoder layers as few operators, for models on CPU that wait for operators and for memory.

Matrices that read or sum the same numbers are one. Layers that read the same hidden states (a model's last
layer and its extra heads) run side by side.

Decoding reads every weight once a pass, so their size sets the pace. Weights that are half-precision numbers
times one power of two, as those of checkpoints saved in float16 or bfloat16 are, are therefore stored in 16
bits and widened on the way into the sum, which stays float32: same numbers as the layers' own modules up to
float32 rounding, at the price of a second copy of the weights. Fewer bits are `dynamo.decoding.few_bits`.

For one text's few new positions the last layer and the heads are one compiled loop (`dynamo.kernels`): they
need more than keys and values only at the last positions, so little that torch takes longer to call its
operators, some nine a layer, than to run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo import kernels
from dynamo.cooccurrence.trie import side_by_side
from dynamo.decoding import few_bits
from dynamo.decoding.attention import AttentionStep
from dynamo.kernels.layouts import in_16_bits, in_32_bits
from dynamo.model import LayerWeights
from dynamo.model.architectures import Norm
from dynamo.model.packing import is_half, power_of_copy

MOST_ROWS = 8  # from about here on F.linear is as fast
WEIGHTS = ("own", "int8", "int4")

Product = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)


class LayerCopies:
    """A layer's matrices (`LayerWeights.packed`) as products by name.

    weights: one of `WEIGHTS`; powers: of each matrix, that of two times which 16 bits hold it, None where
    there is none such or weights are not "own".
    """

    def __init__(self, layer: LayerWeights, weights: str = "own"):
        parts = layer.packed()
        self.powers = {
            name: power_of_copy(weight) if weights == "own" else None for name, (weight, _) in parts.items()
        }
        self.products = {
            name: matrix_product(weights, *part, self.powers[name]) for name, part in parts.items()
        }

    @property
    def half(self) -> bool:
        """Whether 16 bits hold every matrix."""
        return None not in self.powers.values()


class PackedLayers:
    """`n` layers over the same hidden states, with caches in neighbouring slots from `slot` on.

    copies: each layer's; looped: whether one text's few positions go through the compiled loop, which has
    copies of its own.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], copies: Sequence[LayerCopies], slot: int, looped: bool = False
    ):
        first = layers[0]
        self.slot = slot
        self.hidden = len(first.norms[0][0])
        self.eps, self.scaling, self.activation = first.eps, first.scaling, first.activation
        self.gated, self.looped = first.gate is not None, None
        with torch.inference_mode():
            self.products = [each.products for each in copies]
            self._keep_norms(layers)
            if looped:
                self.looped = LoopedLayers(layers, slot)

    def _keep_norms(self, layers: Sequence[LayerWeights]) -> None:
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, n: int, step: AttentionStep, all_positions: bool) -> Tensor:
        """The first `n` layers' outputs, (n, new, hidden) or, unless `all_positions`, (n, queries, hidden),
        from hidden_states (new, hidden).
        """
        if self.looped is not None and not all_positions and step.alone and step.loop is not None:
            return self.looped.forward(hidden_states, 0, n, step, apart=True)
        return self._forward(hidden_states, n, step, all_positions)

    def _forward(self, hidden_states: Tensor, n: int, step: AttentionStep, all_positions: bool) -> Tensor:
        raise NotImplementedError

    def _inner(self, layer: int, normed: Tensor) -> Tensor:
        """The MLP's inner values, (rows, inner)."""
        wide = self.products[layer]["expand"](normed)
        if not self.gated:
            return self.activation(wide)
        gate, wide = wide.chunk(2, dim=-1)
        return self.activation(gate).mul_(wide)


class ParallelLayers(PackedLayers):
    """Layers whose attention and MLP both read the layer's input."""

    def _keep_norms(self, layers: Sequence[LayerWeights]) -> None:
        # (n, 2, 1, hidden) each: the norm before attention and that before the MLP differ only in these.
        self.gain, self.shift = (
            torch.stack([torch.stack([norm[part] for norm in layer.norms]) for layer in layers]).unsqueeze(2)
            for part in (0, 1)
        )

    def _forward(self, hidden_states: Tensor, n: int, step: AttentionStep, all_positions: bool) -> Tensor:
        # One normalisation serves both norms of every layer here.
        normed = F.layer_norm(hidden_states, (self.hidden,), None, None, self.eps)
        normed = torch.addcmul(self.shift[:n], self.gain[:n], normed)  # (n, 2, new, hidden)
        projected = [self.products[i]["project"](normed[i, 0]) for i in range(n)]  # n of (new, projected)
        attended = step.attend_packed(projected, self.slot, self.scaling, all_positions)
        inputs = normed[:, 1]
        if not all_positions:
            inputs, hidden_states = step.select_queries(inputs), step.select_queries(hidden_states)
        outputs = []
        for i in range(n):
            joined = torch.cat((attended[i], self._inner(i, inputs[i])), dim=-1)
            outputs.append(self.products[i]["contract"](joined))
        joined = outputs[0].unsqueeze(0) if n == 1 else torch.stack(outputs)  # (n, queries, hidden)
        return joined.add_(hidden_states)


class SequentialLayers(PackedLayers):
    """Layers whose MLP reads what attention added to the layer's input."""

    def _keep_norms(self, layers: Sequence[LayerWeights]) -> None:
        self.norms = [layer.norms for layer in layers]

    def _forward(self, hidden_states: Tensor, n: int, step: AttentionStep, all_positions: bool) -> Tensor:
        projected = [self._before(i, hidden_states) for i in range(n)]  # n of (new, projected)
        attended = step.attend_packed(projected, self.slot, self.scaling, all_positions)
        if not all_positions:
            hidden_states = step.select_queries(hidden_states)
        outputs = [self._after(i, attended[i], hidden_states) for i in range(n)]
        return outputs[0].unsqueeze(0) if n == 1 else torch.stack(outputs)  # (n, queries, hidden)

    def _before(self, layer: int, hidden_states: Tensor) -> Tensor:
        """Attention's queries, keys and values."""
        return self.products[layer]["project"](self._normed(hidden_states, self.norms[layer][0]))

    def _after(self, layer: int, attended: Tensor, hidden_states: Tensor) -> Tensor:
        """The layer's output."""
        between = self.products[layer]["output"](attended).add_(hidden_states)
        inner = self._inner(layer, self._normed(between, self.norms[layer][1]))
        return self.products[layer]["contract"](inner).add_(between)

    def _normed(self, states: Tensor, norm: Norm) -> Tensor:
        gain, shift = norm
        if shift is None:
            return rms_normed(states, gain, self.eps)
        return F.layer_norm(states, (self.hidden,), gain, shift, self.eps)


def pack(
    layers: Sequence[LayerWeights], copies: Sequence[LayerCopies], slot: int, looped: bool = False
) -> PackedLayers:
    """`PackedLayers` of the kind that these layers are."""
    kind = ParallelLayers if layers[0].parallel else SequentialLayers
    return kind(layers, copies, slot, looped)


class LoopedLayers:
    """Copies of layers as `kernels.layers.parallel_layers` wants them, with caches from `slot` on.

    Weights are kept in 16 bits where these hold all of them.
    """

    def __init__(self, layers: Sequence[LayerWeights], slot: int):
        self._slot, self._scaling = slot, float(layers[0].scaling)
        names = ("project", "expand", "contract")
        packed = [layer.packed() for layer in layers]
        half = all(is_half(weight) for parts in packed for weight, _ in parts.values())
        arrays = [
            _array([torch.stack([part for norm in layer.norms for part in norm]) for layer in layers]),
            *(_matrices([parts[name][0] for parts in packed], half) for name in names),
            _array([torch.cat([_bias(*parts[name]) for name in names])[None] for parts in packed]),
        ]
        # Read once a pass from end to end, they come faster from few large pages.
        self._eps, self._weights = float(layers[0].eps), side_by_side(arrays)

    def forward(self, hidden_states: Tensor, first: int, n: int, step: AttentionStep, apart: bool) -> Tensor:
        """`n` layers from `first` on, for one text where the step has its loop, hidden_states (new, hidden):
        one after the other, (1, new, hidden), or `apart`, each on the same, (n, queries, hidden)."""
        weights = (each[first : first + n] for each in self._weights)
        place = (tuple(step.rotary), step.memory[:, :, 0], self._slot + first, step.start)
        outputs = kernels.loops().parallel_layers(
            hidden_states.numpy(), n, apart, self._eps, *weights, *place, self._scaling, step.queries
        )
        return torch.from_numpy(outputs)

    def normed(self, states: Tensor, norm: nn.Module) -> Tensor:
        """Behind the model's final norm, states (.., hidden)."""
        return norm(states)


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias


def _array(each: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(tuple(each)).detach().numpy()


def _matrices(weights: Sequence[Tensor], half: bool) -> np.ndarray:
    """(layers, ..), each as the compiled products have it in 16 or in 32 bits."""
    return _array([in_16_bits(each, 1.0) if half else in_32_bits(each) for each in weights])


def rms_normed(states: Tensor, gain: Tensor, eps: float) -> Tensor:
    """(rows, hidden) -> (rows, hidden); for few rows in the compiled loop."""
    loops = kernels.loops() if len(states) <= MOST_ROWS else None
    if loops is None:
        return F.rms_norm(states, gain.shape, gain, eps)
    return torch.from_numpy(loops.rms_normed(states.numpy(), gain.detach().numpy(), float(eps)))


def matrix_product(
    weights: str, weight: Tensor, bias: Tensor | None = None, power: float | None = None
) -> Product:
    """x @ weight.T + bias for the few rows of a chunk, weight (out, in) kept as `weights` says; power: as in
    `few_rows_product`."""
    if weights == "own":
        return few_rows_product(weight, bias, power)
    return {"int8": few_bits.int8_product, "int4": few_bits.int4_product}[weights](weight, bias)


def few_rows_product(weight: Tensor, bias: Tensor | None, power: float | None) -> Product:
    """x @ weight.T + bias in float32, weight (out, in); it is kept in 16 bits where there is a power of two
    times which they hold it (`power_of_copy`)."""
    if power is not None:
        multiply = torch.ops.quantized.linear_dynamic_fp16.default
        if power == 1:
            packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
            return lambda x: multiply(x, packed)
        packed = torch.ops.quantized.linear_prepack_fp16((weight * power).contiguous(), None)
        back = 1 / power
        if bias is None:
            return lambda x: multiply(x, packed).mul_(back)
        return lambda x: multiply(x, packed).mul_(back).add_(bias)
    return lambda x: few_rows_linear(x, weight, bias)


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for the few rows of a chunk: (rows, in), (out, in), (out,) -> (rows, out).

    With the weight as the left factor it is read once for all rows; F.linear reads it about once for each. A
    lone row goes as two: the matrix-vector kernel is slower than the matrix-matrix one where the weight is
    not in the cache.
    """
    rows = len(x)
    if rows > MOST_ROWS:
        return F.linear(x, weight, bias)
    columns = (x if rows > 1 else x.repeat(2, 1)).t()  # (in, rows)
    result = torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)
    return result[:, :rows].t().contiguous()
