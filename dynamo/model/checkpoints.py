"""Checkpoints of either kind, from a folder or the hub: refused unless every weight was filled."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dynamo.common.validation import short_repr


def load_neox(path: str, dtype: torch.dtype | None = None, **hub: Any) -> GPTNeoXForCausalLM:
    """A stock GPT-NeoX checkpoint, float32 unless told otherwise, refused unless every weight was filled."""
    config = GPTNeoXConfig.from_pretrained(path, **hub)
    if config.model_type != "gpt_neox":
        raise ValueError(
            f"{path}: expected a GPT-NeoX (Pythia) checkpoint, got model_type {config.model_type!r}"
        )
    return filled(GPTNeoXForCausalLM, path, dtype, **hub)


def filled(cls: type, path: str, dtype: torch.dtype | None, **hub: Any) -> Any:
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
        told = f"{type(error).__name__}: {short_repr(str(error))}"
        raise ValueError(f"{path}: its config.json describes no model ({told})") from error
    wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        kind = "GPT-NeoX" if cls is GPTNeoXForCausalLM else "DynaMo"
        raise ValueError(f"{path}: its weights do not fill a {kind} model: {short_repr(wrong, 400)}")
    return model
