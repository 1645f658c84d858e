"""Count the co-occurrence table of texts with a model's tokenizer.

The stream is the templated tokens, markers and end-of-turn tokens included; tuples do not cross documents.
Corpora may be larger than memory: tokens and runs are kept on disk, and only the table itself is in memory. A
killed run continues if the same command is given again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamo.common.files import check_output
from dynamo.data.reading import DATA_HELP, STRICT_HELP, Reading


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", required=True, help="model or tokenizer: folder, GGUF file or hub id")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help=DATA_HELP,
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--output", required=True, type=Path, help="file of the table, .safetensors")
    parser.add_argument("--order", type=int, default=3, help="longest tuple, 2 to 5 (default: 3)")
    parser.add_argument("--min-count", type=int, default=1, help="drop rarer tuples (default: 1)")
    parser.add_argument("--max-mb", type=float, help="raise the minimum count until the file is this small")
    parser.add_argument(
        "--held-out", nargs="+", metavar="DATA",
        help="other conversations or texts: fit the smoothed counts to them (--correction smoothed, which is "
        "not in the paper)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--tokens", type=Path, help="keep the tokenised data here, as `train` does")
    parser.add_argument("--scratch", type=Path, help="folder for intermediate files: OUTPUT's name and "
                        ".counting there, removed at the end (default: next to OUTPUT)")  # fmt: skip


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.common.memory import peak_resident
    from dynamo.cooccurrence.external import count_files
    from dynamo.cooccurrence.table import CooccurrenceTable
    from dynamo.data import text
    from dynamo.data.corpus import tokenise
    from dynamo.data.sources import data_files

    check_output(arguments.output)
    tokenizer = loading.load_tokenizer(arguments.tokenizer)
    files, reading = data_files(arguments.data), Reading(arguments.strict)
    held_out = data_files(arguments.held_out, "held_out") if arguments.held_out else []
    work = (arguments.scratch or arguments.output.parent) / f"{arguments.output.name}.counting"
    tokens = arguments.tokens or work / "tokens"

    def tokenised(files: list[Path]) -> Any:
        return tokenise(files, tokenizer, tokens, arguments.workers, progress=True, reading=reading)

    try:
        documents, others = tokenised(files), tokenised(held_out) if held_out else []
    finally:
        if not any(work.rglob("*.json")):  # no file is tokenised, so there is nothing to continue from
            shutil.rmtree(work, ignore_errors=True)
    reading.say("data")
    resumed = (work / "runs").exists()
    started = time.perf_counter()
    unigrams, levels, min_count = count_files(
        documents,
        arguments.order,
        len(tokenizer),
        arguments.min_count,
        None if arguments.max_mb is None else int(arguments.max_mb * 1e6),
        arguments.workers,
        work,
        progress=True,
    )
    seconds = time.perf_counter() - started
    source = ", ".join(Path(name).name for name in arguments.data)
    table = CooccurrenceTable(unigrams, levels, min_count, False, source, text.fingerprint(tokenizer))
    if others:
        table = table.fitted(each for file in others for each in file.read_documents())
    table.save(arguments.output)
    shutil.rmtree(work, ignore_errors=True)
    result = {
        "output": str(arguments.output),
        "tokens": table.total_tokens,
        "tuples": table.sizes,
        "min_count": min_count,
        "smoothing": None if table.smoothing is None else asdict(table.smoothing),
        "megabytes": arguments.output.stat().st_size / 1e6,
        # The part that a killed run counted is not timed.
        "tokens_per_second": None if resumed else table.total_tokens / seconds,
        "peak_mb": peak_resident(workers=True) / 1e6,
        "reading": reading.to_json(),
    }
    _say(result)
    return result


def _say(result: dict[str, Any]) -> None:
    rate = result["tokens_per_second"]
    speed = "partly by an earlier run" if rate is None else f"at {rate:,.0f} a second"
    print(
        f"{result['tokens']:,} tokens {speed}, at most {result['peak_mb']:.0f} MB in one process; "
        f"{result['megabytes']:.2f} MB, minimum count {result['min_count']}",
        file=sys.stderr,
    )
