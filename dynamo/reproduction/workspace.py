"""The inputs of an experiment: the pair, the data, sizes, a seed, and a folder to work in.

Settings are what a result depends on, as plain values: files by a hash of their content, weights by a hash of
their numbers. Their hash names an experiment's folder, so a killed run of the same settings resumes there and
a run of other settings starts anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamo.common.options import option
from dynamo.loading import Pair

_SAMPLE = 1024  # numbers of each weight that go into its hash


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Raises ValueError if a size leaves nothing to measure."""

    steps: int = option(600, "steps of each training run")
    replies: int = option(1, "replies to each prompt")
    documents: int = option(400, "held-out documents that are read, 0 for all")
    drawn: bool = option(True, "draw them by the seed, as files are often sorted; else the first are read")
    positions: int = option(4000, "places of held-out text where the sampler decides")
    seed: int = option(0, "of everything that is drawn")

    def __post_init__(self):
        for each in fields(self):
            least = 0 if each.name in ("documents", "drawn", "seed") else 1
            if getattr(self, each.name) < least:
                raise ValueError(f"{each.name}: expected {least} or more, got {getattr(self, each.name)}")


@dataclass(frozen=True)
class Workspace:
    """pair: base, DynaMo, tokenizer and table; train_data, validation: JSONL files of conversations or texts
    (also .gz); other: a file of another corpus, or None; prompts: ids of each prompt; folder: unfinished
    work of all experiments; progress: called with a message when something is started.
    """

    pair: Pair
    train_data: Path
    validation: Path
    folder: Path
    prompts: Sequence[Sequence[int]]
    sizes: Sizes = Sizes()
    other: Path | None = None
    progress: Callable[[str], None] = lambda message: None

    @property
    def seed(self) -> int:
        return self.sizes.seed

    @property
    def steps(self) -> int:
        """The budget of each training run."""
        return self.sizes.steps

    @cached_property
    def documents(self) -> list[Any]:
        """The held-out documents that are `chosen`, as ids."""
        return self.chosen(self.read(self.validation))

    def read(self, path: Path) -> list[Any]:
        """A file's documents as ids; says what is left out of it."""
        from dynamo.data.documents import read_documents
        from dynamo.data.reading import Reading

        reading = Reading()
        documents = read_documents(path, self.pair.tokenizer, reading)
        for sentence in reading.sentences()[1:]:
            self.progress(f"{path.name}: {sentence}")
        return documents

    def chosen(self, documents: Sequence[Any]) -> list[Any]:
        """`sizes.documents` of them in their order: drawn by the seed, more of them with the fewer among
        them, or the first."""
        count = self.sizes.documents or len(documents)
        if not self.sizes.drawn:
            return list(documents[:count])
        drawn = np.random.default_rng(self.seed).permutation(len(documents))[:count]
        return [documents[index] for index in np.sort(drawn)]

    def settings(self, depends: Sequence[str] = ()) -> dict[str, Any]:
        """The named settings (`SETTINGS`) and the pair's, to be hashed and to be read."""
        return {"model": self._pair, **{name: SETTINGS[name](self) for name in depends}}

    @cached_property
    def _pair(self) -> dict[str, Any]:
        table = self.pair.table
        return {
            "name": self.pair.name,
            "base": weights_fingerprint(self.pair.base),
            "dynamo": weights_fingerprint(self.pair.dynamo),
            "table": None if table is None else [table.order, table.total_tokens, table.min_count],
        }

    def folder_of(self, name: str, depends: Sequence[str] = (), **more: Any) -> Path:
        """The folder that experiments of these settings (and `more`) share or resume from; it is created."""
        settings = {**self.settings(depends), **more}
        folder = self.folder / f"{name}-{settings_hash(settings)[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


SETTINGS: dict[str, Callable[[Workspace], Any]] = {
    "train": lambda workspace: file_fingerprint(workspace.train_data),
    "validation": lambda workspace: file_fingerprint(workspace.validation),
    "other": lambda workspace: None if workspace.other is None else file_fingerprint(workspace.other),
    "prompts": lambda workspace: {
        "count": len(workspace.prompts),
        "hash": settings_hash([list(map(int, prompt)) for prompt in workspace.prompts])[:16],
    },
    "steps": lambda workspace: workspace.sizes.steps,
    "replies": lambda workspace: workspace.sizes.replies,
    "documents": lambda workspace: _which(workspace.sizes),
    "dialogues": lambda workspace: workspace.sizes.documents,
    "positions": lambda workspace: workspace.sizes.positions,
    "seed": lambda workspace: workspace.sizes.seed,
}


def _which(sizes: Sizes) -> Any:
    """A number: the first so many documents, or 0 for all; a mapping: drawn ones."""
    return (
        {"drawn": sizes.documents, "seed": sizes.seed} if sizes.drawn and sizes.documents else sizes.documents
    )


def settings_hash(settings: Any) -> str:
    """A hash of the settings, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@cache
def file_fingerprint(path: Path) -> str:
    """The file's name and the beginning of its content's SHA-256."""
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A hash of the first numbers of every weight, as training changes all weights."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        sample = weight.detach().reshape(-1)[:_SAMPLE].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]
