"""The models that this page can load, one at a time, into its `PageService`.

A pair replaces the one before from the next run on. Where both do not fit into memory together, the embedded
pair replaces the old one before the new one is read, so that the page always has a pair, and says so. A stock
Pythia has no token heads and cannot race: it is loaded beside the pair and completes text. On a public Space
only listed names are loaded. Nothing here knows gradio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynamo.common.memory import give_back
from dynamo.loading import (
    EMBEDDED,
    KNOWN,
    SMOLLM2,
    SMOLLM2_FOLDER,
    Pair,
    at_hand,
    available_memory,
    checked_device,
    default_dtype,
    load,
    load_model,
    memory_of,
    model_folders,
    model_type,
    resolve,
)
from dynamo.loading.downloads import is_cached
from dynamo.loading.quantised import QUANTISATIONS
from dynamo.loading.sizes import gigabytes, model_sizes, stored_bytes
from dynamo.model import DynamoConfig
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.compare.service import PageService
from dynamo.ui.models.completion import Completion
from dynamo.ui.models.few_bits import Difference
from dynamo.ui.models.training_job import in_words

POLL_SECONDS = 0.2
WORKING_MEMORY = 1.15  # caches and activations beside the weights, as a share of them; a round guess


class Cancelled(BaseException):
    """A visitor cancelled the download. No Exception: a failed download is reported otherwise."""


@dataclass(frozen=True)
class Row:
    """One line of the picker; one with a reason not to load it cannot be chosen."""

    name: str
    title: str
    detail: str = ""
    badge: str = ""
    reason: str = ""


@dataclass(frozen=True)
class LoadProgress:
    """How far a load has come: in words, and the bytes of a download, done and in all."""

    message: str
    done: int = 0
    total: int = 0


class ModelManager:
    """Which models a visitor may load, and the one that is loaded.

    stage: a loaded pair to what the page runs; names: the listed models; any_model: whether any other may be
    loaded too, from a folder or the hub, which is never so on a public Space; ready: pairs that are loaded
    already, by name; training_folder: where heads are trained, None for no training; dialogues: a text on
    this machine to train them on, None without; few_bits: what copies in fewer bits change of a pair, by its
    name; device: where models go, None for the default; held: bytes of the pair to begin with. completion: a
    stock model that is loaded beside the pair, if any.
    """

    def __init__(
        self,
        service: PageService,
        stage: Callable[[Pair], ModelPair],
        *,
        names: tuple[str, ...] = (),
        any_model: bool = False,
        ready: Mapping[str, ModelPair] | None = None,
        training_folder: Path | None = None,
        dialogues: Path | None = None,
        few_bits: Mapping[str, Sequence[Difference]] | None = None,
        device: str | None = None,
        held: int = 0,
    ):
        self.service = service
        self.names, self.any_model = names, any_model
        self.training_folder, self.dialogues = training_folder, dialogues
        self.device = checked_device(device)
        # On a GPU the engines have no such copies.
        self.few_bits = few_bits if few_bits and self.device.type == "cpu" and not ready else {}
        self.completion: Completion | None = None
        self.completions = 0  # that were loaded so far
        self.notice = ""
        self._stage, self._ready = stage, ready or {}
        self._pair_bytes = held
        self._dtype = default_dtype(self.device)
        self._job: _Job | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> str:
        return self.service.pair.name

    @property
    def loading(self) -> str | None:
        """What is being loaded, None where nothing is."""
        job = self._job
        return job.name if job is not None and job.running else None

    def quantisations(self, name: str = "") -> list[str]:
        """Those of a model to choose from: measured copies in fewer bits, else what its loader may do. That
        refuses what the machine cannot do: to ask the library here would import it, which takes seconds.
        """
        if name in self.few_bits:
            return list(dict.fromkeys(each.weights for each in self.few_bits[name]))
        installed = find_spec("bitsandbytes") is not None
        return list(QUANTISATIONS) if installed and not self._ready else []

    # ---- what there is

    def rows(self, quantize: str | None = None) -> list[Row]:
        if not self.any_model:
            return self.pairs()
        return [*self.pairs(), *self._suite(quantize)]

    def pairs(self) -> list[Row]:
        """Those with token heads, which can race."""
        shipped = [SMOLLM2] if self.any_model and (SMOLLM2_FOLDER / "config.json").is_file() else []
        rows = [self._row(name) for name in dict.fromkeys((EMBEDDED, *shipped, *self.names))]
        return [*rows, *self._trained()] if self.any_model else rows

    def _row(self, name: str) -> Row:
        known = KNOWN.get(name)
        title, detail = (known.title, f"{known.good_for}; ") if known else (name, "")
        return Row(name, title, detail + self._where(name), self._badge(name))

    def _suite(self, quantize: str | None) -> list[Row]:
        """The Pythia sizes that no row above names."""
        free = available_memory(self.device)
        if free is not None:
            free += self._held()
        packed = self.device.type == "cpu"
        return [
            Row(
                size.name,
                size.name.removeprefix("EleutherAI/"),
                f"{_count(size.parameters)} parameters, needs {gigabytes(size.bytes)} as a pair; "
                + ("in the cache" if is_cached(size.name) else "from the hub"),
                self._badge(size.name),
                size.reason,
            )
            for size in model_sizes(self._dtype, free, _loaded_in(quantize), packed=packed)
            if size.name not in self.names
        ]

    def _trained(self) -> list[Row]:
        if self.training_folder is None:
            return []
        folders = sorted(self.training_folder.glob("*/model"))
        return [Row(str(each), *in_words(each.parent), self._badge(str(each))) for each in folders]

    def _where(self, name: str) -> str:
        if name in self._ready:
            return "ready"
        if name == EMBEDDED:
            return "comes with the project"
        if name == SMOLLM2:
            return "its base is on this machine" if at_hand(name) else "its base comes from the hub"
        if Path(name).expanduser().is_dir():
            return "a folder"
        return "in the cache" if is_cached(name) else "from the hub"

    def _badge(self, name: str) -> str:
        if self.completion is not None and self.completion.name == name:
            return "completes text"
        return "loaded" if self.loaded == name else ""

    def _held(self) -> int:
        """Bytes that loading another model frees."""
        beside = memory_of(self.completion.model) if self.completion is not None else 0
        return beside + (0 if self.loaded == EMBEDDED else self._pair_bytes)

    # ---- loading

    def load(self, name: str, quantize: str | None = None) -> Iterator[LoadProgress]:
        """Loads a model and reports its progress. Raises ValueError or OSError in a sentence.

        Closing it does not end the load; `cancel` ends a download. Asking for what is already being loaded
        follows that load.
        """
        name = (name or "").strip()
        self._check(name, quantize)
        with self._lock:
            job = self._job
            if job is None or not job.running:
                job = self._job = _Job(name, quantize, lambda job: self._work(job, quantize))
                job.start()
            elif (job.name, job.quantize) != (name, quantize):
                raise ValueError(f"model: {job.name} is being loaded; wait for it, or cancel it")
        return job.progress()

    def cancel(self) -> None:
        """End a download; nobody waits for its thread, which ends at the next bytes that it receives."""
        if self._job is not None:
            self._job.cancel()

    def _check(self, name: str, quantize: str | None) -> None:
        if not name:
            raise ValueError("model: choose one above, or give a hub id, a folder or a GGUF file")
        if not self.any_model and name not in (EMBEDDED, *self.names):
            raise ValueError(f"model: expected one of {', '.join((EMBEDDED, *self.names))}")
        if quantize is not None and quantize not in self.quantisations(name):
            raise ValueError(f"quantize: {quantize!r} is not available for {name} on this machine")

    def _work(self, job: _Job, chosen: str | None) -> None:
        quantize, weights = _loaded_in(chosen), "own" if chosen in (None, *QUANTISATIONS) else chosen
        if job.name in self._ready:
            self.service.swap(self._ready[job.name])
            self.notice = ""
            return
        job.report(f"Looking for {job.name} …")
        folder = resolve(job.name, job.downloaded)
        job.fetched()
        folders = list(model_folders(folder).values())
        heads = model_type(folders[-1]) == DynamoConfig.model_type
        self.notice = ""
        self._make_room(job, folders, quantize)
        job.report(f"Reading the weights of {job.name} …")
        if heads or len(folders) > 1:
            pair = replace(load(job.name, self.device, quantize=quantize), weights=weights)
            self.completion = None
            self._pair_bytes = memory_of(pair.base, pair.dynamo)
            self.service.swap(self._stage(pair))
            self.notice = self.service.pair.notice
        else:
            model, tokenizer, _ = load_model(job.name, self.device, quantize=quantize)
            self.completion = Completion(job.name, model, tokenizer)
            self.completions += 1

    def _make_room(self, job: _Job, folders: list[Path], quantize: str | None) -> None:
        """Releases loaded models until the new one fits: none, where it fits beside them."""
        needed = round(WORKING_MEMORY * stored_bytes(folders, self._dtype, quantize))
        free = available_memory(self.device)
        if free is None or needed <= free:
            return
        self.completion = None
        if self.loaded != EMBEDDED:
            job.report("Waiting until no run is going on, to make room …")
            with self.service.exclusive():
                self.service.swap(self._stage(load(EMBEDDED, self.device)))
            self.notice = (
                f"There is no room for two models: the embedded pair answers until {job.name} is loaded."
            )
        give_back()


def _loaded_in(chosen: str | None) -> str | None:
    """What the loader quantises to; copies in fewer bits are made of a pair that is loaded in full."""
    return chosen if chosen in QUANTISATIONS else None


class _Job:
    """One load in a thread of its own."""

    def __init__(self, name: str, quantize: str | None, work: Callable[[_Job], None]):
        self.name, self.quantize = name, quantize
        self.cancelled = False
        self._fetching = True
        self._lock = threading.Lock()
        self._progress = LoadProgress("")
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True, name=f"load {name}")

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self.cancelled

    def cancel(self) -> None:
        with self._lock:
            if self._fetching and self.running:
                self.cancelled = True

    def fetched(self) -> None:
        """From here on there is no download to cancel. Raises Cancelled."""
        with self._lock:
            if self.cancelled:
                raise Cancelled
            self._fetching = False

    def report(self, message: str, done: int = 0, total: int = 0) -> None:
        self._progress = LoadProgress(message, done, total)

    def downloaded(self, done: int, total: int) -> None:
        if self.cancelled:
            raise Cancelled
        self.report(f"Fetching {self.name}: {gigabytes(done)} of {gigabytes(total)}", done, total)

    def progress(self) -> Iterator[LoadProgress]:
        while self.running:
            yield self._progress
            self._thread.join(POLL_SECONDS)
        if self.cancelled:
            raise ValueError(f"The download of {self.name} is cancelled; loading it again goes on there")
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[_Job], Any]) -> None:
        try:
            work(self)
        except BaseException as error:
            # Frames would keep half of a model in memory.
            self._error = error.with_traceback(None)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million"
