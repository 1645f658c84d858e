"""What the project asks of a family of base models: where its parts hang, and a layer cut at its attention.

Everything that transformers answers for every family (`base_model`, the embeddings) is asked of it. A layer
is `project`, then attention over what its text has been so far, which is the caller's, then `finish`; both
call the layer's own modules, so that quantised and offloaded ones work unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dynamo.model.shape import LayerShape, ModelShape

Part = tuple[Tensor, Tensor | None]  # a weight (out, in) and its bias (out,)
Norm = tuple[Tensor, Tensor | None]  # gain and shift (hidden,); no shift: an RMSNorm

# Kinds of rotary embedding whose angles depend on a position alone. Those of "dynamic" and "longrope" change
# with the length of the text, so keys in a cache would be rotated by angles of a shorter one.
ROPE_KINDS = ("default", "linear", "llama3", "yarn")


class LayerWeights(NamedTuple):
    """A plain layer's weights in canonical order, whatever the family's own.

    norms: before attention, and before the MLP; project: rows of queries, keys and values, each by head;
    output: after attention; gate: of a gated MLP, whose activation multiplies `expand`; expand, contract:
    the MLP; parallel: whether the MLP reads the layer's input, not what attention added to it.
    """

    norms: tuple[Norm, Norm]
    project: Part
    output: Part
    gate: Part | None
    expand: Part
    contract: Part
    activation: Callable[[Tensor], Tensor]
    eps: float
    scaling: float
    parallel: bool

    def packed(self) -> dict[str, Part]:
        """The matrices that the packed path multiplies by: what reads or sums the same numbers is one."""
        parts = {"project": self.project, "expand": self.expand, "contract": self.contract}
        if self.gate is not None:
            parts["expand"] = join_rows(self.gate, self.expand)
        if not self.parallel:
            return parts | {"output": self.output}
        # A parallel layer adds up what attention and the MLP give.
        (output, output_bias), (contract, bias) = self.output, self.contract
        joined_bias = bias if output_bias is None else output_bias if bias is None else bias + output_bias
        return parts | {"contract": (torch.cat([output, contract], dim=1), joined_bias)}


def join_rows(*parts: Part) -> Part:
    """Several matrices of the same inputs as one; they have biases or have none."""
    biases = [bias for _, bias in parts if bias is not None]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None


class Architecture(ABC):
    """One family. Holds nothing: its functions are of the modules that they are given."""

    name: str  # for people
    model_type: str  # as config.json says it
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type[nn.Module]  # built as layer_class(config, layer_idx)

    # -- of a configuration -------------------------------------------------------------------------------

    @abstractmethod
    def layer_shape(self, config: PreTrainedConfig) -> LayerShape: ...

    @abstractmethod
    def new_config(self, shape: ModelShape, **fields: Any) -> PreTrainedConfig:
        """The configuration of a new base of that shape; fields: others of its class."""

    @abstractmethod
    def new_norm(self, config: PreTrainedConfig) -> nn.Module:
        """A final norm as the base has one, for a head that is to have its own."""

    def window(self, config: PreTrainedConfig) -> int | None:
        """How far back a layer sees; no longer text is decoded or trained on. None: as far as there is."""
        return None

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """What a model of this configuration would need and is not built here; None where nothing is."""
        kind = (config.rope_parameters or {}).get("rope_type", "default")
        return None if kind in ROPE_KINDS else f"rope_type {kind!r} (supported: {', '.join(ROPE_KINDS)})"

    def new_layer(self, config: PreTrainedConfig, slot: int) -> nn.Module:
        """A layer for an extra head, with a place in the cache behind the base's own layers."""
        # Some families look their layers up in lists that end with the base's last one.
        layer = self.layer_class(config, config.num_hidden_layers - 1)
        self.attention(layer).layer_idx = slot
        return layer

    def model_shape(self, config: PreTrainedConfig) -> ModelShape:
        """Of a base's configuration, or of one with token heads."""
        heads: dict[str, Any] = {}
        base = config
        if hasattr(config, "num_token_heads"):
            base = config.text_config
            single = config.head_layers == 1 or config.num_token_heads == 1
            heads = {
                "extra_heads": config.num_token_heads - 1,
                "head_layers": config.head_layers,
                "own_norm": config.own_final_norm,
                "own_output": config.own_output_embedding,
                "correlator_rank": config.correlator_rank,
                "correlator_kind": config.correlator_kind,
                "side_by_side": single and config.head_source == "penultimate",
            }
        return ModelShape(
            layer=self.layer_shape(base),
            layers=base.num_hidden_layers,
            vocabulary=base.vocab_size,
            positions=min(base.max_position_embeddings, self.window(base) or base.max_position_embeddings),
            tied=base.tie_word_embeddings,
            **heads,
        )

    # -- of a loaded base ---------------------------------------------------------------------------------

    @abstractmethod
    def final_norm(self, base: PreTrainedModel) -> nn.Module: ...

    def layers(self, base: PreTrainedModel) -> list[nn.Module]:
        return list(base.base_model.layers)

    def embed_dropout(self, base: PreTrainedModel, embedded: Tensor) -> Tensor:
        """What the base's decoder does in training between embedding and first layer."""
        return embedded

    # -- of a layer ---------------------------------------------------------------------------------------

    @abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module: ...

    def slot(self, layer: nn.Module) -> int:
        """The layer's place in a cache."""
        return self.attention(layer).layer_idx

    def scaling(self, layer: nn.Module) -> float:
        """What the products of queries and keys are multiplied by."""
        return self.attention(layer).scaling

    @abstractmethod
    def project(
        self, layer: nn.Module, hidden_states: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Input norm, projection and rotary embedding; keys with values, so that a cache takes both at once.

        hidden_states (new, hidden); cos, sin (new, 1, 1, rotary_dim) -> queries (new, heads, head_dim), keys
        and values (new, 2, kv_heads, head_dim).
        """

    @abstractmethod
    def finish(self, layer: nn.Module, attended: Tensor, hidden_states: Tensor) -> Tensor:
        """Output projection, residuals and MLP: attended (queries, heads * head_dim), hidden_states
        (queries, hidden), the layer's input there -> (queries, hidden).
        """

    @abstractmethod
    def layer_weights(self, layer: nn.Module) -> LayerWeights:
        """Of a plain layer, for the packed path on CPU."""
