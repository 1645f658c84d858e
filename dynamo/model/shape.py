"""What shape a model has, and from it every count of parameters, bytes and multiplications.

A `LayerShape` is one decoder layer of any family, a `ModelShape` a base with its token heads. Both are known
from a configuration alone, so a model's needs can be said before it is loaded. Bytes that depend on a loaded
model's weights (whether 16 bits hold them) are in `dynamo.model.packing`, by the same formulas.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dynamo import kernels

LARGEST_COPY = 2**31  # bytes that packed copies of a model's layers may take
# Weights of the layers that go through the compiled loop: more leave the processor's caches, and several
# threads of torch read them faster than the loop's one.
LARGEST_LOOP = 2**23


Powers = Mapping[str, float | None]  # of each matrix, that of two times which 16 bits hold it, if any
Copies = dict[tuple[str, int], int]  # bytes of a model's packed copies, by part and the layer


def bytes_together(*copies: Copies) -> int:
    """Bytes of the copies of several models that run on the same weights, with other heads or none: the same
    part counts once."""
    return sum(ChainMap(*copies).values())


def by_eights(rows: int) -> int:
    """As many rows as the compiled products have of a matrix: the next multiple of eight."""
    return -(-rows // 8) * 8


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer. heads, kv_heads: of queries, and of keys and values (fewer where they are grouped);
    rotary_dim: how much of head_dim is rotated; inner: the MLP's width; norm: "layer" has a gain and a shift,
    "rms" only a gain; gated: whether the MLP multiplies two projections; qk_norm: whether each head's queries
    and keys are normalised; parallel: whether attention and MLP both read the layer's input.
    """

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    norm: Literal["layer", "rms"] = "layer"
    activation: str = "gelu"
    gated: bool = False
    qk_norm: bool = False
    parallel: bool = True
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True

    @property
    def projected(self) -> int:
        """Numbers that a position's queries, keys and values are."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def matrix_parameters(self) -> int:
        """Weights of all linear layers, which are also the multiplications per token outside attention."""
        attention = (self.projected + self.heads * self.head_dim) * self.hidden
        return attention + (3 if self.gated else 2) * self.inner * self.hidden

    @property
    def norm_parameters(self) -> int:
        """Of one norm."""
        return (2 if self.norm == "layer" else 1) * self.hidden

    @property
    def parameters(self) -> int:
        biases = self.projected * self.qkv_bias + self.hidden * self.output_bias
        biases += ((2 if self.gated else 1) * self.inner + self.hidden) * self.mlp_bias
        norms = 2 * self.norm_parameters + 2 * self.head_dim * self.qk_norm
        return self.matrix_parameters + biases + norms

    def cache_bytes(self, positions: int, itemsize: int) -> int:
        """Keys and values of so many positions."""
        return 2 * self.kv_heads * self.head_dim * positions * itemsize

    @property
    def packed_matrices(self) -> dict[str, tuple[int, bool]]:
        """Weights of each matrix of the packed path (`LayerWeights.packed`), and whether it is another one
        than the module's own, put together or in another order."""
        project, contract = self.projected * self.hidden, self.inner * self.hidden
        output, expand = self.heads * self.head_dim * self.hidden, (2 if self.gated else 1) * contract
        matrices = {"project": (project, True), "expand": (expand, self.gated)}
        if self.parallel:
            return matrices | {"contract": (output + contract, True)}
        return matrices | {"output": (output, False), "contract": (contract, False)}

    def packed_bytes(self, powers: Powers) -> int:
        """Packed copies of a layer's matrices (`dynamo.decoding.packed`), beside its own weights in float32.

        One that 16 bits do not hold takes 32 where it is put together or in another order, and no copy where
        it is as it was.
        """
        total = 0
        for name, (weights, new) in self.packed_matrices.items():
            total += weights * (2 if powers[name] is not None else 4 if new else 0)
        # A bias is copied where its matrix is reordered or where two are added up.
        singles = self.projected * self.qkv_bias
        if self.parallel:
            singles += self.hidden * self.output_bias
        elif self.gated:
            singles += 2 * self.inner * self.mlp_bias
        return total + 4 * singles

    def looped_bytes(self, half: bool = True) -> int:
        """The compiled loop's own copy of a layer; half: whether 16 bits hold all its matrices."""
        rows = self.projected, self.inner, self.hidden
        read = self.hidden, self.hidden, self.hidden + self.inner
        each = (
            by_eights(n) * (2 * length + 4 if half else 4 * length)
            for n, length in zip(rows, read, strict=True)
        )
        return sum(each) + 4 * (sum(rows) + 2 * self.norm_parameters)  # biases are zeros where it has none

    def in_loop(self, layers: int, finals: int) -> int:
        """How many of a model's layers go through the compiled loop for such as these: all, or its last ones,
        which lie side by side, or none."""
        loops = kernels.loops()
        plain = self.parallel and self.norm == "layer" and not self.gated and self.kv_heads == self.heads
        if loops is None or not loops.widens_halves() or not plain or self.activation != "gelu":
            return 0
        if self.hidden % 8 or self.inner % 8:
            return 0
        small = (each for each in (layers, finals) if each * self.matrix_parameters <= LARGEST_LOOP)
        return next(small, 0)

    def passes_bytes(self) -> int:
        """A layer's copy in 16 bits for the compiled loop of whole passes; each row has a scale."""
        rows = self.projected + 2 * self.hidden + 2 * self.inner
        return 2 * self.matrix_parameters + 4 * (rows + self.projected + 2 * self.norm_parameters)

    def fits_passes(self, layers: int = 0) -> bool:
        """Whether there is a compiled loop for all such layers of a pass at once; layers: of how many it is
        to have copies in 16 bits beside others (0: none)."""
        loops = kernels.loops()
        if loops is None or not loops.widens_halves() or 4 * layers * self.matrix_parameters > LARGEST_COPY:
            return False
        biases, plain = self.output_bias or self.mlp_bias, self.norm == "rms" and not self.qk_norm
        gated = self.gated and self.activation == "silu" and not self.parallel
        widths = (self.hidden, self.inner, self.heads * self.head_dim)
        return gated and plain and not biases and all(width % 32 == 0 for width in widths)


