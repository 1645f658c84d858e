"""An extra token head (paper, section 3.1): its layers, how much they add, and what all heads give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from dynamo.model.architectures import model_shape
from dynamo.model.config import DynamoConfig


@dataclass
class DynamoOutput(ModelOutput):
    """What one forward pass gives; logits are None where they were not asked for.

    loss: sum of `head_losses`; head_losses: (heads,) mean nats per valid target; logits: (batch, seq, vocab)
    of the first head; head_logits: (heads, batch, seq, vocab).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    head_losses: Tensor | None = None
    head_logits: Tensor | None = None
    past_key_values: Any = None


class TokenHead(nn.Module):
    """The layers that one extra head owns. Their `layer_idx` go on from the base's, one cache slot each."""

    def __init__(self, config: DynamoConfig, index: int):
        super().__init__()
        first = config.num_hidden_layers + (index - 1) * config.head_layers
        self.layers = nn.ModuleList(GPTNeoXLayer(config, first + i) for i in range(config.head_layers))
        self.final_layer_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.own_final_norm else None
        )
        self.output_embedding = (
            nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            if config.own_output_embedding
            else None
        )


def extra_parameter_share(config: DynamoConfig) -> float:
    """Extra heads' parameters over the base's, by the configuration alone (Table 4, as a fraction)."""
    shape = model_shape(config)
    return shape.extra_parameters / shape.base_parameters
