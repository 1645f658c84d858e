"""The families of base models that token heads can be put on, one file each.

What is asked of a base is asked of its `Architecture`. So far GPT-NeoX is the only one, and `model.config`,
`training.train` (`--new`) and `evaluation.shapes` still name it.
"""

from __future__ import annotations

from typing import Any

from dynamo.model.architectures.base import Architecture, LayerWeights, Part
from dynamo.model.architectures.gpt_neox import GPTNeoX
from dynamo.model.shape import ModelShape

__all__ = ["ARCHITECTURES", "Architecture", "LayerWeights", "Part", "architecture_of", "model_shape"]

ARCHITECTURES: tuple[Architecture, ...] = (GPTNeoX(),)


def architecture_of(model: Any) -> Architecture:
    """The architecture of a configuration or model, with token heads or without.

    Raises ValueError, with the families that are supported, for any other.
    """
    config = getattr(model, "config", model)
    for architecture in ARCHITECTURES:
        if isinstance(config, architecture.config_class):
            return architecture
    found = getattr(config, "model_type", "") or type(model).__name__
    supported = ", ".join(each.name for each in ARCHITECTURES)
    raise ValueError(f"model: its architecture is {found!r}, supported are: {supported}")


def model_shape(model: Any) -> ModelShape:
    """The shape of a configuration or model."""
    return architecture_of(model).model_shape(getattr(model, "config", model))
