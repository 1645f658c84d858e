"""From a name to a pair that can race: base model, DynaMo model, tokenizer, co-occurrence table.

A name is "embedded" (the pair in `assets/models`), "smollm2" (heads in `assets/models/smollm2` on SmolLM2's
own weights), a local folder, or a Hugging Face id. A pair folder holds
`base/` and `dynamo/`; a lone DynaMo checkpoint races against its own first head, whose weights it then
shares. Token heads saved alone share the weights of their base: `base/` of their pair folder, or the one that
they name. The table lies beside the DynaMo weights as `cooccurrence.safetensors`. What does not fit into
memory is refused before anything is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from dynamo.common.memory import enough_memory
from dynamo.common.validation import short_repr
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data.text import fingerprint
from dynamo.loading.about import About, about
from dynamo.loading.devices import DeviceMap, MaxMemory, checked_device, default_dtype, map_options
from dynamo.loading.downloads import Progress, check_format, check_kind
from dynamo.loading.names import EMBEDDED, SMOLLM2, SMOLLM2_HUB, read_config, resolve
from dynamo.loading.quantised import loading_options, mend_saving
from dynamo.loading.sizes import available_memory, gigabytes, stored_bytes
from dynamo.model import DynamoConfig, DynamoForCausalLM, load_base, load_dynamo
from dynamo.model.checkpoints import load_filled
from dynamo.sampling.options import SamplingOptions

OPTIONAL = ("quantize", "device_map", "max_memory")  # what the embedded pair does without
TABLE_FILE = "cooccurrence.safetensors"


@dataclass(frozen=True, eq=False)
class Pair:
    """What a race needs. `base`: a stock model; `table`: None (no mask) where there is none; `options`: what
    was chosen for this pair, the usual ones where its config says nothing; `weights`: which copies of them
    its engines run on (`dynamo.Engine`)."""

    name: str
    description: str
    base: PreTrainedModel
    dynamo: DynamoForCausalLM
    tokenizer: Any
    table: CooccurrenceTable | None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    about: About = field(default_factory=About)
    weights: str = "own"

    @property
    def is_shared(self) -> bool:
        """Whether the base's weights are the DynaMo model's own."""
        return self.base.get_output_embeddings().weight is self.dynamo.get_output_embeddings().weight


def load(
    name: str = EMBEDDED,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    progress: Progress | None = None,
) -> Pair:
    """A pair by name, in evaluation mode.

    quantize: "8bit" or "4bit" for both models' linear layers, heads included; device_map: "auto", or modules
    of the DynaMo model to devices, instead of a device (`devices`); max_memory: bytes by device that "auto"
    may fill with either model, what is free by default; progress: told the bytes of a download, done and in
    all. Raises ValueError for what is no DynaMo pair or checkpoint, whose parts do not
    fit each other, or that this machine cannot hold; OSError if it cannot be found or fetched.
    """
    device = checked_device(device, device_map)
    dtype = dtype or default_dtype(device)
    folder = resolve(name, progress)
    pair = (folder / "dynamo").is_dir() and (folder / "base").is_dir()
    dynamo_folder = folder / "dynamo" if pair else folder
    check_kind(name, model_type(dynamo_folder))
    if model_type(dynamo_folder) != DynamoConfig.model_type:
        raise ValueError(
            f"model: {name} has no token heads (model_type {model_type(dynamo_folder)!r}); "
            f"train them with: python -m dynamo train --model {name}"
        )
    base_folder = base_of_heads(folder, progress)
    pair = pair and base_folder is None
    folders = [folder / "base", dynamo_folder] if pair else _with_base(dynamo_folder, base_folder)
    fitting = _Fitting(name, folders, device, dtype, quantize, device_map, max_memory)
    dynamo = fitting.load(_dynamo_loader(base_folder), dynamo_folder)
    base = fitting.load(load_base, folder / "base") if pair else dynamo.to_base(shared=True).eval()
    tokenizer = _tokenizer_of(dynamo_folder, dynamo, base_folder)
    if base.config.vocab_size != dynamo.config.vocab_size:
        raise ValueError(
            f"model: {name}: its base has a vocabulary of {base.config.vocab_size} and its DynaMo model of "
            f"{dynamo.config.vocab_size}; they do not belong together"
        )
    described = about(name, dynamo_folder, tokenizer)
    return Pair(
        name=name,
        description=described.description,
        base=base,
        dynamo=dynamo,
        tokenizer=tokenizer,
        table=load_table(dynamo_folder, dynamo.config.vocab_size, tokenizer),
        options=chosen_options(dynamo),
        about=described,
    )


def chosen_options(model: PreTrainedModel) -> SamplingOptions:
    """What a model's config chose for it; of a stock model the usual ones."""
    try:
        return SamplingOptions.chosen(getattr(model.config, "sampling", None))
    except ValueError as error:
        raise ValueError(f"model: its config.json: {error}") from None


