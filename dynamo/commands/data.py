"""Show what is understood of data files, before anything is trained on them.

Counts of rows, turns and tokens, what is left out and why, two rows as the model will read them, and how much
of them blocks of tokens hold. `train`, `finetune`, `count` and `perplexity` understand the same.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dynamo.data.reading import DATA_HELP, STRICT_HELP, Reading


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", help=DATA_HELP)
    parser.add_argument(
        "--tokenizer", default="embedded", help="model or tokenizer: folder or hub id (default: embedded)"
    )
    parser.add_argument("--block-size", type=int, default=512, help="tokens of a block (default: 512)")
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data.look import look

    tokenizer = loading.load_tokenizer(arguments.tokenizer)
    found = look(arguments.data, tokenizer, arguments.block_size, Reading(arguments.strict))
    unread = found.reading.unread
    more = [f"columns that are not read: {', '.join(unread)}"] if unread else []
    found.reading.say("data", *more, *found.sentences())
    for where, text in found.samples:
        print(f"--- {where}\n{text}", file=sys.stderr)
    return {"tokenizer": arguments.tokenizer, **found.to_json()}
