"""Count the co-occurrence table of a text with a model's tokenizer.

The stream is the templated tokens, markers and end-of-turn tokens included; tuples do not cross documents.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", required=True, help="model or tokenizer: folder or hub id")
    parser.add_argument("--data", required=True, help="JSONL (also .gz) of conversations or texts")
    parser.add_argument("--output", required=True, type=Path, help="file of the table, .safetensors")
    parser.add_argument("--order", type=int, default=3, help="longest tuple, 2 to 5 (default: 3)")
    parser.add_argument("--min-count", type=int, default=1, help="drop rarer tuples (default: 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import data, loading, text
    from dynamo.cooccurrence import CooccurrenceTable

    if not arguments.output.parent.is_dir():
        raise ValueError(f"output: the folder {arguments.output.parent} does not exist; make it first")
    tokenizer = loading.load_tokenizer(arguments.tokenizer)
    table = CooccurrenceTable.count(
        data.read_documents(arguments.data, tokenizer),
        order=arguments.order,
        min_count=arguments.min_count,
        vocab_size=len(tokenizer),
        progress=True,
        source=Path(arguments.data).name,
        tokenizer=text.fingerprint(tokenizer),
    )
    table.save(arguments.output)
    return {
        "output": str(arguments.output),
        "tokens": table.total_tokens,
        "tuples": table.sizes,
        "megabytes": arguments.output.stat().st_size / 1e6,
    }
