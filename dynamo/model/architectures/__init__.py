"""The families of base models that token heads can be put on, in one file each family tree.

What is asked of a base is asked of its `Architecture`; nothing outside this folder names a family.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from dynamo.model.architectures.base import Architecture, LayerWeights, Norm, Part
from dynamo.model.architectures.gpt_neox import GPTNeoX
from dynamo.model.architectures.llama import Llama, Mistral, Qwen2, Qwen3
from dynamo.model.shape import ModelShape

__all__ = [
    "ARCHITECTURES",
    "PAPERS",
    "Architecture",
    "LayerWeights",
    "Norm",
    "Part",
    "architecture_of",
    "architecture_of_type",
    "max_positions",
    "model_shape",
    "new_base_config",
]

ARCHITECTURES: tuple[Architecture, ...] = (GPTNeoX(), Llama(), Mistral(), Qwen2(), Qwen3())
PAPERS = ARCHITECTURES[0]  # the paper's; configurations that name no family are of this one


def architecture_of(model: Any) -> Architecture:
    """The architecture of a configuration or model, with token heads or without.

    Raises ValueError, with the families that are supported, for any other.
    """
    config = getattr(model, "config", model)
    config = getattr(config, "text_config", config)
    return architecture_of_type(getattr(config, "model_type", "") or type(model).__name__)


def architecture_of_type(model_type: Any, what: str = "model") -> Architecture:
    """The architecture of a `model_type`, as config.json has it; what: the model's name in the error.

    Raises ValueError, with the families that are supported, for any other.
    """
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type:
            return architecture
    supported = ", ".join(each.name for each in ARCHITECTURES)
    raise ValueError(f"{what}: its architecture is {model_type!r}, supported are: {supported}")


def model_shape(model: Any) -> ModelShape:
    """The shape of a configuration or model."""
    return architecture_of(model).model_shape(getattr(model, "config", model))


def max_positions(model: Any) -> int:
    """The longest text of a configuration or model, in tokens."""
    return model_shape(model).positions


def new_base_config(shape: ModelShape, **fields: Any) -> PreTrainedConfig:
    """A configuration of that shape: of the paper's family where layers are parallel, else a Llama's."""
    return (PAPERS if shape.layer.norm == "layer" else ARCHITECTURES[1]).new_config(shape, **fields)
