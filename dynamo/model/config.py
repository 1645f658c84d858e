"""What shape a DynaMo model has: a GPT-NeoX configuration and that of its extra token heads."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import GPTNeoXConfig

MAX_TOKEN_HEADS = 5
_KIND_FIELDS = ("model_type", "architectures", "transformers_version")  # what a config is of, not its shape


@strict
class DynamoConfig(GPTNeoXConfig):
    """A GPT-NeoX configuration and the shape of its extra token heads.

    num_token_heads: n, 1 to 5, the first-token head included (the paper's T1 .. T5);
    head_layers: decoder layers of each extra head (0: only an output embedding of its own);
    head_source: what extra heads read, the "penultimate" layer's output (the stem) or the "last" layer's;
    own_output_embedding, own_final_norm: whether each extra head has its own instead of the base's;
    head_gradient_scale: LR_MB / LR_B, the share of the extra heads' gradient that reaches what they share;
    correlator_rank: inner width of each extra head's correlator (0: none; `dynamo.model.correlator`, ours);
    correlator_kind: "mlp", or "markov" for one that sees only the token just before.
    """

    model_type = "dynamo"

    num_token_heads: int = 3
    head_layers: int = 1
    head_source: str = "penultimate"
    own_output_embedding: bool = False
    own_final_norm: bool = False
    head_gradient_scale: float = 0.1
    correlator_rank: int = 0
    correlator_kind: str = "mlp"

    def validate_token_heads(self):
        if not 1 <= self.num_token_heads <= MAX_TOKEN_HEADS:
            raise ValueError(f"num_token_heads: expected 1 to {MAX_TOKEN_HEADS}, got {self.num_token_heads}")
        if self.head_layers < 0:
            raise ValueError(f"head_layers: expected 0 or more, got {self.head_layers}")
        if self.head_layers == 0 and not self.own_output_embedding:
            raise ValueError(
                "head_layers: 0 leaves a head nothing to learn; set it to 1, or own_output_embedding=True"
            )
        if self.head_source not in ("penultimate", "last"):
            raise ValueError(f"head_source: expected 'penultimate' or 'last', got {self.head_source!r}")
        if not 0.0 <= self.head_gradient_scale <= 1.0:
            raise ValueError(f"head_gradient_scale: expected 0 to 1, got {self.head_gradient_scale}")
        if self.correlator_rank < 0:
            raise ValueError(f"correlator_rank: expected 0 or more, got {self.correlator_rank}")
        if self.correlator_kind not in ("mlp", "markov"):
            raise ValueError(f"correlator_kind: expected 'mlp' or 'markov', got {self.correlator_kind!r}")

    @classmethod
    def from_neox(cls, config: GPTNeoXConfig, **heads: Any) -> DynamoConfig:
        """A base's configuration with token heads. Raises ValueError for an impossible shape."""
        fields = config.to_dict()
        for name in _KIND_FIELDS:
            fields.pop(name, None)
        try:
            new = cls(**{**fields, **heads})
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from None
        # Without it the masks would be made for one attention implementation and read by another.
        new._attn_implementation = config._attn_implementation
        return new

    def to_neox(self) -> GPTNeoXConfig:
        fields = self.to_dict()
        for name in (*DynamoConfig.__annotations__, *_KIND_FIELDS):
            fields.pop(name, None)
        stock = GPTNeoXConfig(**fields, architectures=["GPTNeoXForCausalLM"])
        stock._attn_implementation = self._attn_implementation
        return stock
