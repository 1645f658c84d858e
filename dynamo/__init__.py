"""DynaMo: dynamic multi-token sampling for Pythia (arXiv 2405.00888).

Importing the package registers its classes with transformers' Auto classes; nothing else happens.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from dynamo.model import DynamoConfig, DynamoForCausalLM

AutoConfig.register(DynamoConfig.model_type, DynamoConfig, exist_ok=True)
AutoModelForCausalLM.register(DynamoConfig, DynamoForCausalLM, exist_ok=True)

__all__ = ["DynamoConfig", "DynamoForCausalLM"]
