"""From a name to a pair that can race, and what it takes: see `pairs`, `names`, `quantised` and `sizes`."""

from dynamo.loading.names import EMBEDDED, EMBEDDED_FOLDER, HUB_FILES, model_folders, resolve
from dynamo.loading.pairs import (
    EMBEDDED_DESCRIPTION,
    TABLE_FILE,
    Pair,
    checked_device,
    default_device,
    default_dtype,
    load,
    load_model,
    load_or_embedded,
    load_table,
    load_tokenizer,
    model_type,
)
from dynamo.loading.quantised import QUANTISATIONS, memory_of
from dynamo.loading.sizes import ModelSize, available_memory, model_sizes

__all__ = [
    "EMBEDDED",
    "EMBEDDED_DESCRIPTION",
    "EMBEDDED_FOLDER",
    "HUB_FILES",
    "QUANTISATIONS",
    "TABLE_FILE",
    "ModelSize",
    "Pair",
    "available_memory",
    "checked_device",
    "default_device",
    "default_dtype",
    "load",
    "load_model",
    "load_or_embedded",
    "load_table",
    "load_tokenizer",
    "memory_of",
    "model_folders",
    "model_sizes",
    "model_type",
    "resolve",
]
