"""From a name to a folder on this machine: "embedded", a path, or a Hugging Face id.

The cache is tried first. If it lacks the model, one quick request shows whether the hub answers, as a
download without a hub would retry each file for a minute. A hub that did not answer is not asked again for
five minutes. Every way in which this can fail has its own error message.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, RepoFile, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from tqdm import tqdm

from dynamo.common.validation import parse_json, short_repr
from dynamo.loading.fetched import (
    CorruptDownload,
    check_names,
    enter,
    install_checks,
    missing,
    remove_corrupt,
)
from dynamo.model import DynamoConfig
from dynamo.model.architectures import architecture_of_type

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md"]
LONGEST_NAME = 4096
ADAPTER_FILE = "adapter_config.json"
HUB_PROBE_SECONDS = 3.0
HUB_AWAY_SECONDS = 300.0

Progress = Callable[[int, int], None]

# Hubs that did not answer: endpoint -> (time, name of the error).
_away: dict[str, tuple[float, str]] = {}


def resolve(name: str, progress: Progress | None = None, any_kind: bool = False) -> Path:
    """The local folder of a model; a hub id is looked up in the cache, then fetched from the hub.

    progress: called with the bytes fetched so far and in total; without it the terminal shows bars; any_kind:
    also fetch models of other architectures than those that can be loaded. Raises ValueError for a name that
    is none of the three and for weights that are not safetensors, OSError for an id that cannot be fetched.
    """
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    if name in (f"{EMBEDDED}/base", f"{EMBEDDED}/dynamo"):
        return EMBEDDED_FOLDER / name.removeprefix(EMBEDDED + "/")
    possible = name.isprintable() and len(name) <= LONGEST_NAME
    path = Path(name if possible else "").expanduser()
    if name and possible and path.is_dir():
        return path
    if not possible or path.is_file() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"model: expected '{EMBEDDED}', a model folder or a hub id such as EleutherAI/pythia-70m, "
            f"got {short_repr(name)}"
        )
    cached = _cached(name)
    return cached if cached is not None else _download(name, progress, any_kind)


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


def model_folders(folder: Path) -> dict[str, Path]:
    """The models in a folder: "base" and "dynamo" of a pair, else the folder itself under "model"."""
    parts = {part: folder / part for part in ("base", "dynamo")}
    return parts if all(path.is_dir() for path in parts.values()) else {"model": folder}


def check_adapter(name: str, files: list[str]) -> None:
    """Raise ValueError for an adapter of PEFT (LoRA), whose model must be made first."""
    if ADAPTER_FILE in files and "config.json" not in files:
        raise ValueError(
            f"model: {name} is an adapter of PEFT (LoRA), which changes a base model and is none itself. "
            f"Merge it once (pip install peft): AutoPeftModelForCausalLM.from_pretrained({name!r})"
            ".merge_and_unload().save_pretrained(FOLDER), save the tokenizer of its base there, load FOLDER"
        )


def check_format(name: str, files: list[str]) -> None:
    """Raise ValueError for a model whose weights are pickled instead of safetensors."""
    if any(file.endswith(".safetensors") for file in files):
        return
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        raise ValueError(
            f"model: {name} has its weights as {pickled[0]} only; safetensors alone are read here, because "
            "pickled files can run code. If you trust their author, convert them once with transformers: "
            f"AutoModelForCausalLM.from_pretrained({name!r}, use_safetensors=False).save_pretrained(FOLDER), "
            f"then AutoTokenizer.from_pretrained({name!r}).save_pretrained(FOLDER), and load FOLDER"
        )


def check_kind(name: str, kind: Any) -> None:
    """Refuse a model that is neither a DynaMo model nor a base of a supported family. Raises ValueError."""
    if kind != DynamoConfig.model_type:
        architecture_of_type(kind, f"model: {name}")


def is_cached(name: str) -> bool:
    """Whether a hub id needs no download."""
    return _cached(name) is not None


def _cached(name: str) -> Path | None:
    """The cache's copy of a model, if it is complete: other programs may have fetched only a part."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError:
        return None
    return folder if all(map(_is_complete, model_folders(folder).values())) else None


def _is_complete(model: Path) -> bool:
    """Whether a folder holds a model with all of its shards."""
    needed = {"config.json", "tokenizer.json"}
    index = model / "model.safetensors.index.json"
    if index.is_file():
        try:
            needed |= set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
    else:
        needed.add("model.safetensors")
    return all(isinstance(file, str) and (model / file).is_file() for file in needed)


