"""A GGUF file, as llama.cpp and its relatives use them, read as a checkpoint in 16 bits.

The package `gguf` unpacks the weights and transformers builds the tokenizer, each from its own part of the
file. What neither of them knows is done here or refused, as it would be wrong without a word: the ids that
end a text, scaled rotary embeddings, how some vocabularies split a text, and weights that a model of the
family has no place for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dynamo.common.files import write_json
from dynamo.common.validation import require_int, short_repr
from dynamo.model.architectures import ARCHITECTURES, Architecture, model_shape

SHARD_BYTES = 2**31
MOST_WEIGHTS_A_BYTE = 8  # no format has less than a bit for each
DTYPES = {0: torch.float32, 32: torch.bfloat16}  # by `general.file_type`, of files that float16 would round
NO_ID = 2**32 - 1  # as some files have it
ROPE_DIVISORS = "rope_freqs.weight"
# Vocabularies, by llama.cpp's names, that transformers splits like GPT-2's: those of the first row are split
# so, those of the second have their digits set apart before.
GPT2_SPLITS = ("gpt-2", "default", "olmo", "phi-2")
DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
# What the libraries raise about a file that is not what it claims to be.
DAMAGE = (ValueError, TypeError, ArithmeticError, LookupError, struct.error, StrictDataclassError)


def is_whole(file: Path) -> bool:
    """Whether a GGUF file has all that its own list of contents names; its values are not looked at."""
    if find_spec("gguf") is None:
        return True  # which is said where it is read
    from gguf import GGUFReader

    try:
        read_gguf_metadata(str(file))  # which does not try to read what a wrong length claims
        GGUFReader(file)
    except (*DAMAGE, MemoryError):
        return False
    return True


class GGUFModel:
    """A model in a GGUF file; its weights are read when they are saved.

    shape: the model's; dtype: the file's own where that is a plain one, else float16.

    Raises ValueError for a file that is damaged, or whose model is none that is supported.
    """

    def __init__(self, file: Path):
        self._file = file
        if find_spec("gguf") is None:
            raise ValueError(f"model: reading {file.name} needs the package gguf: pip install gguf")
        try:
            self._metadata, names = read_gguf_metadata(str(file))
            self._tied, self._scaled = "output.weight" not in names, ROPE_DIVISORS in names
            self._architecture = self._read_architecture()
            self._config = self._read_config()
            self.dtype = DTYPES.get(self._metadata.get("general.file_type"), torch.float16)
            self.shape = model_shape(self._config)
            # Before anything is built of what the file claims.
            if self.shape.parameters > MOST_WEIGHTS_A_BYTE * file.stat().st_size:
                raise ValueError(f"it is too small for {self.shape.parameters:,} weights")
        except NotImplementedError as error:
            raise ValueError(f"model: {file}: {error}") from None
        except (*DAMAGE, MemoryError) as error:
            raise self._damaged(error) from None

    def save(self, folder: Path) -> None:
        """Write weights, configuration, tokenizer and chat template as `from_pretrained` reads them.

        Takes little more memory than a file of SHARD_BYTES. Raises ValueError unless the file's weights are
        exactly a model's, and its tokenizer is one that is known here.
        """
        try:
            ends = [self._id("eos"), self._id("eot")]  # of the text; of a turn, where that is another
            ends = list(dict.fromkeys(each for each in ends if each is not None))
            generation = GenerationConfig(**self._ids() | {"eos_token_id": ends or None})
            tokenizer = self._tokenizer()
            folder.mkdir()
            self._save_weights(folder)
        except NotImplementedError as error:
            raise ValueError(f"model: {self._file}: {error}") from None
        except DAMAGE as error:
            raise self._damaged(error) from None
        self._config.architectures = [self._architecture.model_class.__name__]
        self._config.dtype = self.dtype
        self._config.save_pretrained(folder)
        generation.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _save_weights(self, folder: Path) -> None:
        files: dict[str, str] = {}
        shard: dict[str, Tensor] = {}
        for name, weight, left in self._weights():
            shard[name] = weight
            if left and sum(each.nbytes for each in shard.values()) < SHARD_BYTES:
                continue
            number = f"-{len(set(files.values())) + 1:05}" if left or files else ""
            file = f"model{number}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, file)
            shard.clear()
        if len(set(files.values())) > 1:
            write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})

    def _damaged(self, error: Exception) -> ValueError:
        why = str(error.__cause__ or error) or type(error).__name__
        return ValueError(
            f"model: {self._file} is no GGUF file, or a damaged one ({short_repr(why, 400)}); fetch it again"
        )

    # -- what the metadata say ----------------------------------------------------------------------------

    def _read_architecture(self) -> Architecture:
        if self._metadata.get("split.count", 1) > 1:
            raise NotImplementedError("it is a part of a model; join the parts with llama-gguf-split --merge")
        kind = self._metadata["general.architecture"]
        readable = [each for each in ARCHITECTURES if each.model_type in GGUF_CONFIG_MAPPING]
        for architecture in readable:
            if architecture.model_type == kind:
                return architecture
        supported = ", ".join(each.name for each in readable)
        raise NotImplementedError(
            f"its architecture is {short_repr(kind)}, supported in GGUF files are: {supported}"
        )

    def _read_config(self) -> PreTrainedConfig:
        kind = self._architecture.model_type
        said = {key: value for key, value in self._metadata.items() if key.startswith(f"{kind}.")}
        names = GGUF_CONFIG_MAPPING[kind] | {"attention.key_length": "head_dim"}
        fields = {name: said[f"{kind}.{key}"] for key, name in names.items() if f"{kind}.{key}" in said}
        fields.pop(None, None)  # of keys that are of no use there
        fields.setdefault("vocab_size", self._metadata.get("tokenizer.ggml.tokens"))  # how many there are
        rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta", 10_000.0)}
        config = self._architecture.config_class(
            **fields, **self._ids(), tie_word_embeddings=self._tied, rope_parameters=rope
        )
        if said.get(f"{kind}.expert_count"):
            raise NotImplementedError("it is a mixture of experts, which is not supported")
        scaling = said.get(f"{kind}.rope.scaling.type", "none")
        if scaling == "linear":
            config.rope_parameters |= {"rope_type": scaling, "factor": said[f"{kind}.rope.scaling.factor"]}
        elif scaling != "none":
            raise NotImplementedError(f"its rope scaling, {short_repr(scaling)}, is not read from GGUF files")
        if reason := self._architecture.unsupported(config):
            raise NotImplementedError(f"it needs {reason}")
        return config

    def _id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        found = require_int(key, self._metadata.get(key, NO_ID), most=NO_ID)
        return None if found == NO_ID else found

    def _ids(self) -> dict[str, int | None]:
        return {f"{name}_token_id": self._id(stored) for name, stored in
                (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip

    # -- tokenizer and weights ----------------------------------------------------------------------------

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        split = self._metadata.get("tokenizer.ggml.pre")
        known = (*GGUF_PRE_TOKENIZER_SPLITS, *GPT2_SPLITS, *DIGIT_SPLITS)
        if self._metadata.get("tokenizer.ggml.model") == "gpt2" and split not in known:
            raise NotImplementedError(
                f"how its tokenizer splits a text, {short_repr(split)}, is not known here; take the model's "
                "safetensors, or a newer conversion"
            )
        try:
            # Not by `from_pretrained`, which prefers a tokenizer.json that lies beside the file.
            tokenizer = PreTrainedTokenizerFast(
                gguf_file=self._file.name, name_or_path=str(self._file.parent)
            )
        except Exception as error:  # whatever the libraries trip over
            raise ValueError(f"its tokenizer: {type(error).__name__}: {error}") from error
        if split in DIGIT_SPLITS:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        return tokenizer

    def _weights(self) -> Iterator[tuple[str, Tensor, int]]:
        """Names in the model, weights, and how many are left; also adds to the configuration what only they
        say.
        """
        from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map

        stored = {each.name: each for each in GGUFReader(self._file).tensors}
        if self._scaled:
            divisors = torch.tensor(stored.pop(ROPE_DIVISORS).data)
            self._config.rope_parameters |= _scaling_by_wavelength(self._config, divisors)
        with torch.device("meta"):
            model = self._architecture.model_class(self._config)
        family = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self._config.model_type)
        names = get_tensor_name_map(family, self._config.num_hidden_layers)
        places = {
            names.get_name(name, try_suffixes=(".weight", ".bias")): (name, weight.shape)
            for name, weight in model.named_parameters()  # tied ones once
        }
        if wrong := sorted(map(str, places.keys() ^ stored.keys())):
            raise ValueError(
                f"missing in it, or not of a {self._architecture.name} model: {', '.join(wrong)}"
            )
        for left, (place, (name, shape)) in zip(reversed(range(len(places))), places.items(), strict=True):
            values = torch.tensor(dequantize(stored[place].data, stored[place].tensor_type))
            if values.shape != shape:
                raise ValueError(f"{place} is {tuple(values.shape)}, expected {tuple(shape)}")
            if self._config.model_type == "llama" and place.endswith(("attn_q.weight", "attn_k.weight")):
                # Rows of a head (head_dim, hidden) come in the pairs that are rotated together; the model has
                # all their first halves, then the second ones.
                pairs = values.view(-1, self.shape.layer.head_dim // 2, 2, values.shape[1])
                values = pairs.transpose(1, 2).flatten(0, 2)
            yield name, values.to(self.dtype).contiguous(), left


def _scaling_by_wavelength(config: PreTrainedConfig, divisors: Tensor) -> dict[str, Any]:
    """Parameters of Llama 3.1's scaled rotary embedding, of which a file only has what each frequency is
    divided by (head_dim / 2,).
    """
    rope = config.rope_parameters
    scaling = {
        "rope_type": "llama3",
        "factor": divisors.max().item(),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    frequencies = rope["rope_theta"] ** -(torch.arange(len(divisors)) / len(divisors))
    like = type(config)(head_dim=2 * len(divisors), rope_parameters=rope | scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](like, torch.device("cpu"))
    if not torch.allclose(scaled, frequencies / divisors, rtol=1e-3, atol=0):
        raise NotImplementedError(f"its {ROPE_DIVISORS} are not those of Llama 3, and not supported")
    return scaling
