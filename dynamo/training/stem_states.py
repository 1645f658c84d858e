"""What heads learn from where only they are trained, kept on disk: a frozen base runs once per token.

A folder of flat files that only grow, one array each: the conversations' ids; the hidden states that the
extra heads read, in 16 bits; and at each answer token the base's own distribution there, its likeliest tokens
and the rest as one class, with the loss of the first head. `states.json` says how much of them is whole, and
is written after them, so a killed run goes on where it last said so. A conversation is found again by its
content: one folder serves any number of runs and data files on the same base, though only one process at a
time may add to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dynamo.common.files import write_json
from dynamo.data.documents import padded
from dynamo.model import DynamoForCausalLM, architecture_of
from dynamo.model.loss import IGNORED_LABEL

Conversation = tuple[np.ndarray, np.ndarray]  # ids and labels (tokens,) int32, -100 outside answers

TOP = 64  # of the base's likeliest tokens
BATCH_TOKENS = 4096  # padding included, of one forward pass of the base
SORTED_TOGETHER = 256  # conversations, among which those of like length share a pass
TEACHER_ROWS = 256  # positions whose logits exist at once
COMMIT_SECONDS = 30.0
SPARE_BYTES = 2**30  # of the disk, for everything else


class StemStates:
    """The folder, for one base and one source of the heads; mixed_precision: "no" or "bf16", of the base's
    products. Raises ValueError where it holds another's."""

    def __init__(self, folder: str | Path, model: DynamoForCausalLM, mixed_precision: str = "no"):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = model.config
        self._source_is_last = config.head_source == "last"
        self._top = min(TOP, config.vocab_size - 1)
        self._in_bf16 = mixed_precision == "bf16"
        self._settings = {
            "base": _fingerprint(model),
            "head_source": config.head_source,
            "hidden_size": config.hidden_size,
            "top": self._top,
        }
        if self._in_bf16:
            self._settings["mixed_precision"] = mixed_precision
        token_id = np.uint16 if config.vocab_size <= 2**16 else np.int32
        self._files = {  # what each row belongs to, its type and shape
            "keys": ("conversations", np.uint64, ()),
            "lengths": ("conversations", np.int32, ()),
            "answers": ("conversations", np.int32, ()),
            "ids": ("tokens", np.int32, ()),
            "is_answer": ("tokens", np.bool_, ()),
            "states": ("tokens", np.float16, (config.hidden_size,)),
            "top_ids": ("answer_tokens", token_id, (self._top,)),
            "top_log_q": ("answer_tokens", np.float16, (self._top,)),
            "log_rest": ("answer_tokens", np.float32, ()),
            "first_nats": ("answer_tokens", np.float32, ()),
        }
        self._open()

    def _open(self) -> None:
        """Read what is whole; what is not is cut off before more is added."""
        path = self.folder / "states.json"
        counts = {"conversations": 0, "tokens": 0, "answer_tokens": 0}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != self._settings:
                raise ValueError(
                    f"states: {self.folder} holds those of another base, head_source or mixed_precision; "
                    "name another folder"
                )
            counts = found["counts"]
        self.counts: dict[str, int] = counts
        self._arrays = {}
        for name, (each, kind, shape) in self._files.items():
            rows, file = counts[each], self._file(name)
            # An empty file cannot be mapped.
            empty = np.empty((0, *shape), kind)
            self._arrays[name] = np.memmap(file, kind, "r", shape=(rows, *shape)) if rows else empty
        self._starts = np.concatenate([[0], np.cumsum(self._arrays["lengths"], dtype=np.int64)])
        self._answer_starts = np.concatenate([[0], np.cumsum(self._arrays["answers"], dtype=np.int64)])
        self._places = {int(key): place for place, key in enumerate(self._arrays["keys"])}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def bytes_of(self, tokens: int, answer_tokens: int) -> int:
        """What so many tokens take on disk."""
        sizes = {"conversations": 0, "tokens": tokens, "answer_tokens": answer_tokens}
        return sum(
            sizes[each] * np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64))
            for each, kind, shape in self._files.values()
        )

    def add(
        self, model: DynamoForCausalLM, conversations: Sequence[Conversation], progress: bool = False
    ) -> None:
        """Run the base on those conversations that are not here yet, after saying what they will take.

        Raises ValueError where the disk has no room for them, or the base's states do not fit 16 bits.
        """
        new = {key_of(each): each for each in conversations}
        new = {key: each for key, each in new.items() if key not in self._places}
        if not new:
            return
        tokens = sum(len(ids) for ids, _ in new.values())
        answers = sum(int((labels[1:] != IGNORED_LABEL).sum()) for _, labels in new.values())
        needed, free = self.bytes_of(tokens, answers), shutil.disk_usage(self.folder).free
        size = f"{needed / 1e9:.2f} GB for {tokens:,} tokens of {len(new):,} conversations"
        if needed + SPARE_BYTES > free:
            raise ValueError(f"states: {self.folder} would take {size}, {free / 1e9:.2f} GB are free there")
        if progress:
            print(f"states of the base: {size}, in {self.folder}", file=sys.stderr)
        bar = tqdm(total=tokens, unit="tok", desc="base", disable=not progress, mininterval=5.0)
        self._cut_off()
        keys, committed = list(new), time.monotonic()
        with bar:
            for start in range(0, len(keys), SORTED_TOGETHER):
                together = sorted(keys[start : start + SORTED_TOGETHER], key=lambda key: len(new[key][0]))
                for batch in _batches(together, new):
                    with torch.autocast(model.device.type, torch.bfloat16, self._in_bf16):
                        run = run_base(model, [new[key] for key in batch], self._top)
                    self._append(batch, run)
                    bar.update(sum(len(new[key][0]) for key in batch))
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        self._commit()
                        committed = time.monotonic()
        self._commit()
        self._open()

    def _cut_off(self) -> None:
        for name, (each, kind, shape) in self._files.items():
            row = np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64))
            with self._file(name).open("ab") as handle:
                handle.truncate(self.counts[each] * row)

    def _append(self, keys: Sequence[int], run: BaseRun) -> None:
        arrays = {"keys": np.array(keys, np.uint64), **run.arrays(self._source_is_last)}
        for name, (each, kind, _) in self._files.items():
            with self._file(name).open("ab") as handle:
                handle.write(np.ascontiguousarray(arrays[name], dtype=kind).tobytes())
            if name in ("keys", "ids", "log_rest"):
                self.counts[each] += len(arrays[name])

    def _commit(self) -> None:
        for name in self._files:
            with self._file(name).open("rb+") as handle:
                os.fsync(handle.fileno())
        write_json(self.folder / "states.json", {"settings": self._settings, "counts": self.counts})

    def places(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Where conversations that were added are, each once: (conversations,) for `batch`."""
        return np.array(list(dict.fromkeys(self._places[key_of(each)] for each in conversations)), np.int64)

    def answer_tokens(self, places: np.ndarray) -> np.ndarray:
        """Ids of all answer tokens of these conversations."""
        spans = [slice(self._starts[place], self._starts[place + 1]) for place in places]
        ids, is_answer = self._arrays["ids"], self._arrays["is_answer"]
        return np.concatenate([ids[span][is_answer[span]] for span in spans])

    def keys(self, places: np.ndarray) -> np.ndarray:
        return self._arrays["keys"][places]

    def batch(self, places: Sequence[int], device: torch.device | str = "cpu") -> StateBatch:
        """Conversations laid end to end."""
        spans = {
            "tokens": [slice(self._starts[place], self._starts[place + 1]) for place in places],
            "answer_tokens": [
                slice(self._answer_starts[place], self._answer_starts[place + 1]) for place in places
            ],
        }

        def joined(name: str) -> Tensor:
            array = self._arrays[name]
            pieces = [array[span] for span in spans[self._files[name][0]]]
            return torch.from_numpy(np.concatenate(pieces))

        return StateBatch(
            lengths=[int(self._starts[place + 1] - self._starts[place]) for place in places],
            ids=joined("ids").long().to(device),
            is_answer=joined("is_answer").to(device),
            states=joined("states").to(device).float(),
            top_ids=joined("top_ids").to(torch.int32).long().to(device),
            top_log_q=joined("top_log_q").to(device).float(),
            log_rest=joined("log_rest").to(device),
            first_nats=joined("first_nats").to(device),
        )


@dataclass(frozen=True)
class StateBatch:
    """Several conversations laid end to end, `lengths` tokens each.

    ids, is_answer (tokens,); states (tokens, hidden): what the extra heads read; and one row for each answer
    token in order: top_ids, top_log_q (answers, k), log_rest, first_nats (answers,).
    """

    lengths: list[int]
    ids: Tensor
    is_answer: Tensor
    states: Tensor
    top_ids: Tensor
    top_log_q: Tensor
    log_rest: Tensor
    first_nats: Tensor


@dataclass(frozen=True)
class BaseRun:
    """One pass of a base over padded rows; `rows` and `answers` say which of (rows, longest) count."""

    ids: Tensor
    rows: Tensor
    answers: Tensor
    stem: Tensor
    last: Tensor
    top_ids: Tensor
    top_log_q: Tensor
    log_rest: Tensor
    first_nats: Tensor

    def arrays(self, source_is_last: bool) -> dict[str, np.ndarray]:
        states = (self.last if source_is_last else self.stem)[self.rows].to(torch.float16)
        if not states.isfinite().all():
            raise ValueError(
                "states: the base's hidden states exceed what 16 bits hold; train without --distill"
            )
        values = {
            "lengths": self.rows.sum(1),
            "answers": self.answers.sum(1),
            "ids": self.ids[self.rows],
            "is_answer": self.answers[self.rows],
            "states": states,
            "top_ids": self.top_ids,
            "top_log_q": self.top_log_q,
            "log_rest": self.log_rest,
            "first_nats": self.first_nats,
        }
        return {name: value.cpu().numpy() for name, value in values.items()}


@torch.no_grad()
def run_base(model: DynamoForCausalLM, conversations: Sequence[Conversation], top: int = TOP) -> BaseRun:
    """The base's stem and last layer over conversations, and its distribution at their answer tokens."""
    base, architecture = model.backbone, architecture_of(model)
    ids, labels = (torch.from_numpy(each).to(model.device) for each in padded(conversations))
    lengths = torch.tensor([len(own) for own, _ in conversations], device=model.device)
    rows = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    answers = labels != IGNORED_LABEL
    answers[:, 0] = False  # nothing stands before it that could say it
    seen = {}

    def keep(_layer, args, output):
        seen["stem"] = args[0]
        seen["last"] = output[0] if isinstance(output, tuple) else output

    hook = architecture.layers(base)[-1].register_forward_hook(keep)
    try:
        normed = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    # An answer token's distribution stands at the position before it.
    before = normed[:, :-1][answers[:, 1:]]
    targets = ids[answers]
    found = [
        _teacher(base.get_output_embeddings()(piece), wanted, top)
        for piece, wanted in zip(before.split(TEACHER_ROWS), targets.split(TEACHER_ROWS), strict=True)
    ]
    top_ids, top_log_q, log_rest, first_nats = (torch.cat(each) for each in zip(*found, strict=True))
    return BaseRun(ids, rows, answers, seen["stem"], seen["last"], top_ids, top_log_q, log_rest, first_nats)


def _teacher(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(top)
    log_q = values - total
    rest = (1 - log_q.exp().sum(-1)).clamp(min=0)
    return ids, log_q, rest.log(), (total - logits.gather(1, targets[:, None]))[:, 0]


def _batches(keys: Sequence[int], conversations: dict[int, Conversation]) -> list[list[int]]:
    """Keys sorted by length, cut where a padded batch would exceed BATCH_TOKENS."""
    batches: list[list[int]] = [[]]
    for key in keys:
        if batches[-1] and (len(batches[-1]) + 1) * len(conversations[key][0]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(key)
    return batches


def key_of(conversation: Conversation) -> int:
    """A hash of a conversation's ids and of which are answers."""
    ids, labels = conversation
    content = np.asarray(ids, np.int32).tobytes() + (np.asarray(labels) != IGNORED_LABEL).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _fingerprint(model: DynamoForCausalLM) -> str:
    crc = 0
    for _, weight in sorted(model.backbone.state_dict().items()):
        crc = zlib.crc32(weight.detach().cpu().contiguous().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"
