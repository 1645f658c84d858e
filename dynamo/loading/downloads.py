"""Models of the Hugging Face hub: from its cache, else fetched.

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

from dynamo.common.validation import parse_json
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
from dynamo.model.gguf_cache import gguf_in, only_gguf
from dynamo.model.heads_file import HEADS_FILE

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md"]
ADAPTER_FILE = "adapter_config.json"
HUB_PROBE_SECONDS = 3.0
HUB_AWAY_SECONDS = 300.0

Progress = Callable[[int, int], None]

# Hubs that did not answer: endpoint -> (time, name of the error).
_away: dict[str, tuple[float, str]] = {}


def is_cached(name: str) -> bool:
    """Whether a hub id needs no download."""
    return cached(name) is not None


def cached(name: str) -> Path | None:
    """The cache's copy of a model, a folder or a GGUF file, if it is complete: other programs may have
    fetched only a part.
    """
    repo, file = _repo_and_file(name)
    if file:
        folder = _snapshot(repo, [file])
        return folder / file if folder is not None and (folder / file).is_file() else None
    folder = _snapshot(repo, HUB_FILES)
    if folder is not None and all(map(_is_complete, model_folders(folder).values())):
        return folder
    folder = _snapshot(repo, ["*.gguf"])
    return None if folder is None else gguf_in(folder)


def _repo_and_file(name: str) -> tuple[str, str]:
    """OWNER/NAME and nothing, or the GGUF file named after it."""
    owner, repo, *file = name.split("/", 2)
    return f"{owner}/{repo}", "".join(file)


def _snapshot(repo: str, patterns: list[str]) -> Path | None:
    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        return None


def _is_complete(model: Path) -> bool:
    """Whether a folder holds a model with all of its shards."""
    if (model / HEADS_FILE).is_file():
        return (model / "config.json").is_file()
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


def download(name: str, progress: Progress | None, any_kind: bool) -> Path:
    """Fetch a model: its folder in the cache, or the GGUF file. Raises as `names.resolve` does."""
    install_checks()
    api = HfApi()
    when, failure = _away.get(api.endpoint, (float("-inf"), ""))
    if time.monotonic() - when < HUB_AWAY_SECONDS:
        raise _unreachable(name, failure)
    repo, gguf = _repo_and_file(name)
    with _explained(api, name):
        info = api.model_info(repo, timeout=HUB_PROBE_SECONDS)
        commit = info.sha
        check_names(commit, [])
        tree = api.list_repo_tree(repo, recursive=True, revision=commit)
        files = [entry.path for entry in tree if isinstance(entry, RepoFile)]
        check_names(commit, files)
    if not gguf and not any(file.endswith(".safetensors") for file in files):
        gguf = only_gguf(name, files)
    if gguf and gguf not in files:
        there = ", ".join(sorted(file for file in files if file.endswith(".gguf"))) or "none"
        raise ValueError(f"model: the hub's {repo} has no {gguf}; its GGUF files are: {there}")
    said, key = (info.gguf, "architecture") if gguf else (info.config, "model_type")
    kind = said.get(key) if isinstance(said, dict) else None
    if kind is not None and not any_kind:
        check_kind(name, kind)  # before its weights are fetched
    if gguf:
        patterns = wanted = [gguf]
    else:
        check_adapter(name, files)
        check_format(name, files)
        if not any(PurePosixPath(file).name == "config.json" for file in files):
            raise ValueError(f"model: the hub's {name} is no model: it holds no config.json")
        patterns = HUB_FILES
        wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]
    bars = {} if progress is None else {"tqdm_class": _reporting(progress)}
    with _explained(api, name):
        for _ in range(2):  # the first may have resumed a file that was corrupt already
            folder = Path(api.snapshot_download(repo, revision=commit, allow_patterns=patterns, **bars))
            fault = remove_corrupt(folder) or missing(folder, wanted)
            if not fault:
                break
        else:
            raise CorruptDownload(fault)
    enter(folder)
    return folder / gguf if gguf else folder


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
        "go online, or use the embedded pair or a local folder"
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
