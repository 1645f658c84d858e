"""How the page is to run, from `spaces_config.yaml` and the environment.

The file is the single source of the Hugging Face Space and is also read elsewhere; environment variables take
precedence. A deployed Space finds its profile in the variable DYNAMO_PROFILE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dynamo.spaces.limits import UNLIMITED, Limits


@dataclass(frozen=True)
class AppConfig:
    """model: what to load, "" for the first of `models` that is here; votes: folder of the blind votes, None
    for no voting; queue_size: visitors that may wait; zero_gpu: whether this is a ZeroGPU Space, where model
    time counts against a visitor's quota; models: all that may be chosen; quantize: "8bit", "4bit" or None;
    gpu_seconds: of that quota, for one run; limits: of one visitor; on_space: whether this is a Hugging Face
    Space, where only `models` can be loaded; model_choice: whether a visitor may load another model; data:
    folder of the dialogues, None on a Space.
    """

    model: str
    votes: Path | None
    queue_size: int
    zero_gpu: bool
    models: tuple[str, ...] = ()
    quantize: str | None = None
    gpu_seconds: int = 30
    limits: Limits = UNLIMITED
    on_space: bool = False
    model_choice: bool = True
    data: Path | None = None


def read_config(path: Path, environment: Mapping[str, str]) -> AppConfig:
    """Reads the file and the variables DYNAMO_MODEL, DYNAMO_VOTES, DYNAMO_DATA, DYNAMO_QUANTIZE,
    DYNAMO_PROFILE, DYNAMO_QUEUE, DYNAMO_LIMITS ("on", "proxy" or "off"), SPACE_ID and SPACES_ZERO_GPU.

    A relative folder lies beside the file. Raises ValueError naming the key and what it may be.
    """
    config = read_yaml(path)
    profile = profile_of(config, environment.get("DYNAMO_PROFILE", ""), path)
    models = _of(list, {"models": config.get("models"), **profile}, "models", path)
    app = _of(dict, config, "app", path)
    queue_size = _queue_size(app, environment, path)
    given = _of(dict, {"limits": {}, **app}, "limits", path)
    if not models or not all(isinstance(model, str) for model in models):
        raise ValueError(f"{path.name}: models: expected a list of names, got {models!r}")
    on_space = "SPACE_ID" in environment
    choice = "model_choice_on_space" if on_space else "model_choice"
    model_choice = {"model_choice": True, "model_choice_on_space": False, **app}[choice]
    if not isinstance(model_choice, bool):
        raise ValueError(f"{path.name}: app.{choice}: expected true or false, got {model_choice!r}")
    votes = _of(str, app, "votes_on_space" if on_space else "votes", path)
    votes = environment.get("DYNAMO_VOTES", votes)
    limited, behind_proxy = _limited(environment, on_space)
    limits = Limits.from_config(given, f"{path.name}: app.limits", behind_proxy)
    data = "" if on_space else environment.get("DYNAMO_DATA", _of(str, {"data": "", **app}, "data", path))
    return AppConfig(
        model=environment.get("DYNAMO_MODEL", ""),
        votes=path.parent / votes if votes else None,
        queue_size=queue_size,
        zero_gpu=environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"),
        models=tuple(models),
        quantize=environment.get("DYNAMO_QUANTIZE") or profile.get("quantize"),
        gpu_seconds=profile.get("gpu_seconds", AppConfig.gpu_seconds),
        limits=limits if limited else UNLIMITED,
        on_space=on_space,
        model_choice=model_choice,
        data=path.parent / data if data else None,
    )


def _queue_size(app: dict[str, Any], environment: Mapping[str, str], path: Path) -> int:
    text = environment.get("DYNAMO_QUEUE")
    if text and not text.isdecimal():
        raise ValueError(f"DYNAMO_QUEUE: expected a whole number from 1, got {text!r}")
    size = int(text) if text else _of(int, app, "queue_size", path)
    if size < 1:
        raise ValueError(f"{path.name}: queue_size: expected 1 or more, got {size}")
    return size


def _limited(environment: Mapping[str, str], on_space: bool) -> tuple[bool, bool]:
    """Whether limits apply, and whether the page is behind a trusted proxy."""
    limits = environment.get("DYNAMO_LIMITS", "on" if on_space else "off")
    if limits not in ("on", "proxy", "off"):
        raise ValueError(f"DYNAMO_LIMITS: expected on, proxy or off, got {limits!r}")
    return limits != "off", on_space or limits == "proxy"


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's keys and values. Raises ValueError for anything else."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise ValueError(f"{path.name}: its values are nested too deeply") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name}: expected keys and values, got {type(config).__name__}")
    return config


def profile_of(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A profile's fields; {} for "". Raises ValueError for a name that the file does not have."""
    if not name:
        return {}
    profiles = _of(dict, config, "profiles", path)
    if name not in profiles:
        known = ", ".join(map(str, profiles))
        raise ValueError(f"{path.name}: profile: expected one of {known}, got {name!r}")
    return _of(dict, profiles, name, path)


def _of(kind: type, fields: dict[str, Any], key: str, path: Path) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path.name}: {key}: expected {kind.__name__}, got {value!r}")
    return value
