"""How the page bears many visitors: `make bench-load`, or with --visitors, --rounds, --soak-minutes.

Starts `python app.py` in a process of its own and comes as 1, 4, 16 and 64 `gradio_client` sessions that
start together; each asks questions with seeds of its own, and every answer is compared with the text of a
single user. The soak is one conversation after the other, each a new session, some cancelled in mid-stream,
while the server's memory and threads are watched. Prints a table, and one JSON line last; exits with 1 where
an answer was wrong, missing or out of turn, or memory or threads grew. Needs a quiet machine for its times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from visitors import Question, Server, Visit, app, client_of, reference, visit, visits_at_once

from dynamo import loading
from dynamo.evaluation import machine
from dynamo.ui import ModelPair
from dynamo.ui.compare.service import PageService

SOAK_VISITORS = 4
CANCELLED = 10  # every so many conversations
SAMPLE_SECONDS = 10
REST_SECONDS = 15  # after ten of them a thread of the server's pool may end
MOST_GROWTH = 1.05  # of memory, from the second quarter of the soak to the last
COLUMNS = {
    "visitors": "visitors", "answers": "answers", "wrong": "wrong", "overtaken": "overtaken",
    "refused": "refused", "told_place": "told", "first_p50": "first, median", "first_p95": "first, 95 %",
    "first_max": "first, longest", "answers_per_minute": "answers a minute",
    "tokens_per_second": "tokens a second", "model_share": "model", "megabytes": "MB", "threads": "threads",
}  # fmt: skip
REPORT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- bench-load -->", "<!-- /bench-load -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--visitors", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=4, help="questions of each visitor (default: 4)")
    parser.add_argument("--queue", type=int, help="visitors that may wait (default: spaces_config.yaml's)")
    parser.add_argument("--soak-minutes", type=float, default=0.0)
    parser.add_argument("--soak-conversations", type=int, help="end the soak after so many")
    parser.add_argument(
        "--output", type=Path, help="write the JSON there, and the tables of docs/reliability.md"
    )
    arguments = parser.parse_args()
    pair = loading.load("embedded", device="cpu")
    service = PageService(ModelPair.from_pair(pair))
    expected = cache(lambda question: reference(service, question))
    environment = {"DYNAMO_QUEUE": str(arguments.queue)} if arguments.queue else {}
    with tempfile.TemporaryDirectory() as folder, app(Path(folder) / "log", **environment) as server:
        visits_at_once(server.url, [Question.number(0)], 1)
        _print_row(COLUMNS)
        levels = [_level(server, visitors, arguments.rounds, expected) for visitors in arguments.visitors]
        soak = _soak(server, arguments, expected) if arguments.soak_minutes else None
    result = {
        "machine": machine.describe(pair.base),
        "command": " ".join(["python tools/bench_load.py", *sys.argv[1:]]),
        "levels": levels,
        "soak": soak,
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        _report(result)
    print(json.dumps(result))
    wrong = any(level["wrong"] or level["overtaken"] for level in levels)
    sys.exit(wrong or (soak is not None and not soak["passed"]))


def _level(server: Server, visitors: int, rounds: int, expected: Any) -> dict[str, Any]:
    numbers = count(1000 * visitors)
    questions = [Question.number(next(numbers)) for _ in range(visitors * rounds)]
    made, seconds = visits_at_once(server.url, questions, visitors, 0.005 if visitors < 5 else 0.05)
    first = sorted(each.first for each in made)
    row = {
        "visitors": visitors,
        "answers": len(made),
        "wrong": _wrong(made, expected),
        "overtaken": sum(each.overtaken for each in made),
        "refused": sum(each.refused for each in made),
        "told_place": sum(bool(each.ranks) for each in made),
        "first_p50": round(statistics.median(first), 3),
        "first_p95": round(first[min(len(first) - 1, int(0.95 * len(first)))], 3),
        "first_max": round(first[-1], 3),
        "answers_per_minute": round(60 * len(made) / seconds, 1),
        "tokens_per_second": round(sum(each.tokens for each in made) / seconds, 1),
        "model_share": round(sum(each.model for each in made) / seconds, 3),
        "megabytes": round(server.megabytes, 1),
        "threads": server.threads,
    }
    _print_row([row[name] for name in COLUMNS])
    return row


def _wrong(made: list[Visit], expected: Any) -> int:
    return sum(bool(each.error) or each.text != expected(each.question) for each in made)


def _soak(server: Server, arguments: argparse.Namespace, expected: Any) -> dict[str, Any]:
    visits_at_once(
        server.url, [Question.number(number) for number in range(5 * SOAK_VISITORS)], SOAK_VISITORS
    )
    threads, begun = _at_rest(server), time.monotonic()
    end, most = begun + 60 * arguments.soak_minutes, arguments.soak_conversations or sys.maxsize
    numbers, samples, made = count(1_000_000), [], []

    def converse() -> None:
        while time.monotonic() < end and (number := next(numbers)) < 1_000_000 + most:
            client = client_of(server.url)
            leave = 1 if number % CANCELLED == 0 else None
            # Few different questions, so that the reference is not what takes the time.
            made.append((visit(client, Question.number(number % 60), leave_after=leave), leave))
            client.close()

    with ThreadPoolExecutor(SOAK_VISITORS) as pool:
        running = [pool.submit(converse) for _ in range(SOAK_VISITORS)]
        while not all(each.done() for each in running):
            samples.append(round(server.megabytes, 1))
            time.sleep(SAMPLE_SECONDS)
        for each in running:
            each.result()
    minutes = (time.monotonic() - begun) / 60
    threads_after = _at_rest(server)
    quarter = max(1, len(samples) // 4)
    early, late = (
        statistics.median(samples[quarter : 2 * quarter] or samples),
        statistics.median(samples[-quarter:]),
    )
    row = {
        "minutes": round(minutes, 2),
        "conversations": len(made),
        "cancelled": sum(leave is not None for _, leave in made),
        "wrong": _wrong([each for each, leave in made if leave is None], expected),
        "megabytes_second_quarter": round(early, 1),
        "megabytes_last_quarter": round(late, 1),
        "megabytes_most": max(samples),
        "threads_before": threads,
        "threads_after": threads_after,
    }
    row["passed"] = not row["wrong"] and late <= MOST_GROWTH * early and threads_after <= threads
    for name, value in row.items():
        print(f"soak {name}: {value}", file=sys.stderr)
    return row


def _report(result: dict[str, Any]) -> None:
    """Puts the figures between the marks of docs/reliability.md."""
    machine, soak = result["machine"], result["soak"]
    where = f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}"
    lines = [f"`{result['command']}` on {machine['date']}: {where}.", ""]
    lines += [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(str(level[name]) for name in COLUMNS)} |" for level in result["levels"]]
    if soak is not None:
        lines += ["", "| soak | |", "|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in soak.items()]
    text = REPORT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = "\n".join(lines)
    REPORT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _at_rest(server: Server) -> int:
    """Threads, once those without work have ended: one that gets idle ends those that long are."""
    time.sleep(REST_SECONDS)
    visits_at_once(server.url, [Question.number(0)], 1)
    return server.threads


def _print_row(values: Any) -> None:
    print("  ".join(f"{value!s:>10}" for value in values), file=sys.stderr)


if __name__ == "__main__":
    main()
