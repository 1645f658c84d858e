"""What a DynaMo model is: its base's configuration, whole, and the shape of its extra token heads."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from dynamo.common.validation import short_repr
from dynamo.model.architectures import PAPERS, architecture_of

MAX_TOKEN_HEADS = 5
AUTO_FILE = "modeling_dynamo.py"
_AUTO_CODE = '''"""Lies beside every saved DynaMo model: Auto classes find the installed package by it."""

try:
    from dynamo import DynamoConfig, DynamoForCausalLM
except ImportError as error:
    raise ImportError(
        "This is a DynaMo model (arXiv 2405.00888), whose code is in the package dynamo-multi-token: install "
        "it, with `pip install -e .` in its folder, and load the model again"
    ) from error
'''
# What is about a loaded model as a whole, and not about its base.
_OF_THE_WHOLE = ("name_or_path", "attn_implementation", "torch_dtype", "output_attentions")


@strict
class DynamoConfig(PreTrainedConfig):
    """The configuration of a base, `text_config`, and the shape of its extra token heads.

    text_config: of any supported family, and the very object that the base inside a model has; its fields
    can be read and set here too (`config.hidden_size`). Fields of a base that are given without it, as in
    files of the first edition, are those of the paper's family.
    num_token_heads: n, 1 to 5, the first-token head included (the paper's T1 .. T5);
    head_layers: decoder layers of each extra head (0: only an output embedding of its own);
    head_source: what extra heads read, the "penultimate" layer's output (the stem) or the "last" layer's;
    own_output_embedding, own_final_norm: whether each extra head has its own instead of the base's;
    head_gradient_scale: LR_MB / LR_B, the share of the extra heads' gradient that reaches what they share;
    correlator_rank: inner width of each extra head's correlator (0: none; `dynamo.model.correlator`, ours);
    correlator_kind: "mlp", or "markov" for one that sees only the token just before;
    tokens_by_frequency: whether the checkpoint lists its vocabulary by how often tokens stand in what heads
    learnt from (`DynamoForCausalLM.count_tokens`);
    base_model: what the model was made from, as far as known: {"name": hub id or folder, "revision"}, and
    where heads are saved alone "sha256" (`dynamo.model.heads_file`);
    heads_only: whether this is of token heads saved without their base;
    sampling: the options of the sampler that were chosen for this model, by name; the others are usual.
    """

    model_type = "dynamo"
    # Of an evaluation Trainer keeps the rest, so that `compute_metrics` sees what it sees of any causal LM.
    keys_to_ignore_at_inference: ClassVar = [
        "past_key_values",
        "head_losses",
        "correlator_losses",
        "head_logits",
    ]
    sub_configs_defaults: ClassVar = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type=PAPERS.model_type)
    }

    text_config: dict | PreTrainedConfig | None = None
    num_token_heads: int = 3
    head_layers: int = 1
    head_source: str = "penultimate"
    own_output_embedding: bool = False
    own_final_norm: bool = False
    head_gradient_scale: float = 0.1
    correlator_rank: int = 0
    correlator_kind: str = "mlp"
    tokens_by_frequency: bool = False
    base_model: dict | None = None
    heads_only: bool = False
    sampling: dict | None = None

    def __post_init__(self, **kwargs: Any):
        if self.text_config is None:
            of_base = {name: kwargs.pop(name) for name in sorted(set(kwargs) - set(_OF_THE_WHOLE))}
            of_base.pop("model_type", None)
            self.text_config = PAPERS.config_class(**of_base, dtype=self.dtype)
        super().__post_init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """What this class does not know is the base's."""
        base = self.__dict__.get("text_config")
        if name.startswith("_") or not isinstance(base, PreTrainedConfig):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("text_config")
        known = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if not known and isinstance(base, PreTrainedConfig) and hasattr(base, name):
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """With the base's `tie_word_embeddings` beside it, where peft looks before it merges an adapter, and
        without the folder that the base was loaded from; a hub id stays."""
        values = super().to_dict()
        base = values.get("text_config") or {}
        name = str(base.get("_name_or_path", ""))
        if os.path.isabs(name) or os.path.exists(name):
            base["_name_or_path"] = ""
        return values | {"tie_word_embeddings": self.tie_word_embeddings}

    def validate_base(self):
        missing = architecture_of(self).unsupported(self.text_config)
        if missing:
            raise ValueError(f"text_config: {architecture_of(self).name} with {missing} is not supported")

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

    def validate_base_model(self):
        for name, value in (self.base_model or {}).items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise ValueError(f"base_model: expected names and texts, got {short_repr(self.base_model)}")

    @classmethod
    def from_base(cls, config: PreTrainedConfig, **heads: Any) -> DynamoConfig:
        """A base's configuration with token heads; the object itself is kept, as `text_config`.

        Raises ValueError for an impossible shape, and for a base of no supported family.
        """
        attention = config._attn_implementation
        try:
            new = cls(text_config=config, dtype=config.dtype, **heads)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from None
        finally:
            # A new configuration forgets it, its base's too: masks would be made for one implementation of
            # attention and read by another.
            config._attn_implementation = attention
        new._attn_implementation = attention
        return new

    def to_base(self) -> PreTrainedConfig:
        """A copy of the base's configuration."""
        base = copy.deepcopy(self.text_config)
        base.architectures = [architecture_of(self).model_class.__name__]
        return base

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """Also writes a file by which Auto classes find the installed package (`trust_remote_code=True`)."""
        self.auto_map = {
            "AutoConfig": f"{AUTO_FILE.removesuffix('.py')}.DynamoConfig",
            "AutoModelForCausalLM": f"{AUTO_FILE.removesuffix('.py')}.DynamoForCausalLM",
        }
        super().save_pretrained(save_directory, **options)
        (Path(save_directory) / AUTO_FILE).write_text(_AUTO_CODE, encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would copy this module's source into every folder that is saved later."""