def load_or_embedded(name: str = EMBEDDED, **options: Any) -> tuple[Pair, str]:
    """`load`, or the embedded pair where that fails; and "" or a sentence for the page that says why.

    What is wrong with the embedded pair itself is raised.
    """
    try:
        return load(name, **options), ""
    except (ValueError, OSError) as error:
        if name == EMBEDDED and not any(options.get(option) for option in OPTIONAL):
            raise
        reason = str(error)
    options = {option: value for option, value in options.items() if option not in OPTIONAL}
    return load(EMBEDDED, **options), f"{reason}. Shown instead: the small pair that comes with the project."


def load_model(
    name: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, Any, CooccurrenceTable | None]:
    """One model of either kind, its tokenizer and its table (None for a stock model), in evaluation mode.

    "embedded" and pair folders give their DynaMo model; NAME/base gives the base. Raises as `load` does.
    """
    device = checked_device(device, device_map)
    dtype = dtype or default_dtype(device)
    folder = resolve(name, progress)
    base_folder = base_of_heads(folder, progress)
    if (folder / "dynamo").is_dir():
        folder = folder / "dynamo"
    check_kind(name, model_type(folder))
    heads = model_type(folder) == DynamoConfig.model_type
    folders = _with_base(folder, base_folder)
    fitting = _Fitting(name, folders, device, dtype, quantize, device_map, max_memory)
    model = fitting.load(_dynamo_loader(base_folder) if heads else load_base, folder)
    tokenizer = _tokenizer_of(folder, model, base_folder)
    return model, tokenizer, load_table(folder, model.config.vocab_size, tokenizer) if heads else None


def base_of_heads(folder: Path, progress: Progress | None = None) -> Path | None:
    """The base's folder where a model or pair folder has token heads alone, else None.

    Raises OSError where the base that they name cannot be found or fetched, ValueError where they name none.
    """
    heads = folder / "dynamo" if (folder / "dynamo").is_dir() else folder
    config = read_config(heads)
    if config.get("heads_only") is not True:
        return None
    if heads != folder and (folder / "base").is_dir():
        return resolve(str(folder / "base"))
    named = config.get("base_model")
    named = named.get("name") if isinstance(named, dict) else None
    remedy = "or lay it beside them: a folder with the base in base/ and the heads in dynamo/"
    if not isinstance(named, str) or not named:
        raise ValueError(
            f"base: {heads} does not name the base of its token heads; save_heads names it, {remedy}"
        )
    try:
        return resolve(f"{SMOLLM2}/base" if named == SMOLLM2_HUB else named, progress)
    except (OSError, ValueError) as error:
        raise OSError(f"base of the token heads in {heads}: {error}, {remedy}") from error


def _with_base(folder: Path, base_folder: Path | None) -> list[Path]:
    return [folder] if base_folder is None else [base_folder, folder]


def _dynamo_loader(base_folder: Path | None) -> Any:
    return load_dynamo if base_folder is None else partial(_load_heads, base_folder)


