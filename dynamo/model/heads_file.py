"""Token heads alone: a small folder that is a DynaMo model once its base is set under it.

`heads.safetensors` holds the heads and their correlators in 16 bits, `config.json` their shape and which base
they belong to. Heads read their base's hidden states, so on another model they are noise. The base is
recognised in two ways. A hash covers the name, shape and up to 1,024 evenly spaced values of every parameter,
as float32: it is the same for a 16-bit file and its float32 copy, costs no more for a large model than for a
small one, and any training changes it; a change of a few single values can escape it, so it is no seal. Where
it differs, log-probabilities of a few texts that the original wrote (`probes`, kept as token ids) tell
another precision of the same model from another model. How far 4 bits move them depends on the model (0.07
nats for the embedded pair's base, about 1 for SmolLM2), so it is measured when heads are saved, and the bound
is twice that. A copy that was finetuned a little can be as near: no bound tells it from 4 bits.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

from dynamo.common.files import being_written, replace_folder
from dynamo.common.validation import short_repr
from dynamo.model.checkpoints import load_base
from dynamo.model.config import DynamoConfig
from dynamo.model.gguf_cache import gguf_of

log = logging.getLogger(__name__)

HEADS_FILE = "heads.safetensors"
HASHED_VALUES = 1024  # of each parameter
PROBES, PROBE_TOKENS = 4, 32
BITS, GROUP = 4, 64
MARGIN = 2.0
_OF_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_HEADS, _IDS, _LOG_PROBABILITIES = "token_heads.", "probes.token_ids", "probes.log_probabilities"
_IN_4_BITS = "probes.distance_in_4_bits"


# -- which base ---------------------------------------------------------------------------------------------


def origin(name: str, revision: str | None = None) -> dict[str, str]:
    """Where a base comes from, {"name", "revision"}: its hub id and commit, or its folder's whole path.

    name: what it was loaded by; revision: of an id, the cache's newest by default.
    """
    path = Path(name)
    if name and path.is_dir():
        whole = path.resolve()
        cache, place, commit = whole.parent.parent.name, whole.parent.name, whole.name
        if place == "snapshots" and cache.startswith("models--"):  # as the hub's cache names them
            return {"name": cache.removeprefix("models--").replace("--", "/"), "revision": commit}
        return {"name": str(gguf_of(whole) or whole), "revision": ""}
    if name.count("/") == 1:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(file, str):
            return {"name": name, "revision": Path(file).parent.name}
    return {"name": name, "revision": ""}


def weights_hash(base: PreTrainedModel) -> str:
    """SHA-256 over every parameter's name, shape and sampled values; "" where some are not in memory."""
    digest = hashlib.sha256()
    for name, weight in sorted(base.named_parameters()):
        if weight.is_meta:
            return ""
        count = weight.numel()
        sample = min(count, HASHED_VALUES)
        places = torch.arange(sample, device=weight.device) * count // max(sample, 1)
        values = weight.detach().flatten()[places].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()


@torch.no_grad()
def write_probes(base: PreTrainedModel) -> Tensor:
    """Texts (probes, length) that a base samples at temperature 1: where its own probabilities count."""
    start = base.config.bos_token_id
    start = start if isinstance(start, int) and 0 <= start < base.config.vocab_size else 0
    ids = torch.full((PROBES, 1), start)
    generator = torch.Generator().manual_seed(0)
    cache = DynamicCache(config=base.config)
    for _ in range(min(PROBE_TOKENS, base.config.max_position_embeddings) - 1):
        logits = base(ids[:, -1:].to(base.device), past_key_values=cache, use_cache=True).logits[:, -1]
        drawn = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    return ids


@torch.no_grad()
def log_probabilities(base: PreTrainedModel, ids: Tensor) -> Tensor:
    """Those that a base gives to each next token of texts (probes, length): (probes, length - 1)."""
    logits = base(ids.to(base.device), use_cache=False).logits[:, :-1].float().cpu()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def distance(base: PreTrainedModel, ids: Tensor, expected: Tensor) -> float:
    """Root mean square difference of a base's log-probabilities of texts from those expected, in nats."""
    return (log_probabilities(base, ids) - expected).square().mean().sqrt().item()


