"""Rerun the paper's tables and figures that need no outside judge, and write a report of the results.

An experiment that has a result of the same settings is not run again, and a killed run resumes. The report is
written from the stored results alone; each states the settings that it was measured with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamo.commands.generate import add_model_argument, add_prompts_arguments
from dynamo.common.options import add_arguments, from_arguments
from dynamo.reproduction.workspace import Sizes

SPLITS = ("train", "dev")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", nargs="+", type=Path, metavar="FILE",
        help="a folder of dialogues_train and _dev .jsonl.gz, or two JSONL files (also .gz): what is trained "
        "on and what is held out",
    )  # fmt: skip
    parser.add_argument("--other", type=Path, help="JSONL or Alpaca file of another corpus (generalisation)")
    add_model_argument(parser)
    add_prompts_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/reproduction"),
        help="folder of the results (default: runs/reproduction)",
    )
    parser.add_argument(
        "--report", type=Path, default=Path("docs/reproduction.md"),
        help="the report's file, figures beside it (default: docs/reproduction.md)",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these experiments only")
    parser.add_argument("--list", action="store_true", help="name the experiments and end")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write the report from the results there are"
    )
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    add_arguments(parser, Sizes)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.reproduction.catalogue import EXPERIMENTS, UNTESTED
    from dynamo.reproduction.report import write_report
    from dynamo.reproduction.runner import read_result, run_missing

    sizes = from_arguments(Sizes, arguments)
    chosen = _chosen(arguments.only, EXPERIMENTS)
    if arguments.list:
        for each in EXPERIMENTS:
            print(f"{each.name:20} {each.title}", file=sys.stderr)
        return {"experiments": [each.name for each in EXPERIMENTS]}
    ran = [] if arguments.report_only else run_missing(chosen, _workspace(arguments, sizes), arguments.output)
    found = {each.name: read_result(arguments.output, each.name) for each in EXPERIMENTS}
    verdicts = write_report(arguments.report, EXPERIMENTS, found, UNTESTED)
    for name, verdict in verdicts.items():
        print(f"{name:20} {verdict}", file=sys.stderr)
    missing = [name for name in found if name not in verdicts]
    return {"report": str(arguments.report), "ran": ran, "verdicts": verdicts, "without_result": missing}


def _chosen(names: list[str] | None, experiments: tuple) -> list[Any]:
    known = {each.name: each for each in experiments}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"only: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [each for name, each in known.items() if names is None or name in names]


def _workspace(arguments: argparse.Namespace, sizes: Sizes) -> Any:
    from dynamo import loading
    from dynamo.data.prompts import read_prompts
    from dynamo.reproduction.workspace import Workspace

    train, validation = _data_files(arguments.data)
    if arguments.other is not None and not arguments.other.is_file():
        raise ValueError(f"other: there is no file {arguments.other}")
    pair = loading.load(arguments.model, device=arguments.device)
    return Workspace(
        pair=pair,
        train_data=train,
        validation=validation,
        folder=arguments.output / "work",
        prompts=read_prompts(arguments.prompts, pair.tokenizer, arguments.limit),
        sizes=sizes,
        other=arguments.other,
        progress=lambda message: print(message, file=sys.stderr, flush=True),
    )


def _data_files(given: list[Path] | None) -> tuple[Path, Path]:
    """What is trained on and what is held out, checked."""
    if not given:
        raise ValueError("data: name the folder of the dialogues, or two files (or use --report-only)")
    if len(given) == 1 and given[0].is_dir():
        given = [given[0] / f"dialogues_{split}.jsonl.gz" for split in SPLITS]
    if len(given) != 2:
        raise ValueError(f"data: expected a folder or two files (train, held out), got {len(given)}")
    for file in given:
        if not file.is_file():
            raise ValueError(
                f"data: there is no file {file}; prepare the dialogues from the public data set with: "
                "python -m dynamo.data.schema_guided prepare dstc8-schema-guided-dialogue FOLDER"
            )
    return given[0], given[1]