def _download(name: str, progress: Progress | None, any_kind: bool) -> Path:
    install_checks()
    api = HfApi()
    when, failure = _away.get(api.endpoint, (float("-inf"), ""))
    if time.monotonic() - when < HUB_AWAY_SECONDS:
        raise _unreachable(name, failure)
    with _explained(api, name):
        info = api.model_info(name, timeout=HUB_PROBE_SECONDS)
        commit = info.sha
        check_names(commit, [])
        tree = api.list_repo_tree(name, recursive=True, revision=commit)
        files = [entry.path for entry in tree if isinstance(entry, RepoFile)]
        check_names(commit, files)
    kind = info.config.get("model_type") if isinstance(info.config, dict) else None
    if kind is not None and not any_kind:
        check_kind(name, kind)  # before its weights are fetched
    check_adapter(name, files)
    check_format(name, files)
    if not any(PurePosixPath(file).name == "config.json" for file in files):
        raise ValueError(f"model: the hub's {name} is no model: it holds no config.json")
    wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in HUB_FILES)]
    bars = {} if progress is None else {"tqdm_class": _reporting(progress)}
    with _explained(api, name):
        for _ in range(2):  # the first may have resumed a file that was corrupt already
            folder = Path(api.snapshot_download(name, revision=commit, allow_patterns=HUB_FILES, **bars))
            fault = remove_corrupt(folder) or missing(folder, wanted)
            if not fault:
                break
        else:
            raise CorruptDownload(fault)
    enter(folder)
    return folder


@contextmanager
def _explained(api: HfApi, name: str) -> Iterator[None]:
    """Turn whatever goes wrong with a hub into one sentence."""
    try:
        yield
    except GatedRepoError:
        raise OSError(
            f"model: {name} is gated; accept its terms on its page on the hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise OSError(
            f"model: the hub has no model {name} (or it is private and HF_TOKEN is not set)"
        ) from None
    except OfflineModeIsEnabled:
        raise _unreachable(name, "HF_HUB_OFFLINE is set") from None
    except HFValidationError:
        raise
    except Exception as error:
        root = _root(error)
        response = getattr(root, "response", None)
        if response is not None:
            raise _unreachable(name, f"it answered {response.status_code}") from error
        failure = type(root).__name__
        if not _is_silence(root):
            reason = getattr(root, "strerror", None) or f"its answer cannot be used ({failure})"
            reason = str(root) if isinstance(root, CorruptDownload) else reason
            message = f"model: {name} cannot be fetched from the hub: {reason}; try again later"
            raise OSError(message) from error
        _away[api.endpoint] = (time.monotonic(), failure)
        raise _unreachable(name, failure) from error


# Of the HTTP library, whichever it is: its errors share no base class with OSError.
_SILENT = {"TransportError", "NetworkError", "TimeoutException", "ProtocolError"}


def _is_silence(error: BaseException) -> bool:
    """Whether the hub did not answer at all, as opposed to something being wrong with this model."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or bool(kinds & _SILENT)


def _unreachable(name: str, failure: str) -> OSError:
    return OSError(
        f"model: {name} is not in the cache and cannot be fetched from the hub ({failure}); "
        f"go online, or use '{EMBEDDED}' or a local folder"
    )


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reporting(progress: Progress) -> type[tqdm]:
    """A progress bar that reports to `progress` instead of a terminal."""
    most = {"done": 0, "total": 0}

    class Bar(tqdm):
        def display(self, *_: Any, **__: Any) -> None:
            pass

        # Not in `display`, which holds a lock of all bars: `progress` may raise to end the download.
        def update(self, n: float | None = 1) -> None:
            super().update(n)
            self._report()

        # Called before each file; Xet's own threads swallow what `update` raises and finish their file. With
        # `nolock` it is called by tqdm's monitor, which has to go on.
        def refresh(self, nolock: bool = False, **_: Any) -> None:
            if not nolock:
                self._report()

        def _report(self) -> None:
            # One bar counts files; of those that count bytes, one sees the network and one the disk.
            if self.unit == "B" and self.total:
                most["done"] = max(most["done"], int(self.n))
                most["total"] = max(most["total"], int(self.total), most["done"])
                progress(most["done"], most["total"])

    return Bar
