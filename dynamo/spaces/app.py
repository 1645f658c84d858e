"""What `spaces_config.yaml` and the environment say about how the page is to run.

The file is the single source of the Hugging Face Space; on a machine of one's own the same file holds, and
variables of the environment win over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class AppConfig:
    """model: what to load; votes: folder of the blind votes, None for no voting; queue_size: visitors that
    may wait; zero_gpu: whether the machine is a ZeroGPU Space, where model time is a visitor's quota.
    """

    model: str
    votes: Path | None
    queue_size: int
    zero_gpu: bool


def read_config(path: Path, environment: Mapping[str, str]) -> AppConfig:
    """Reads the file and the variables DYNAMO_MODEL, DYNAMO_VOTES, SPACE_ID and SPACES_ZERO_GPU.

    A relative folder lies beside the file. Raises ValueError naming the key and what it may be.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not YAML ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name}: expected keys and values, got {type(config).__name__}")
    models = _of(list, config, "models", path)
    app = _of(dict, config, "app", path)
    queue_size = _of(int, app, "queue_size", path)
    if not models or not all(isinstance(model, str) for model in models):
        raise ValueError(f"{path.name}: models: expected a list of names, got {models!r}")
    if queue_size < 1:
        raise ValueError(f"{path.name}: queue_size: expected 1 or more, got {queue_size}")
    on_space = "SPACE_ID" in environment
    votes = _of(str, app, "votes_on_space" if on_space else "votes", path)
    votes = environment.get("DYNAMO_VOTES", votes)
    return AppConfig(
        model=environment.get("DYNAMO_MODEL") or models[0],
        votes=path.parent / votes if votes else None,
        queue_size=queue_size,
        zero_gpu=environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "true"),
    )


def _of(kind: type, fields: dict[str, Any], key: str, path: Path) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path.name}: {key}: expected {kind.__name__}, got {value!r}")
    return value
