"""Have a judge model rate the texts of `complete`, or compare them with the base's, and summarise.

With --instructions it rates the replies of an instruction set instead, for `finetune --min-rating`. The judge
is any OpenAI-compatible endpoint. Verdicts are JSON lines; a stopped run continues with the texts that have
none. The key is read from an environment variable and never written to a file.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamo.data.reading import STRICT_HELP, Reading


def configure(parser: argparse.ArgumentParser) -> None:
    material = parser.add_mutually_exclusive_group(required=True)
    material.add_argument("--completions", nargs="+", help="JSONL files of `complete`")
    material.add_argument(
        "--instructions",
        nargs="+",
        help="data of `finetune`, as it takes them: rate its replies from 1 to 10",
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--ratings", type=Path, help="JSON file for the ratings of --instructions, in order")
    parser.add_argument("--output", required=True, type=Path, help="JSONL file of the verdicts")
    parser.add_argument(
        "--endpoint", help="base URL, such as http://localhost:8000/v1; without it, only summarise"
    )
    parser.add_argument("--judge-model", help="the model's name at the endpoint")
    parser.add_argument(
        "--mode", choices=("pairwise", "single"), default="pairwise", help="default: pairwise"
    )
    parser.add_argument(
        "--order", choices=("random", "both"), default="random", help="which text is A (default: random)"
    )
    parser.add_argument("--key-variable", default="JUDGE_API_KEY", metavar="NAME",
                        help="environment variable of the key (default: JUDGE_API_KEY)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=4, help="questions at a time (default: 4)")
    parser.add_argument("--attempts", type=int, default=6, help="most requests for one question (default: 6)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (default: 120)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of the judge's answer (default: 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the judge (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the judge (default: 0)")
    parser.add_argument("--price-in", type=float, help="price of a million prompt tokens")
    parser.add_argument("--price-out", type=float, help="price of a million tokens of answers")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.evaluation import judge

    if arguments.instructions:
        return _rate(arguments)
    if arguments.ratings:
        raise ValueError("ratings: only for --instructions; leave it out for completions")
    completions = _completions(arguments.completions)
    heads = _heads(completions)
    if arguments.mode == "single":
        tasks = judge.single_tasks(completions)
    else:
        tasks = judge.pairwise_tasks(completions, arguments.order, arguments.seed)
    rows, failures = _rows(arguments, tasks)
    return {
        "output": str(arguments.output),
        "mode": arguments.mode,
        "judged": len(rows),
        "missing": len(tasks) - len(rows),
        "failed": failures,
        **_costs(arguments, rows),
        **_summary(arguments, rows, completions, heads),
    }


def _completions(paths: list[str]) -> list[dict[str, Any]]:
    from dynamo.evaluation.completion import KEY, check_text
    from dynamo.evaluation.journal import read_journal

    found: dict[tuple, dict[str, Any]] = {}
    for path in paths:
        for row in read_journal(path, check_text):
            key = tuple(row[name] for name in KEY)
            if key in found:
                text = ", ".join(f"{name} {row[name]}" for name in KEY)
                raise ValueError(f"completions: {path}: the text of {text} is given twice")
            found[key] = row
    return list(found.values())


def _rate(arguments: argparse.Namespace) -> dict[str, Any]:
    """One rating for each example; the file is written when all are there."""
    from dynamo.common.files import write_json
    from dynamo.data.instructions import read_examples
    from dynamo.data.sources import data_files
    from dynamo.evaluation import judge

    if arguments.ratings is None:
        raise ValueError("ratings: name the file for the ratings with --ratings, for `finetune --ratings`")
    arguments.mode = "single"
    arguments.instructions = list(map(str, data_files(arguments.instructions, "instructions")))
    reading = Reading(arguments.strict)
    texts = judge.example_rows(read_examples(arguments.instructions, reading))
    reading.say("instructions")
    tasks = judge.single_tasks(texts)
    rows, failures = _rows(arguments, tasks)
    ratings = judge.ratings_in_order(rows, len(tasks))
    missing = len(tasks) - len(rows)
    if missing:
        print(f"{missing} examples have no answer yet: run again to continue", file=sys.stderr)
    else:
        write_json(arguments.ratings, ratings)
    rated = [rating for rating in ratings if rating]
    return {
        "output": str(arguments.output),
        "ratings": None if missing else str(arguments.ratings),
        "judged": len(rows),
        "missing": missing,
        "failed": failures,
        "without_verdict": len(rows) - len(rated),
        "mean": sum(rated) / len(rated) if rated else None,
        **_costs(arguments, rows),
    }


def _rows(arguments: argparse.Namespace, tasks: list[Any]) -> tuple[list[dict[str, Any]], int]:
    """The verdicts on these texts, and how many questions had no answer this time."""
    from dynamo.evaluation.journal import Journal, read_journal
    from dynamo.evaluation.judge import KEYS, check_verdict

    key = KEYS[arguments.mode]
    if arguments.endpoint:
        journal = Journal(arguments.output, key, _settings(arguments), check_verdict)
        missing = [task for task in tasks if journal.key_of(task.row) not in journal]
        failures, rows = _ask(arguments, missing, journal), journal.rows
    elif arguments.output.exists():
        failures, rows = 0, read_journal(arguments.output, check_verdict)
    else:
        raise ValueError("endpoint: nothing is judged yet; name an endpoint with --endpoint")
    wanted = {tuple(task.row[name] for name in key) for task in tasks}
    own = [row for row in rows if row["mode"] == arguments.mode]
    return [row for row in own if tuple(row[name] for name in key) in wanted], failures


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("mode", "order", "judge_model", "max_tokens", "temperature", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.instructions:  # a verdict's row names its example by number
        settings["instructions"] = 0
        for path in arguments.instructions:
            settings["instructions"] = zlib.crc32(Path(path).read_bytes(), settings["instructions"])
    return settings


def _heads(completions: list[dict[str, Any]]) -> int:
    heads = {row["settings"]["heads"] for row in completions}
    if len(heads) != 1:
        raise ValueError(
            f"completions: expected texts of one model as `complete` writes them, got heads {heads}"
        )
    return heads.pop()


def _ask(arguments: argparse.Namespace, tasks: list[Any], journal: Any) -> int:
    from tqdm import tqdm

    from dynamo.evaluation.endpoint import Endpoint
    from dynamo.evaluation.judge import judge

    if not arguments.judge_model:
        raise ValueError("judge_model: name the judge at the endpoint with --judge-model")
    key = os.environ.get(arguments.key_variable)
    endpoint = Endpoint(arguments.endpoint, arguments.judge_model, key, arguments.timeout, arguments.attempts)
    failures: list[str] = []

    def failed(task: Any, why: str) -> None:
        failures.append(why)
        print(f"{task.row['prompt_id']}, seed {task.row['seed']}: {why}", file=sys.stderr)

    verdicts = judge(tasks, endpoint, arguments.workers, arguments.max_tokens, arguments.temperature,
                     arguments.seed, failed)  # fmt: skip
    with journal, tqdm(total=len(tasks), unit="verdict", mininterval=2.0) as bar:
        for row in verdicts:
            journal.write(row)
            bar.update()
    return len(failures)


def _costs(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = {name: sum(row[name] for row in rows) for name in ("prompt_tokens", "completion_tokens")}
    prices = arguments.price_in, arguments.price_out
    paid = zip(prices, tokens.values(), strict=True)
    cost = None if None in prices else sum(price * count for price, count in paid) / 1e6
    return {**tokens, "requests": sum(row["attempts"] for row in rows), "cost": cost}


def _summary(
    arguments: argparse.Namespace, rows: list[Any], completions: list[Any], heads: int
) -> dict[str, Any]:
    from dynamo.evaluation import verdict

    if arguments.mode == "single":
        rated = verdict.ratings(rows)
        for each in rated:
            lane = "base" if each.threshold is None else f"dynamo at {each.threshold:g}"
            print(f"{lane}: {_shown(each.mean)} ({each.no_verdict} without verdict)", file=sys.stderr)
        return {"ratings": [asdict(each) for each in rated]}
    points, same = verdict.compare(rows, completions, heads, 2 if arguments.order == "both" else 1)
    for each in points:
        print(
            f"threshold {each.threshold:g}: speed-up {_shown(each.speed_up)}, "
            f"win rate {_shown(each.win_rate)} ({each.wins} won, {each.losses} lost, {each.ties} tied, "
            f"{each.no_verdict} without verdict)",
            file=sys.stderr,
        )
    if same is not None:
        print(
            f"same-quality speed-up {_shown(same.measured)}, theoretical {_shown(same.theoretical)}",
            file=sys.stderr,
        )
    return {
        "points": [asdict(each) for each in points],
        "same_quality": None if same is None else asdict(same),
    }


def _shown(estimate: Any) -> str:
    return "none" if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
