"""Extra token heads (paper, section 3.1): their layers, the way through them, and what all heads give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from dynamo.common.laps import lap
from dynamo.model.architectures import architecture_of, model_shape
from dynamo.model.config import DynamoConfig
from dynamo.model.correlator import Correlator


@dataclass
class DynamoOutput(ModelOutput):
    """What one forward pass gives, a stock model's part first; None is what was not asked for.

    loss: sum of `head_losses` and `correlator_losses`; head_losses: (heads,) mean nats per valid target;
    correlator_losses: (heads - 1,) the same of heads 2 .. given the tokens before, None without a correlator;
    logits: (batch, seq, vocab) of the first head; head_logits: (heads, batch, seq, vocab); hidden_states,
    attentions: of the base's layers, as transformers has them.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    head_losses: Tensor | None = None
    correlator_losses: Tensor | None = None
    head_logits: Tensor | None = None

    @property
    def last_hidden_state(self) -> Tensor:
        raise AttributeError(
            "last_hidden_state: every head has its own, and a loss made of one trains that head alone, which "
            "is what trl's SFTTrainer does, past the model's forward; train with transformers' Trainer or "
            "`python -m dynamo finetune`, or train the base by itself (to_base())"
        )


class TokenHead(nn.Module):
    """The layers that one extra head owns. Their `layer_idx` go on from the base's, one cache slot each.

    tokens_by_frequency: (vocab,) ids, see `DynamoForCausalLM.count_tokens`; the first extra head holds them
    for all.
    """

    def __init__(self, config: DynamoConfig, index: int):
        super().__init__()
        architecture = architecture_of(config)
        base = config.text_config
        # Layers that are decoded together share a cache, so their slots must not collide.
        first = base.num_hidden_layers + (index - 1) * config.head_layers
        self.layers = nn.ModuleList(
            architecture.new_layer(base, first + i) for i in range(config.head_layers)
        )
        self.final_layer_norm = architecture.new_norm(base) if config.own_final_norm else None
        self.output_embedding = (
            nn.Linear(base.hidden_size, base.vocab_size, bias=False) if config.own_output_embedding else None
        )
        self.correlator = Correlator(config, index) if config.correlator_rank else None
        listed = config.tokens_by_frequency and index == 1
        order = torch.arange(base.vocab_size, dtype=torch.int32) if listed else None
        self.register_buffer("tokens_by_frequency", order)


def walk_heads(
    layers: Sequence[nn.Module],
    token_heads: Sequence[TokenHead],
    source_is_last: bool,
    hidden_states: Tensor,
    run: Callable[[nn.Module, Tensor, bool], Tensor],
    select: Callable[[Tensor], Tensor] = lambda states: states,
    to_heads: Callable[[Tensor], Tensor] = lambda states: states,
) -> list[Tensor]:
    """Through the stem, the base's last layer and every extra head: each head's output before its norm.

    hidden_states: embedded tokens; run(layer, states, all_positions): one layer, whose output is needed at
    all positions or only where `select` takes it (decoding needs few); to_heads: what the stem's output goes
    through on its way to the extra heads (training scales its gradient).
    """
    for layer in layers[:-1]:
        hidden_states = run(layer, hidden_states, True)
    lap("stem")
    # Heads that read the last layer's output need it at every position.
    everywhere = source_is_last and len(token_heads) > 0
    last = run(layers[-1], hidden_states, everywhere)  # (new, hidden), or (queries, hidden) as `select` does
    outputs = [select(last) if everywhere else last]
    source = to_heads(last if source_is_last else hidden_states) if token_heads else None
    for head in token_heads:
        states = source  # of every head the same: heads do not see each other
        for layer in head.layers[:-1]:
            states = run(layer, states, True)
        outputs.append(run(head.layers[-1], states, False) if len(head.layers) else select(source))
    return outputs


def extra_parameter_share(config: DynamoConfig) -> float:
    """Extra heads' parameters over the base's, by the configuration alone (Table 4, as a fraction)."""
    shape = model_shape(config)
    return shape.extra_parameters / shape.base_parameters