@contextmanager
def in_4_bits(base: PreTrainedModel) -> Iterator[None]:
    """Run the linear layers on rounded weights, each while it runs: a large model has no room for a copy."""
    kept = []

    def round_weight(layer: nn.Module, _: Any) -> None:
        kept.append(layer.weight.data)
        layer.weight.data = rounded(layer.weight.data)

    def restore(layer: nn.Module, *_: Any) -> None:
        layer.weight.data = kept.pop()

    handles = []
    for layer in base.modules():
        own = isinstance(layer, nn.Linear) and layer is not base.get_output_embeddings()
        if own and layer.weight.is_floating_point():
            handles.append(layer.register_forward_pre_hook(round_weight))
            handles.append(layer.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded(weight: Tensor) -> Tensor:
    """A matrix in 4 bits, by the least and largest number of groups of 64 in a row. The first group is half
    as long, so that weights which come from a 4-bit file move too."""
    parts = (weight[:, : GROUP // 2], *weight[:, GROUP // 2 :].split(GROUP, dim=-1))
    done = []
    for part in (part.float() for part in parts if part.numel()):
        low, high = part.aminmax(dim=-1, keepdim=True)
        step = ((high - low) / (2**BITS - 1)).clamp(min=torch.finfo(torch.float32).tiny)
        done.append(((part - low) / step).round() * step + low)
    return torch.cat(done, dim=-1).to(weight.dtype)


class Saved(NamedTuple):
    """The contents of a folder of heads alone; probes and log_probabilities as above; in_4_bits: how far 4
    bits moved the base that they were saved with."""

    folder: str
    config: DynamoConfig
    heads: dict[str, Tensor]
    probes: Tensor
    log_probabilities: Tensor
    in_4_bits: float

    @property
    def base(self) -> str:
        """The base's name in words."""
        said = self.config.base_model or {}
        name, revision = said.get("name", ""), said.get("revision", "")
        return (name or "a base without a name") + (f" at revision {revision[:12]}" if revision else "")

    def check(self, base: PreTrainedModel) -> None:
        """Say where a base is another precision of the heads' own. Raises ValueError for another model."""
        given = origin(base.config.name_or_path)["name"] or f"a {type(base).__name__} without a name"
        other = f"base: {given} is another model than {self.base}, to which the heads in {self.folder} belong"
        own = self.config.text_config
        for name in _OF_SHAPE:
            if getattr(own, name) != getattr(base.config, name):
                raise ValueError(
                    f"{other}: its {name} is {getattr(base.config, name)!r}, not {getattr(own, name)!r}"
                )
        if weights_hash(base) == (self.config.base_model or {}).get("sha256"):
            return
        with _evaluating(base):
            found = distance(base, self.probes, self.log_probabilities)
        most = MARGIN * self.in_4_bits
        if not found <= most:  # also where it is no number
            raise ValueError(
                f"{other}: its log-probabilities of their probe texts differ by {found:.2f} nats, above "
                f"{most:.2f}; heads that were trained along with their base are shared as a whole model"
            )
        log.warning(
            "base: %s is not exactly %s, to which the heads in %s belong, but as close as another precision "
            "or a light finetune of it (%.3f nats)", given, self.base, self.folder, found,
        )  # fmt: skip


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A model without dropout for a while."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


# -- writing and reading ------------------------------------------------------------------------------------


def save_heads(model: PreTrainedModel, folder: str | Path, base_name: str | None = None) -> None:
    """See `DynamoForCausalLM.save_heads`."""
    folder = Path(folder)
    heads = model.token_heads.state_dict()
    if not heads:
        raise ValueError("num_token_heads: a model with one token head has none to save apart from its base")
    whole = {name: tensor for name, tensor in heads.items() if not tensor.is_floating_point()}
    quantised = [name for name in whole if not name.endswith("tokens_by_frequency")]
    if quantised:
        raise ValueError(f"model: its heads are quantised ({quantised[0]}); load it unquantised to save them")
    if folder.is_dir() and any(folder.glob("model*.safetensors")):
        raise ValueError(f"folder: {folder} holds a whole model; save its heads in a folder of their own")
    dtype = sixteen_bits(tensor for name, tensor in heads.items() if name not in whole)
    with _evaluating(model.backbone):
        probes = write_probes(model.backbone)
        known = log_probabilities(model.backbone, probes)
        with in_4_bits(model.backbone):
            apart = distance(model.backbone, probes, known)
    tensors = {_IDS: probes.int(), _LOG_PROBABILITIES: known, _IN_4_BITS: torch.tensor(apart)}
    for name, tensor in heads.items():
        kept = tensor.dtype if name in whole else dtype
        tensors[_HEADS + name] = tensor.detach().to("cpu", kept).contiguous()
    config = copy.deepcopy(model.config)
    named = {"name": "", "revision": ""} | (config.base_model or {})
    if base_name is not None:
        named = origin(base_name)
    config.base_model = named | {"sha256": weights_hash(model.backbone)}
    config.heads_only, config.dtype, config.architectures = True, dtype, [type(model).__name__]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with being_written(partial):
        if folder.is_dir():
            shutil.copytree(folder, partial)  # a table, a card
        partial.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial / HEADS_FILE, metadata={"format": "pt"})
        model.generation_config.save_pretrained(partial)
        config.save_pretrained(partial)
    replace_folder(partial, folder)


def sixteen_bits(tensors: Any) -> torch.dtype:
    """float16 or bfloat16, whichever holds these numbers exactly; where neither does, float16, the finer one,
    unless a number is beyond its range."""
    tensors = [tensor.detach().float() for tensor in tensors]
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(tensor.to(dtype).float(), tensor) for tensor in tensors):
            return dtype
    most = torch.finfo(torch.float16).max
    return torch.float16 if all(tensor.abs().max() <= most for tensor in tensors) else torch.bfloat16


def is_heads_only(name: str | Path, options: dict[str, Any]) -> bool:
    """Whether a name that `from_pretrained` was given, with its options, is of heads alone."""
    config = options.get("config")
    if not isinstance(config, DynamoConfig):
        lookup = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
        try:
            config = DynamoConfig.from_pretrained(
                name, **{key: options[key] for key in lookup if key in options}
            )
        except (OSError, ValueError, TypeError):
            return False
    return config.heads_only


def read_heads(folder: str | Path, **hub: Any) -> Saved:
    """The contents of a folder or a hub repository of heads alone.

    Raises ValueError for a folder that is none or damaged, OSError if it is not found.
    """
    config = DynamoConfig.from_pretrained(folder, **hub)
    if not config.heads_only:
        raise ValueError(
            f"{folder}: expected token heads alone, as save_heads writes them; it is a whole model"
        )
    path = cached_file(str(folder), HEADS_FILE, **hub)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        probes, known = tensors.pop(_IDS).long(), tensors.pop(_LOG_PROBABILITIES)
        apart = float(tensors.pop(_IN_4_BITS))
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or save it again") from None
    vocabulary = config.text_config.vocab_size
    if (
        probes.ndim != 2
        or known.shape != probes[:, 1:].shape
        or not 0 <= probes.min() <= probes.max() < vocabulary
    ):
        raise ValueError(f"{path} is damaged (its probe texts are none of this vocabulary); fetch it again")
    return Saved(str(folder), config, tensors, probes, known, apart)


def from_heads(
    cls: type[PreTrainedModel],
    folder: str | Path,
    base: str | PreTrainedModel | None,
    dtype: torch.dtype | None,
    **hub: Any,
) -> PreTrainedModel:
    """See `DynamoForCausalLM.from_heads`."""
    saved = read_heads(folder, **hub)
    hub.pop("revision", None)  # of the heads
    loaded = isinstance(base, PreTrainedModel)
    if loaded and dtype is not None:
        raise ValueError("dtype: it is for a base that is still to be loaded")
    if not loaded:
        base = _named_base(saved, base, **hub)
    saved.check(base)
    if not loaded:
        for weight in base.parameters():  # not `to`, which would round the rotary frequencies too
            weight.data = weight.data.to(dtype or torch.float32)
    config, attention = saved.config, base.config._attn_implementation
    config.heads_only, config.text_config, config.dtype = False, base.config, base.dtype
    config.base_model = {name: config.base_model.get(name, "") for name in ("name", "revision")}
    config._attn_implementation = attention
    with torch.device("meta"):
        model = cls(config, backbone=base)
    _fill(model, saved)
    model.token_heads.to(device=base.device, dtype=base.dtype)
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, **hub)
    except OSError:
        model.generation_config = copy.deepcopy(base.generation_config)
    return model.train(base.training)


