"""From a name to a loaded pair, its device and its memory; the story is in `pairs`."""

from dynamo.loading.about import KNOWN, About
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
from dynamo.loading.names import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    SMOLLM2,
    SMOLLM2_FOLDER,
    at_hand,
    opening_model,
    resolve,
)
from dynamo.loading.pairs import (
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
    "EMBEDDED_FOLDER",
    "HUB_FILES",
    "KNOWN",
    "MAPS",
    "QUANTISATIONS",
    "SMOLLM2",
    "SMOLLM2_FOLDER",
    "TABLE_FILE",
    "About",
    "Footprint",
    "ModelSize",
    "Pair",
    "at_hand",
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
    "opening_model",
    "resolve",
]
