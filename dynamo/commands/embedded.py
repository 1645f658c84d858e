"""Make the embedded pair from the Schema-Guided Dialogues: train, count, measure, write assets/models.

It takes hours on a laptop; a finished stage is skipped and a killed one resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dynamo.commands import run_command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of dialogues_train and _dev .jsonl.gz"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder of the training runs (default: runs)"
    )
    parser.add_argument("--output", type=Path, help="folder of the pair (default: assets/models)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.pipelines import embedded

    output = arguments.output or loading.EMBEDDED_FOLDER
    return embedded.make(arguments.data, arguments.work, output, run_command)
