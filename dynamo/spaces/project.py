"""`spaces_config.yaml` as a checked value: the card, one profile, variables, secrets' names, what to upload.

Finds everything that the hub would refuse, or that would make the Space fail minutes later, and names its
key. Limits and names are the hub's of autumn 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceHardware

from dynamo.common.validation import short_repr
from dynamo.spaces.app import profile_of, read_config, read_yaml

CONFIG_FILE = "spaces_config.yaml"
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
CARD_KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license",
    "short_description", "tags", "models", "datasets", "thumbnail", "pinned", "fullWidth", "header",
    "startup_duration_timeout", "preload_from_hub", "disable_embedding", "custom_headers",
}  # fmt: skip
NEEDED_KEYS = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file",
               "license", "short_description")  # fmt: skip
PROFILE_KEYS = {"hardware", "sleep_time", "models", "quantize", "gpu_seconds", "variables"}
SHORT_DESCRIPTION = 60  # characters; the hub refuses more when the card is committed
ZERO_GPU = SpaceHardware.ZERO_A10G.value
NO_SLEEP_TIME = (SpaceHardware.CPU_BASIC.value, ZERO_GPU)  # the hub decides when these sleep
ZERO_GPU_PYTHON = ("3.10", "3.10.13", "3.12", "3.12.12")
ZERO_GPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0")
SHAPES = {
    "card": (dict, "names and values"), "variables": (dict, "names and values"),
    "app": (dict, "names and values"), "hardware": (str, "a name"),
    "models": (list, "a list of names"), "upload": (list, "a list of patterns"),
    "keep": (list, "a list of patterns"), "secrets": (list, "a list of names"),
}  # fmt: skip
LONGEST_RUN = 120  # seconds of quota that one run may ask for


@dataclass(frozen=True)
class SpaceProject:
    """A project folder with its configuration, read for one profile.

    root: the folder; config: the file's content; profile: the chosen profile's name; fields: its content.
    """

    root: Path
    config: dict[str, Any]
    profile: str
    fields: dict[str, Any]

    @classmethod
    def read(cls, root: Path, profile: str) -> SpaceProject:
        """Raises ValueError for a file that cannot be read; `problems` finds the rest."""
        path = root / CONFIG_FILE
        if not path.is_file():
            raise ValueError(f"{root} holds no {CONFIG_FILE}; run this in the project's folder")
        config = read_yaml(path)
        fields = profile_of(config, profile, path)
        _require_shapes(config, CONFIG_FILE)
        _require_shapes(fields, f"{CONFIG_FILE}: profiles.{profile}")
        return cls(root, config, profile, fields)

    def loading(self, model: str) -> SpaceProject:
        """The same Space with another model, named by its variable DYNAMO_MODEL."""
        variables = {**(self.fields.get("variables") or {}), "DYNAMO_MODEL": model}
        return replace(self, fields={**self.fields, "models": [model], "variables": variables})

    @property
    def card(self) -> dict[str, Any]:
        return self.config.get("card") or {}

    @property
    def hardware(self) -> str:
        return self.fields.get("hardware", "")

    @property
    def sleep_time(self) -> int | None:
        return self.fields.get("sleep_time")

    @property
    def models(self) -> list[str]:
        return self.fields.get("models", self.config.get("models")) or []

    @property
    def variables(self) -> dict[str, str]:
        """The Space's variables: the file's, the profile's, and the profile's name."""
        shared, own = self.config.get("variables") or {}, self.fields.get("variables") or {}
        return {**shared, **own, "DYNAMO_PROFILE": self.profile}

    @property
    def secrets(self) -> list[str]:
        return self.config.get("secrets") or []

    @property
    def upload(self) -> list[str]:
        return self.config.get("upload") or []

    @property
    def keep(self) -> list[str]:
        return self.config.get("keep") or []

    def pins(self) -> dict[str, str]:
        """Exact versions in requirements.txt, by name without extras."""
        path = self.root / "requirements.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = (re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+]+)", line.strip()) for line in lines)
        return {match[1]: match[2] for match in found if match}

    def problems(self) -> list[str]:
        """Everything that is wrong, one sentence each."""
        return [*self._card_problems(), *self._profile_problems(), *self._environment_problems(),
                *self._upload_problems()]  # fmt: skip

    def _card_problems(self) -> Iterator[str]:
        card = self.card
        yield from (f"card.{key}: it is missing" for key in NEEDED_KEYS if not card.get(key))
        for key in sorted(card.keys() - CARD_KEYS):
            remedy = "; hardware belongs to a profile" if "hardware" in key else ""
            yield f"card.{key}: the hub knows no such key{remedy}"
        described = str(card.get("short_description") or "")
        if len(described) > SHORT_DESCRIPTION:
            yield f"card.short_description: at most {SHORT_DESCRIPTION} characters, it has {len(described)}"
        for key in ("colorFrom", "colorTo"):
            if card.get(key, "red") not in COLOURS:
                yield f"card.{key}: expected one of {', '.join(COLOURS)}, got {card[key]!r}"
        for key in ("sdk_version", "python_version"):
            if not isinstance(card.get(key, ""), str):
                yield f"card.{key}: put it in quotes; unquoted, {card[key]!r} is a number to YAML"
        if card.get("sdk", "gradio") != "gradio":
            yield f"card.sdk: expected gradio, got {card['sdk']!r}"
        pinned = self.pins().get("gradio")
        if card.get("sdk_version") and card["sdk_version"] != pinned:
            yield f"card.sdk_version: {card['sdk_version']}, but requirements.txt pins gradio at {pinned}"
        if card.get("app_file") and not (self.root / str(card["app_file"])).is_file():
            yield f"card.app_file: there is no file {card['app_file']}"

    def _profile_problems(self) -> Iterator[str]:
        where = f"profiles.{self.profile}"
        yield from (f"{where}.{key}: unknown" for key in sorted(self.fields.keys() - PROFILE_KEYS))
        known = [each.value for each in SpaceHardware]
        if self.hardware not in known:
            yield f"{where}.hardware: expected one of {', '.join(known)}, got {self.hardware!r}"
        sleep = self.sleep_time
        if sleep is not None and self.hardware in NO_SLEEP_TIME:
            yield f"{where}.sleep_time: {self.hardware} sleeps when the hub decides; leave it out"
        elif sleep is not None and (type(sleep) is not int or sleep < 60):
            yield f"{where}.sleep_time: expected seconds, 60 or more, got {sleep!r}"
        if self.fields.get("quantize") not in (None, "8bit", "4bit"):
            yield f"{where}.quantize: expected 8bit or 4bit, got {self.fields['quantize']!r}"
        seconds = self.fields.get("gpu_seconds", 1)
        if type(seconds) is not int or not 1 <= seconds <= LONGEST_RUN:
            yield f"{where}.gpu_seconds: expected 1 to {LONGEST_RUN}, got {seconds!r}"
        if self.hardware == ZERO_GPU:
            if self.fields.get("quantize"):
                yield f"{where}.quantize: a GPU packs layers, and ZeroGPU loads without one; leave it out"
            python, torch = self.card.get("python_version"), self.pins().get("torch")
            if python not in ZERO_GPU_PYTHON:
                yield f"card.python_version: ZeroGPU has {', '.join(ZERO_GPU_PYTHON)}, got {python!r}"
            if torch not in ZERO_GPU_TORCH:
                yield f"requirements.txt: ZeroGPU runs torch {', '.join(ZERO_GPU_TORCH)}, it pins {torch}"

    def _environment_problems(self) -> Iterator[str]:
        for name, value in self.variables.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
                yield f"variables.{name}: no name for a variable"
            if not isinstance(value, str):
                yield f"variables.{name}: put the value in quotes, got {value!r}"
        for name in self.secrets:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
                yield "secrets: list names only; values come from the environment when it is deployed"
            elif name in self.variables:
                yield f"secrets.{name}: it is a variable too, and variables are public"
        try:
            read_config(self.root / CONFIG_FILE, {"DYNAMO_PROFILE": self.profile})
        except ValueError as error:
            yield str(error)

    def _upload_problems(self) -> Iterator[str]:
        if not self.upload:
            yield "upload: list the patterns of the files that the Space needs"
        for pattern in self.upload:
            if not is_inside(pattern):
                yield f"upload: {pattern!r} leads out of the project's folder"
            elif not any(path.is_file() for path in self.root.glob(pattern)):
                yield f"upload: no file matches {pattern!r}"
        requirements = self.root / "requirements.txt"
        text = requirements.read_text(encoding="utf-8") if requirements.is_file() else ""
        if not text:
            yield "requirements.txt: it is missing"
        if "+cpu" in text or "--extra-index-url" in text or "--index-url" in text:
            yield "requirements.txt: a CPU build of torch stops a ZeroGPU Space at its start; pin plain torch"


def is_inside(pattern: str) -> bool:
    """Whether a pattern of files stays within its folder."""
    return bool(pattern) and not pattern.startswith(("/", "~")) and ".." not in Path(pattern).parts


def _require_shapes(fields: dict[Any, Any], where: str) -> None:
    """Raise ValueError unless names, mappings and lists of names are where the file has them."""
    for key, (kind, words) in SHAPES.items():
        value = fields.get(key)
        named = kind is list and isinstance(value, list) and key != "secrets"
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {key}: expected {words}, got {short_repr(value)}")
        if named and not all(isinstance(each, str) for each in value):
            raise ValueError(f"{where}: {key}: expected {words}, got {short_repr(value)}")
    for key in ("card", "variables"):
        wrong = next((name for name in fields.get(key) or {} if not isinstance(name, str)), None)
        if wrong is not None:
            raise ValueError(f"{where}: {key}: expected words as names, got {short_repr(wrong)}")
