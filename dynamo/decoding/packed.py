"""GPT-NeoX layers as few operators, for models on CPU that wait for operators and for memory.

Attention output and the MLP's second half are one matrix. Layers that read the same hidden states (a model's
last layer and its extra heads) run side by side.

Decoding reads every weight once a pass, so their size sets the pace. Weights that are exactly half-precision
numbers, as those of checkpoints saved in float16 are, are therefore stored in 16 bits and widened on the way
into the sum, which stays float32: same numbers as the layers' own modules up to float32 rounding, at the
price of a second copy of the weights, half or whole. Who asks for int8 gets a quarter, and logits that are
only near the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo.decoding.cache import Lanes, OneLane
from dynamo.decoding.looped import LoopedLayers, activation_of
from dynamo.model.packing import fits_half

MOST_ROWS = 8  # from about here on F.linear is as fast
WEIGHTS = ("own", "int8")

Product = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)


class PackedLayers:
    """`n` layers over the same hidden states, with caches in neighbouring slots from `slot` on.

    weights: one of `WEIGHTS`; looped: whether a lane's few positions may go through the compiled loop, which
    has copies of its own.
    """

    def __init__(
        self,
        layers: Sequence[GPTNeoXLayer],
        slot: int,
        heads: int,
        weights: str = "own",
        looped: bool = False,
    ):
        first = layers[0]
        self.slot = slot
        self.hidden = first.attention.dense.out_features
        self.heads = heads
        self.eps = first.input_layernorm.eps
        self.scaling = first.attention.scaling
        self.activation = activation_of(first)
        self.weights = weights
        with torch.inference_mode():
            norms = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in layers]
            self.gain = _stacked([[norm.weight for norm in pair] for pair in norms])
            self.shift = _stacked([[norm.bias for norm in pair] for pair in norms])
            project = [self._projection(layer.attention.query_key_value) for layer in layers]
            contract = [self._contraction(layer) for layer in layers]
            self.project = [matrix_product(weights, *part) for part in project]
            self.expand = [product(layer.mlp.dense_h_to_4h, weights) for layer in layers]
            self.contract = [matrix_product(weights, *part) for part in contract]
            looped = looped and weights == "own"
            self.looped = LoopedLayers(layers, project, contract, slot) if looped else None

    def _projection(self, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Rows: queries, keys, values, each by head."""
        weight, bias = (
            None if part is None else part.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            for part in (linear.weight, linear.bias)
        )
        return weight, bias

    def _contraction(self, layer: GPTNeoXLayer) -> tuple[Tensor, Tensor]:
        dense, last = layer.attention.dense, layer.mlp.dense_4h_to_h
        bias = last.bias if dense.bias is None else last.bias + dense.bias
        return torch.cat([dense.weight, last.weight], dim=1), bias

    def forward(self, hidden_states: Tensor, n: int, step: OneLane | Lanes, whole: bool) -> Tensor:
        """The first `n` layers' outputs, (n, new, hidden) or, unless `whole`, (n, queries, hidden), from
        hidden_states (new, hidden).
        """
        if self.looped is not None and not whole and isinstance(step, OneLane) and step.loop is not None:
            return self.looped.forward(hidden_states, n, step)
        normed = F.layer_norm(hidden_states, (self.hidden,), None, None, self.eps)
        normed = torch.addcmul(self.shift[:n], self.gain[:n], normed)  # (n, 2, new, hidden)
        projected = [self.project[i](normed[i, 0]) for i in range(n)]
        attended = step.attend_packed(projected, self.heads, self.slot, self.scaling, whole)
        inputs = normed[:, 1]
        if not whole:
            inputs, hidden_states = step.wanted(inputs), step.wanted(hidden_states)
        outputs = []
        for i in range(n):
            inner = self.activation(self.expand[i](inputs[i]))
            outputs.append(self.contract[i](torch.cat((attended[i], inner), dim=-1)))
        side_by_side = outputs[0].unsqueeze(0) if n == 1 else torch.stack(outputs)
        return side_by_side.add_(hidden_states)


def _stacked(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row) for row in rows]).unsqueeze(2)  # (n, 2, 1, hidden)


def product(linear: nn.Linear, weights: str = "own") -> Product:
    """A linear layer as a function of the few rows of a chunk."""
    return matrix_product(weights, linear.weight, linear.bias)


def matrix_product(weights: str, weight: Tensor, bias: Tensor | None = None) -> Product:
    """x @ weight.T + bias, weight (out, in) kept as `weights` says."""
    return (int8_product if weights == "int8" else few_rows_product)(weight, bias)


def int8_product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """x @ weight.T + bias with a scale for each of the weight's rows, and one for all of x, found anew at
    every call: what a row gives depends a little on the rows beside it.
    """
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch 2.13 announces the end of its quantised tensors
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantised, bias)
    multiply = torch.ops.quantized.linear_dynamic.default
    # 7 bits for x: with 8 the sums of processors without int8 dot products can overflow.
    return lambda x: multiply(x.contiguous(), packed, True)


def has_int8() -> bool:
    """Whether this machine has the kernels of `int8_product`."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def few_rows_product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """x @ weight.T + bias in float32, weight (out, in); it is kept in 16 bits where they hold it."""
    if fits_half(weight):
        packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
        multiply = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x: multiply(x, packed)
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
    columns = (x if rows > 1 else x.repeat(2, 1)).t()
    result = torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)
    return result[:, :rows].t().contiguous()
