"""Checkpoints of either kind, from a folder or the hub: refused unless every weight was filled."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from dynamo.common.validation import short_repr
from dynamo.model.architectures import architecture_of_type
from dynamo.model.gguf_cache import base_folder


def load_base(path: str, dtype: torch.dtype | None = None, **hub: Any) -> PreTrainedModel:
    """A stock checkpoint of a supported family, float32 unless told otherwise, refused unless every weight
    was filled. path: folder, hub id or GGUF file; `gguf_file` names a file in one of the first two.
    """
    if gguf_file := hub.pop("gguf_file", None):
        path = cached_file(path, gguf_file, **hub)
    path = base_folder(path)
    model_type = PreTrainedConfig.get_config_dict(path, **hub)[0].get("model_type")
    architecture = architecture_of_type(model_type, path)
    return load_filled(architecture.model_class, architecture.name, path, dtype, **hub)


def load_filled(cls: type, kind: str, path: str, dtype: torch.dtype | None, **hub: Any) -> Any:
    """A checkpoint of a class whose kind is named in errors. Raises ValueError for one that is damaged."""
    try:
        model, report = cls.from_pretrained(
            path,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them, and they are refused below
            **hub,
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: its weight file is damaged ({error}); fetch or export it again") from None
    except StrictDataclassError as error:
        raise ValueError(f"{path}: its config.json is not valid: {error.__cause__ or error}") from None
    except (ArithmeticError, LookupError, TypeError) as error:  # whatever the library trips over
        message = f"{type(error).__name__}: {short_repr(str(error))}"
        raise ValueError(f"{path}: its config.json describes no model ({message})") from error
    wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(f"{path}: its weights do not fill a {kind} model: {short_repr(wrong, 400)}")
    return model
