"""From a name to a loaded pair, its device and its memory; the story is in `pairs`."""

from dynamo.loading.devices import (
    MAPS,
    checked_device,
    default_device,
    default_dtype,
    memory_by_device,
    memory_of,
)
from dynamo.loading.downloads import HUB_FILES, model_folders
from dynamo.loading.footprint import Footprint
from dynamo.loading.names import EMBEDDED, EMBEDDED_FOLDER, resolve
from dynamo.loading.pairs import (
    EMBEDDED_DESCRIPTION,
    TABLE_FILE,
    Pair,
    chosen_options,
    load,
    load_model,
    load_or_embedded,
    load_table,
    load_tokenizer,
    model_type,
)
from dynamo.loading.quantised import QUANTISATIONS
from dynamo.loading.sizes import ModelSize, available_memory, model_sizes

__all__ = [
    "EMBEDDED",
    "EMBEDDED_DESCRIPTION",
    "EMBEDDED_FOLDER",
    "HUB_FILES",
    "MAPS",
    "QUANTISATIONS",
    "TABLE_FILE",
    "Footprint",
    "ModelSize",
    "Pair",
    "available_memory",
    "checked_device",
    "chosen_options",
    "default_device",
    "default_dtype",
    "load",
    "load_model",
    "load_or_embedded",
    "load_table",
    "load_tokenizer",
    "memory_by_device",
    "memory_of",
    "model_folders",
    "model_sizes",
    "model_type",
    "resolve",
]
