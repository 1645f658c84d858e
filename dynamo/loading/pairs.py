"""From a name to a pair that can race: base model, DynaMo model, tokenizer, co-occurrence table.

A name is "embedded" (the pair in `assets/models`), a local folder, or a Hugging Face id. A pair folder holds
`base/` and `dynamo/`; a lone DynaMo checkpoint races against its own first head. The table lies beside the
DynaMo weights as `cooccurrence.safetensors`. The hub's cache is asked first: an unreachable hub would cost a
minute of retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PretrainedConfig

from dynamo.cooccurrence import CooccurrenceTable
from dynamo.model import DynamoConfig, DynamoForCausalLM, load_dynamo, load_neox
from dynamo.text import fingerprint

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "models"
TABLE_FILE = "cooccurrence.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md"]
HUB_PROBE_SECONDS = 3.0

EMBEDDED_DESCRIPTION = (
    "A small dialogue model trained by this project on the Schema-Guided Dialogue corpus. "
    "It has Pythia's architecture but is not a Pythia checkpoint, and it only knows that corpus's domains."
)


@dataclass(frozen=True, eq=False)
class Pair:
    """What a race needs. `base`: a stock GPT-NeoX; `table`: None (no mask) where there is none."""

    name: str
    description: str
    base: GPTNeoXForCausalLM
    dynamo: DynamoForCausalLM
    tokenizer: Any
    table: CooccurrenceTable | None


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPU, bfloat16 on GPUs that have it natively, else float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(
    name: str = EMBEDDED, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Pair:
    """A pair by name, in evaluation mode.

    Raises ValueError for a folder or id that is no DynaMo pair or checkpoint, or whose parts do not fit each
    other; OSError if it cannot be found or fetched.
    """
    device = _device(device)
    dtype = dtype or default_dtype(device)
    folder = resolve(name)
    pair = (folder / "dynamo").is_dir() and (folder / "base").is_dir()
    dynamo_folder = folder / "dynamo" if pair else folder
    if model_type(dynamo_folder) != DynamoConfig.model_type:
        raise ValueError(
            f"model: {name} has no token heads (model_type {model_type(dynamo_folder)!r}); "
            f"train them with: python -m dynamo train --model {name}"
        )
    dynamo = load_dynamo(str(dynamo_folder), dtype=dtype)
    base = load_neox(str(folder / "base"), dtype=dtype) if pair else dynamo.to_pythia()
    tokenizer = _tokenizer_of(dynamo_folder, dynamo)
    if base.config.vocab_size != dynamo.config.vocab_size:
        raise ValueError(
            f"model: {name}: its base has a vocabulary of {base.config.vocab_size} and its DynaMo model of "
            f"{dynamo.config.vocab_size}; they do not belong together"
        )
    return Pair(
        name=name,
        description=EMBEDDED_DESCRIPTION if name == EMBEDDED else f"DynaMo checkpoint {name}.",
        base=base.to(device).eval(),
        dynamo=dynamo.to(device).eval(),
        tokenizer=tokenizer,
        table=load_table(dynamo_folder, dynamo.config.vocab_size, tokenizer),
    )


def load_model(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[GPTNeoXForCausalLM | DynamoForCausalLM, Any, CooccurrenceTable | None]:
    """One model of either kind, its tokenizer and its table (None for a stock model), in evaluation mode.

    "embedded" and pair folders give their DynaMo model; NAME/base gives the base.
    """
    device = _device(device)
    dtype = dtype or default_dtype(device)
    folder = resolve(name)
    if (folder / "dynamo").is_dir():
        folder = folder / "dynamo"
    if model_type(folder) != DynamoConfig.model_type:
        model = load_neox(str(folder), dtype=dtype).to(device).eval()
        return model, _tokenizer_of(folder, model), None
    model = load_dynamo(str(folder), dtype=dtype).to(device).eval()
    tokenizer = _tokenizer_of(folder, model)
    return model, tokenizer, load_table(folder, model.config.vocab_size, tokenizer)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: this machine (or this build of torch) has no CUDA; use cpu")
    return chosen


def _tokenizer_of(folder: Path, model: Any) -> Any:
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"model: {folder}: its tokenizer has {len(tokenizer)} ids and its model "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return tokenizer


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, which must bring a fast one (`tokenizer.json`); a Path is taken as it is."""
    folder = name if isinstance(name, Path) else resolve(name)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer: {folder} holds no tokenizer.json; save the model's tokenizer there")
    return AutoTokenizer.from_pretrained(folder)


def load_table(folder: Path, vocab_size: int, tokenizer: Any) -> CooccurrenceTable | None:
    """The table beside a DynaMo model's weights, checked against it; None where there is none."""
    path = folder / TABLE_FILE
    if not path.is_file():
        return None
    table = CooccurrenceTable.load(path)
    table.check(vocab_size=vocab_size, tokenizer=fingerprint(tokenizer))
    return table


def model_type(folder: Path) -> str:
    """The architecture that a model folder declares."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: {folder} is no model folder: it holds no config.json")
    return PretrainedConfig.get_config_dict(folder)[0].get("model_type", "")


def resolve(name: str) -> Path:
    """The local folder of a name; a hub id's comes from the cache or, failing that, from the hub."""
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    if name.startswith(EMBEDDED + "/"):
        return EMBEDDED_FOLDER / name.removeprefix(EMBEDDED + "/")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"model: expected '{EMBEDDED}', a model folder or a hub id such as EleutherAI/pythia-70m, "
            f"got {name!r}"
        )
    cached = _cached(name)
    return cached if cached is not None else _download(name)


def _cached(name: str) -> Path | None:
    """The cache's copy of a model, if it is whole: other programs may have fetched a part of it only."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError:
        return None
    models = [folder / part for part in ("base", "dynamo")] if (folder / "dynamo").is_dir() else [folder]
    needed = ("config.json", "tokenizer.json", "*.safetensors")
    return folder if all(any(model.glob(file)) for model in models for file in needed) else None


def _download(name: str) -> Path:
    """Ask the hub one quick question first: offline, the download's own retries take a minute."""
    try:
        HfApi().model_info(name, timeout=HUB_PROBE_SECONDS)
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except GatedRepoError:
        raise OSError(f"model: {name} is gated; accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise OSError(
            f"model: the hub has no model {name} (or it is private and HF_TOKEN is not set)"
        ) from None
    except Exception as error:
        raise OSError(
            f"model: {name} is not in the cache and cannot be fetched from the hub ({type(error).__name__}); "
            f"go online, or use '{EMBEDDED}' or a local folder"
        ) from error
