"""DynaMo: dynamic multi-token sampling (arXiv 2405.00888).

Importing the package registers its classes with transformers' Auto classes and does nothing else.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.decoding.engine import Engine
from dynamo.loading import Pair, load
from dynamo.model import DynamoConfig, DynamoForCausalLM
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord

AutoConfig.register(DynamoConfig.model_type, DynamoConfig, exist_ok=True)
AutoModelForCausalLM.register(DynamoConfig, DynamoForCausalLM, exist_ok=True)

__all__ = [
    "CooccurrenceTable",
    "DynamoConfig",
    "DynamoForCausalLM",
    "Engine",
    "Pair",
    "SamplingOptions",
    "StepRecord",
    "load",
]
