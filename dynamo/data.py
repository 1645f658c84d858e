"""Dialogues and instructions as token documents, and documents as training blocks.

A document is the ids of one conversation, built by the chat template. Training reads fixed blocks cut from
the documents of an epoch, laid end to end in an order that is a function of (seed, epoch) alone, each
followed by the end-of-text token: so a killed run resumes at the very token it stopped at, without any
sampler state.

`python -m dynamo.data` prepares the public Schema-Guided Dialogue files and trains the embedded tokenizer on
them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo import text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Turns = list[dict[str, str]]
SGD_ROLES = {"USER": "user", "SYSTEM": "assistant"}


# -- reading ----------------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> Iterator[Turns | str]:
    """Rows of a JSONL file (also .gz): conversations (`turns` or `messages`, turns of `role` and `text` or
    `content`) and plain documents (`text`).

    Raises ValueError naming file and line of a row that is neither, OSError if the file is not there.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(line, f"{path}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, after line {number}: the file is damaged ({error})") from None


def read_conversations(path: str | Path) -> Iterator[Turns]:
    """`read_rows` of a file that holds conversations only; a plain document is a ValueError."""
    for number, row in enumerate(read_rows(path), start=1):
        if isinstance(row, str):
            raise ValueError(
                f"{path}, row {number}: expected a conversation ('turns' or 'messages'), got 'text'"
            )
        yield row


def _row(line: str, where: str) -> Turns | str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"]:
        return row["text"]
    turns = row.get("turns", row.get("messages")) if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected an object with a list 'turns' or 'messages', or a string 'text'")
    conversation = []
    for turn in turns:
        content = turn.get("text", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(content, str) or turn.get("role") not in text.ROLES:
            raise ValueError(
                f"{where}: a turn needs 'role' ({' or '.join(text.ROLES)}) and 'text', got {turn!r}"
            )
        conversation.append({"role": turn["role"], "content": content})
    return conversation


def read_documents(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Every row of a file as its token ids (int32): conversations with their markers and end-of-turn tokens,
    plain documents as they are."""
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path}: holds no conversation and no text")
    texts = iter(text.encode_plain(tokenizer, [row for row in rows if isinstance(row, str)]))
    turns = [row for row in rows if not isinstance(row, str)]
    chats = iter(text.encode_many(tokenizer, turns) if turns else ())
    ids = (next(texts) if isinstance(row, str) else next(chats).ids for row in rows)
    return [np.asarray(document, dtype=np.int32) for document in ids]


def text_bytes_per_token(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes behind each id of a byte-level tokenizer, (vocab,); special tokens have none."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([0 if i in special else len(token) for i, token in enumerate(tokens)])


# -- blocks -----------------------------------------------------------------------------------------------


class TokenBlocks:
    """An endless, seekable sequence of blocks (block_size,) of documents, reshuffled every epoch."""

    def __init__(self, documents: Sequence[np.ndarray], separator: int, block_size: int = 512, seed: int = 0):
        self._documents = documents
        if block_size < 2:
            raise ValueError(f"block_size: expected 2 or more tokens, got {block_size}")
        self._separator = separator
        self._seed = seed
        self.block_size = block_size
        self.tokens_per_epoch = sum(len(document) + 1 for document in documents)
        self.blocks_per_epoch = self.tokens_per_epoch // block_size
        if self.blocks_per_epoch == 0:
            raise ValueError(
                f"block_size: {block_size} is longer than all {self.tokens_per_epoch} tokens of the data; "
                "use a smaller block_size or more data"
            )
        self._epoch: tuple[int, np.ndarray] | None = None

    def fingerprint(self) -> str:
        """Short name of the sequence: another block size, seed or document gives another."""
        crc = zlib.crc32(repr((self.block_size, self._seed, self._separator)).encode())
        for document in self._documents:
            crc = zlib.crc32(np.asarray(document, dtype=np.int64).tobytes(), crc)
        return f"{crc:08x}"

    def batch(self, start: int, count: int) -> np.ndarray:
        """Blocks start .. start + count of the sequence: (count, block_size) int64."""
        return np.stack([self._block(index) for index in range(start, start + count)])

    def _block(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.blocks_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][position]

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._documents))
        separator = np.array([self._separator])
        stream = np.concatenate([part for i in order for part in (self._documents[i], separator)])
        size = self.blocks_per_epoch * self.block_size
        return stream[:size].astype(np.int64).reshape(-1, self.block_size)


# -- preparation of the embedded model's data -----------------------------------------------------------


def read_schema_guided(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Rows (`id`, `services`, `turns`) of one split folder of the public Schema-Guided Dialogue data set."""
    folder = Path(folder)
    files = sorted(folder.glob("dialogues_*.json"))
    if not files:
        raise ValueError(
            f"{folder}: holds no dialogues_*.json; expected a split folder of the data set, such as train/"
        )
    for file in files:
        for dialogue in json.loads(file.read_text(encoding="utf-8")):
            yield {
                "id": f"{folder.name}/{dialogue['dialogue_id']}",
                "services": dialogue["services"],
                "turns": [
                    {"role": SGD_ROLES[turn["speaker"]], "text": turn["utterance"]}
                    for turn in dialogue["turns"]
                ],
            }


def prepare_schema_guided(source: Path, target: Path) -> dict[str, int]:
    """Write dialogues_train and _dev .jsonl.gz to `target` from a clone of the public data set."""
    target.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in ("train", "dev"):
        partial = target / f".dialogues_{split}.partial"
        with gzip.open(partial, "wt", encoding="utf-8") as out:
            counts[split] = 0
            for row in read_schema_guided(source / split):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                counts[split] += 1
        os.replace(partial, target / f"dialogues_{split}.jsonl.gz")
    return counts


def train_tokenizer(
    conversations: Iterator[Turns], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` ids, GPT-NeoX's kind, with the chat template's markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(text.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((turn["content"] for turns in conversations for turn in turns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=text.END_OF_TEXT,
        eos_token=text.END_OF_TURN,
        pad_token=text.END_OF_TEXT,
        additional_special_tokens=list(text.MARKERS.values()),
        chat_template=text.CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dynamo.data", description=__doc__.split("\n\n")[-1])
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser(
        "prepare", help="the public data set's train/ and dev/ folders to two JSONL files"
    )
    prepare.add_argument("source", type=Path, help="clone of dstc8-schema-guided-dialogue")
    prepare.add_argument(
        "target", type=Path, help="folder for dialogues_train.jsonl.gz and dialogues_dev.jsonl.gz"
    )
    tokenizer = verbs.add_parser("tokenizer", help="train the embedded model's tokenizer")
    tokenizer.add_argument("dialogues", type=Path, help="dialogues_train.jsonl.gz")
    tokenizer.add_argument("output", type=Path, help="folder of the tokenizer")
    tokenizer.add_argument("--vocab-size", type=int, default=4096)
    tokenizer.add_argument("--max-length", type=int, default=1024)
    options = parser.parse_args()
    if options.verb == "prepare":
        result: dict[str, Any] = prepare_schema_guided(options.source, options.target)
    else:
        trained = train_tokenizer(
            read_conversations(options.dialogues), options.vocab_size, options.max_length
        )
        trained.save_pretrained(options.output)
        result = {"output": str(options.output), "vocab_size": len(trained)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