def papers_layer(hidden: int, heads: int) -> LayerShape:
    """A layer as the paper's bases have it: the MLP four times as wide, a quarter of each head rotated."""
    head_dim = hidden // heads
    return LayerShape(hidden, 4 * hidden, heads, heads, head_dim, rotary_dim=head_dim // 4)


@dataclass(frozen=True)
class ModelShape:
    """A base of `layers` decoder layers, and `extra_heads` token heads of `head_layers` layers each.

    positions: the longest text; tied: whether the output embedding is the input's; own_norm, own_output:
    whether each extra head has its own final norm and output embedding; side_by_side: whether the extra heads
    can run beside the base's last layer, which they can where each is one layer on the stem's output;
    correlator_rank, correlator_kind: of each extra head's correlator.
    """

    layer: LayerShape
    layers: int
    vocabulary: int
    positions: int
    tied: bool = False
    extra_heads: int = 0
    head_layers: int = 1
    own_norm: bool = False
    own_output: bool = False
    side_by_side: bool = True
    correlator_rank: int = 0
    correlator_kind: str = "mlp"

    @property
    def base(self) -> ModelShape:
        """The same without its extra heads."""
        return replace(self, extra_heads=0, side_by_side=True)

    @property
    def all_layers(self) -> int:
        """Of the base and of all extra heads: one slot in the cache each."""
        return self.layers + self.extra_heads * self.head_layers

    @property
    def embedding_parameters(self) -> int:
        """Of one embedding."""
        return self.vocabulary * self.layer.hidden

    @property
    def base_parameters(self) -> int:
        embeddings = (1 if self.tied else 2) * self.embedding_parameters
        return self.layers * self.layer.parameters + embeddings + self.layer.norm_parameters

    @property
    def extra_parameters(self) -> int:
        """Of all extra heads together (paper, Table 4)."""
        own = self.layer.norm_parameters * self.own_norm + self.embedding_parameters * self.own_output
        heads = self.extra_heads * (self.head_layers * self.layer.parameters + own)
        return heads + self.correlator_parameters

    @property
    def correlator_parameters(self) -> int:
        """Of all extra heads: a matrix for each input, and one back to the hidden size."""
        mlp = self.correlator_kind == "mlp"
        matrices = sum((before + 1 if mlp else 1) + 1 for before in range(1, self.extra_heads + 1))
        return matrices * self.layer.hidden * self.correlator_rank

    @property
    def parameters(self) -> int:
        return self.base_parameters + self.extra_parameters

    def weight_bytes(self, itemsize: int, matrix_bytes: float | None = None) -> int:
        """Of all weights; matrix_bytes: of one weight of the layers' matrices, where these are quantised."""
        matrices = self.all_layers * self.layer.matrix_parameters
        each = itemsize if matrix_bytes is None else matrix_bytes
        return (self.parameters - matrices) * itemsize + round(matrices * each)

    def cache_bytes(self, itemsize: int, positions: int | None = None) -> int:
        """Keys and values of one text, at full length by default."""
        return self.all_layers * self.layer.cache_bytes(positions or self.positions, itemsize)

    def copies(self, powers: Sequence[Powers] | None = None, output: bool = True) -> Copies:
        """Packed copies of a float32 model on CPU, by part; none where it runs its modules.

        powers: of each layer's matrices, the powers of two times which 16 bits hold them; output: whether 16
        bits hold the output embedding. By default they hold all, as of a model that was saved in 16 bits.
        """
        layer, count = self.layer, self.all_layers
        if layer.qk_norm or not self.side_by_side:
            return {}
        if powers is None:
            if 2 * count * layer.parameters > LARGEST_COPY:
                return {}
            powers = [dict.fromkeys(layer.packed_matrices, 1.0)] * count
        in_loop = layer.in_loop(count, 1 + self.extra_heads * self.head_layers)
        passes = layer.fits_passes(count) and all(None not in each.values() for each in powers)
        found: Copies = {("layer", i): layer.packed_bytes(each) for i, each in enumerate(powers)}
        if passes:
            found |= {("pass", i): layer.passes_bytes() for i in range(count)}
        if output:
            looped = passes or in_loop == count
            found["output", looped] = self.embedding_copy_bytes(looped)
        # These no other model shares.
        own = self.extra_heads
        if layer.parallel:
            found["norms", own] = count * 8 * layer.norm_parameters
        if in_loop:
            half = all(power == 1 for each in powers[-in_loop:] for power in each.values())
            found["loop", own] = in_loop * layer.looped_bytes(half)
        return found

    def few_bits_bytes(self, matrix_bytes: float) -> int:
        """Packed copies in fewer bits; matrix_bytes: of one weight of the layers' matrices. The output
        embedding has 8 bits."""
        return (
            round(matrix_bytes * self.all_layers * self.layer.matrix_parameters) + self.embedding_parameters
        )

    def embedding_copy_bytes(self, looped: bool) -> int:
        """The output embedding's copy in 16 bits; looped: for the compiled loops, which have rows by eights
        and a scale for each."""
        rows = by_eights(self.vocabulary) if looped else self.vocabulary
        return (2 * self.layer.hidden + 4 * looped) * rows