def _load_heads(base_folder: Path, folder: str, dtype: torch.dtype, **placing: Any) -> DynamoForCausalLM:
    """Heads on their base, which is recognised as its files are; quantised or spread after that, as one."""
    model = DynamoForCausalLM.from_heads(folder, str(base_folder), dtype)
    if not placing:
        return model
    placing |= {"config": model.config, "state_dict": model.state_dict()}
    try:
        placed = load_filled(DynamoForCausalLM, "DynaMo", None, dtype, **placing)
    except ValueError as error:
        if "offload_folder" not in str(error):
            raise
        raise ValueError(
            f"device_map: the token heads in {folder} and their base cannot wait on disk apart; save "
            "them as one: DynamoForCausalLM.from_heads(..).save_pretrained(..)"
        ) from None
    placed.generation_config = model.generation_config
    return placed


class _Fitting:
    """How the models of one name are loaded, once it is sure that they can be."""

    def __init__(
        self,
        name: str,
        folders: list[Path],
        device: torch.device,
        dtype: torch.dtype,
        quantize: str | None,
        device_map: DeviceMap | None,
        max_memory: MaxMemory | None,
    ):
        self._name, self._device, self._dtype, self._quantize = name, device, dtype, quantize
        self._map, self._max_memory = device_map, max_memory
        for folder in folders:
            check_format(name, [file.name for file in folder.iterdir()])
        mapped = device_map is not None
        self._options = {each: loading_options(quantize, each, dtype, device, mapped) for each in folders}
        if map_options(device_map, max_memory, stock=True):
            return
        needed, free = stored_bytes(folders, dtype, quantize), available_memory(device)
        if free is not None and needed > free:
            raise ValueError(
                f"model: {name} needs {gigabytes(needed)} for its weights {self._way()}, and "
                f"{gigabytes(free)} are free on {device}; {self._remedy()}"
            )

    def load(self, loader: Any, folder: Path) -> Any:
        # A map is made for the memory that is free by now: the other model may have been loaded meanwhile.
        placed = map_options(self._map, self._max_memory, stock=loader is load_base)
        options = self._options[folder] | placed
        with enough_memory(self._too_large):
            try:
                model = loader(str(folder), dtype=self._dtype, **options)
            except ValueError as error:
                # The library's own words on this are a paragraph.
                if "dispatched on the CPU or the disk" not in str(error):
                    raise
                raise ValueError(
                    f"model: {self._name} {self._way()} does not fit on the GPU, and quantised layers cannot "
                    f"wait elsewhere; {self._remedy()}"
                ) from None
            mend_saving(model)
            return (model if options else model.to(self._device)).eval()

    def _too_large(self) -> str:
        return (
            f"model: the memory of {self._device} does not hold {self._name} {self._way()}; {self._remedy()}"
        )

    def _way(self) -> str:
        return f"in {self._quantize}" if self._quantize else f"as {str(self._dtype).removeprefix('torch.')}"

    def _remedy(self) -> str:
        smaller = {None: "load it in 8bit or 4bit, ", "8bit": "load it in 4bit, "}
        spread = "spread it with device_map auto, " if self._map is None and self._quantize is None else ""
        first = smaller.get(self._quantize, "") + spread
        return first + ("or " if first else "") + "choose a smaller model"


def _tokenizer_of(folder: Path, model: Any, base_folder: Path | None = None) -> Any:
    alone = base_folder is not None and not (folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(base_folder if alone else folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"model: {folder}: its tokenizer has {len(tokenizer)} ids and its model "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return tokenizer


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model or pair, which must bring a fast one (`tokenizer.json`); a Path is taken as it
    is."""
    folder = name if isinstance(name, Path) else resolve(name, any_kind=True)
    if (folder / "dynamo" / "tokenizer.json").is_file():
        folder = folder / "dynamo"
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer: {folder} holds no tokenizer.json; save the model's tokenizer there")
    try:
        # Unless told so the library asks at the terminal whether the folder's own code may run.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the library trips over in a damaged file
        raise ValueError(
            f"tokenizer: {folder}: its files are damaged ({type(error).__name__}: {short_repr(str(error))})"
        ) from error


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
    return str(read_config(folder).get("model_type", ""))
