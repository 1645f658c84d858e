"""The embedded pair's data: the public Schema-Guided Dialogue data set as conversations, and its tokenizer.

`python -m dynamo.data.schema_guided` prepares the files and trains the tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo.common.options import parse
from dynamo.data import text
from dynamo.data.rows import Turns
from dynamo.data.sources import read_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SGD_ROLES = {"USER": "user", "SYSTEM": "assistant"}


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
    parser = argparse.ArgumentParser(
        prog="python -m dynamo.data.schema_guided", description=__doc__.split("\n\n")[-1]
    )
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
