"""Files of dialogues and texts, row by row, and their rows as token documents.

A document is the ids of one conversation, built by the chat template, or of one plain text. Whatever is wrong
with a row is said with its file and line. What training makes of documents is told in `dynamo.blocks`, what
finetuning makes of them in `dynamo.instructions`.

`python -m dynamo.data` prepares the public Schema-Guided Dialogue files and trains the embedded tokenizer on
them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dynamo import text
from dynamo.foreign import parse_json, shown
from dynamo.losses import IGNORED_LABEL
from dynamo.options import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Turns = list[dict[str, str]]
LONGEST_LINE = 2**27  # characters; a packed file could hold a line that no memory does
SGD_ROLES = {"USER": "user", "SYSTEM": "assistant"}


# -- reading ----------------------------------------------------------------------------------------------


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file (also .gz, and .zst where the program zstd is) that are not blank, each with its
    place: "FILE, line N".

    Raises ValueError naming the place where the file is damaged, OSError if it is not there.
    """
    path = Path(path)
    opener = {".gz": gzip.open, ".zst": _zstd_open}.get(path.suffix, open)
    number, last = 0, ""
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
                if not line.endswith("\n"):
                    last = line  # whole only if the file is
                elif line.strip():
                    yield line, f"{path}, line {number}"
        if last.strip():
            yield last, f"{path}, line {number}"
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, after line {number}: the file is damaged ({error})") from None


@contextmanager
def _zstd_open(path: Path, mode: str, encoding: str) -> Iterator[IO[str]]:
    """The text of a .zst file, which Python reads from 3.14 on. EOFError at its end if it is no whole one."""
    program = which("zstd")
    if program is None:
        raise ValueError(f"{path}: .zst files are read by the program zstd; install it, or unpack the file")
    path.open("rb").close()
    process = Popen([program, "-dcq", "--", str(path)], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        with TextIOWrapper(process.stdout, encoding=encoding) as lines:
            yield lines
        if process.wait():
            raise EOFError("zstd cannot unpack it to its end")
    finally:
        process.kill()
        process.wait()


def parse_line(line: str, where: str) -> Any:
    try:
        # NaN in a column that nobody reads is no fault of the row.
        return parse_json(line, finite=False)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_rows(path: str | Path) -> Iterator[Turns | str]:
    """Rows of a JSONL file (also .gz, .zst): conversations (`turns` or `messages`, turns of `role` and `text`
    or `content`) and plain documents (`text`).

    Raises ValueError naming file and line of a row that is neither, OSError if the file is not there.
    """
    for line, where in read_lines(path):
        yield _row(parse_line(line, where), where)


def read_conversations(path: str | Path) -> Iterator[Turns]:
    """`read_rows` of a file that holds conversations only; a plain document is a ValueError."""
    for number, row in enumerate(read_rows(path), start=1):
        if isinstance(row, str):
            raise ValueError(
                f"{path}, row {number}: expected a conversation ('turns' or 'messages'), got 'text'"
            )
        yield row


def _row(row: Any, where: str) -> Turns | str:
    if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"]:
        return row["text"]
    turns = row.get("turns", row.get("messages")) if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected an object with a list 'turns' or 'messages', or a string 'text'")
    return as_turns(turns, where)


def as_turns(turns: list[Any], where: str) -> Turns:
    """Turns of `role` and `text` or `content`, checked, as the template wants them."""
    conversation = []
    for turn in turns:
        content = turn.get("text", turn.get("content")) if isinstance(turn, dict) else None
        # One by one: what is no string may not be hashable either.
        if not isinstance(content, str) or not any(turn.get("role") == role for role in text.ROLES):
            raise ValueError(
                f"{where}: a turn needs 'role' ({' or '.join(text.ROLES)}) and 'text', got {shown(turn)}"
            )
        conversation.append({"role": turn["role"], "content": content})
    return conversation


def read_documents(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Every row of a file as its token ids (int32): conversations with their markers and end-of-turn tokens,
    plain documents as they are. All of it is held in memory; `dynamo.corpus` is for what does not fit."""
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path}: holds no conversation and no text")
    return encode_rows(rows, tokenizer)


def encode_rows(rows: Sequence[Turns | str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Rows as token ids (int32), in their order."""
    texts = iter(text.encode_plain(tokenizer, [row for row in rows if isinstance(row, str)]))
    turns = [row for row in rows if not isinstance(row, str)]
    chats = iter(text.encode_many(tokenizer, turns) if turns else ())
    ids = (next(texts) if isinstance(row, str) else next(chats).ids for row in rows)
    return [np.asarray(document, dtype=np.int32) for document in ids]


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of different lengths as two arrays (rows, longest), int64; padding is no target.

    Padding stands after a row, where no token of a causal model sees it, so no mask is needed.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), IGNORED_LABEL, np.int64)
    for row, (own_ids, own_labels) in enumerate(rows):
        ids[row, : len(own_ids)] = own_ids
        labels[row, : len(own_labels)] = own_labels
    return ids, labels


def text_bytes_per_token(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes behind each id of a byte-level tokenizer, (vocab,); special tokens have none."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([0 if i in special else len(token) for i, token in enumerate(tokens)])


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
    options = parse(parser, sys.argv[1:])
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
