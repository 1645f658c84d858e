"""Count the co-occurrence table of texts with a model's tokenizer.

The stream is the templated tokens, markers and end-of-turn tokens included; tuples do not cross documents.
Corpora may be larger than memory: tokens and runs are kept on disk, and only the table itself is held.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", required=True, help="model or tokenizer: folder or hub id")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="conversations or texts: JSONL files (also .gz), folders of them, hub data sets of them",
    )
    parser.add_argument("--output", required=True, type=Path, help="file of the table, .safetensors")
    parser.add_argument("--order", type=int, default=3, help="longest tuple, 2 to 5 (default: 3)")
    parser.add_argument("--min-count", type=int, default=1, help="drop rarer tuples (default: 1)")
    parser.add_argument("--max-mb", type=float, help="raise the minimum count until the file is this small")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--tokens", type=Path, help="keep the tokenised data here, as `train` does")
    parser.add_argument("--scratch", type=Path, help="folder for sorted runs (default: the system's)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading, text
    from dynamo.cooccurrence import CooccurrenceTable
    from dynamo.corpus import data_files, tokenise
    from dynamo.external import count_files

    if not arguments.output.parent.is_dir():
        raise ValueError(f"output: the folder {arguments.output.parent} does not exist; make it first")
    tokenizer = loading.load_tokenizer(arguments.tokenizer)
    with _token_folder(arguments) as folder:
        files = tokenise(
            data_files(arguments.data), tokenizer, Path(folder), arguments.workers, progress=True
        )
        started = time.perf_counter()
        unigrams, levels, min_count = count_files(
            files,
            arguments.order,
            len(tokenizer),
            arguments.min_count,
            None if arguments.max_mb is None else int(arguments.max_mb * 1e6),
            arguments.workers,
            arguments.scratch,
            progress=True,
        )
        seconds = time.perf_counter() - started
    source = ", ".join(Path(name).name for name in arguments.data)
    table = CooccurrenceTable(unigrams, levels, min_count, False, source, text.fingerprint(tokenizer))
    table.save(arguments.output)
    result = {
        "output": str(arguments.output),
        "tokens": table.total_tokens,
        "tuples": table.sizes,
        "min_count": min_count,
        "megabytes": arguments.output.stat().st_size / 1e6,
        "tokens_per_second": table.total_tokens / seconds,
        "peak_mb": _peak_megabytes(),
    }
    print(
        f"{result['tokens']:,} tokens at {result['tokens_per_second']:,.0f} a second, at most "
        f"{result['peak_mb']:.0f} MB in one process; {result['megabytes']:.2f} MB, minimum count {min_count}",
        file=sys.stderr,
    )
    return result


def _token_folder(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    if arguments.tokens:
        return nullcontext(arguments.tokens)
    return tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="tokens-")


def _peak_megabytes() -> float:
    """The most memory that this process or one of its workers held."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024 / 1e6
