"""The model (`causal_lm`) and the names that the rest of the project uses."""

from dynamo.model.architectures import Architecture, LayerWeights, architecture_of, model_shape
from dynamo.model.causal_lm import DynamoForCausalLM, load_dynamo
from dynamo.model.checkpoints import load_base
from dynamo.model.config import MAX_TOKEN_HEADS, DynamoConfig
from dynamo.model.heads import DynamoOutput, TokenHead, extra_parameter_share, walk_heads
from dynamo.model.optimiser import count_targets, parameter_groups, scale_gradient

__all__ = [
    "MAX_TOKEN_HEADS",
    "Architecture",
    "DynamoConfig",
    "DynamoForCausalLM",
    "DynamoOutput",
    "LayerWeights",
    "TokenHead",
    "architecture_of",
    "count_targets",
    "extra_parameter_share",
    "load_base",
    "load_dynamo",
    "model_shape",
    "parameter_groups",
    "scale_gradient",
    "walk_heads",
]
