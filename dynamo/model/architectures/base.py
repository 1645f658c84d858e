"""What the project asks of a family of base models: where its parts hang, and a layer cut at its attention.

Everything that transformers answers for every family (`base_model`, the embeddings) is asked of it. A layer
is `project`, then attention over what its text has been so far, which is the caller's, then `finish`; both
call the layer's own modules, so that quantised and offloaded ones work unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dynamo.model.shape import LayerShape, ModelShape

Part = tuple[Tensor, Tensor | None]  # a weight (out, in) and its bias (out,)


class LayerWeights(NamedTuple):
    """A plain layer's weights in canonical order, whatever the family's own.

    norms: gain and shift (hidden,) of the norm before attention, then of that before the MLP; project: rows
    of queries, keys and values, each by head; output: after attention; expand, contract: the MLP.
    """

    norms: tuple[Tensor, ...]
    project: Part
    output: Part
    expand: Part
    contract: Part
    activation: Callable[[Tensor], Tensor]
    eps: float
    scaling: float


class Architecture(ABC):
    """One family. Holds nothing: its functions are of the modules that they are given."""

    name: str  # for people
    model_type: str  # as config.json says it
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type[nn.Module]  # built as layer_class(config, layer_idx)

    @abstractmethod
    def layer_shape(self, config: PreTrainedConfig) -> LayerShape: ...

    @abstractmethod
    def embed_dropout(self, base: PreTrainedModel, embedded: Tensor) -> Tensor:
        """What the base's decoder does in training between embedding and first layer."""

    @abstractmethod
    def final_norm(self, base: PreTrainedModel) -> nn.Module: ...

    @abstractmethod
    def new_norm(self, config: PreTrainedConfig) -> nn.Module:
        """A final norm as the base has one, for a head that is to have its own."""

    @abstractmethod
    def scaled_norm(self, norm: nn.Module, hidden_states: Tensor, scale: float) -> Tensor:
        """`norm(hidden_states)`; the gradient that its weights get from this is multiplied by `scale`."""

    @abstractmethod
    def slot(self, layer: nn.Module) -> int:
        """The layer's place in a cache."""

    @abstractmethod
    def scaling(self, layer: nn.Module) -> float:
        """What the products of queries and keys are multiplied by."""

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

    def layers(self, base: PreTrainedModel) -> list[nn.Module]:
        return list(base.base_model.layers)

    def model_shape(self, config: PreTrainedConfig) -> ModelShape:
        """Of a base's configuration, or of one with token heads."""
        heads: dict[str, Any] = {}
        if hasattr(config, "num_token_heads"):
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
            layer=self.layer_shape(config),
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            tied=config.tie_word_embeddings,
            **heads,
        )