def _named_base(saved: Saved, name: str | None, **hub: Any) -> PreTrainedModel:
    """A base in the precision of its files: the one that was given, or the heads' own."""
    if name is not None:
        return load_base(str(name), dtype="auto", **hub)
    said = saved.config.base_model or {}
    if not said.get("name"):
        raise ValueError(
            f"base: {saved.folder} does not name the base of its heads; give it: from_heads(.., base=..)"
        )
    revision = {"revision": said["revision"]} if said.get("revision") else {}
    try:
        return load_base(said["name"], dtype="auto", **hub, **revision)
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"base: {saved.base}, which the heads in {saved.folder} belong to, is not available ({reason}); "
            "give it as a folder or a loaded model: from_heads(.., base=..)"
        ) from error


def _fill(model: PreTrainedModel, saved: Saved) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.token_heads.state_dict().items()}
    heads = {name.removeprefix(_HEADS): tensor for name, tensor in saved.heads.items()}
    found = {name: tuple(tensor.shape) for name, tensor in heads.items()}
    if found != expected:
        wrong = short_repr(sorted(set(found.items()) ^ set(expected.items())), 400)
        raise ValueError(
            f"{saved.folder}: {HEADS_FILE} does not fill the heads that its config.json describes: {wrong}"
        )
    model.token_heads.load_state_dict(heads, assign=True)
