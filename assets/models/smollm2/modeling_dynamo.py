"""Lies beside every saved DynaMo model: Auto classes find the installed package by it."""

try:
    from dynamo import DynamoConfig, DynamoForCausalLM
except ImportError as error:
    raise ImportError(
        "This is a DynaMo model (arXiv 2405.00888), whose code is in the package dynamo-multi-token: install "
        "it, with `pip install -e .` in its folder, and load the model again"
    ) from error
