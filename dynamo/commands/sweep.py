"""Measure speed, passes and quality over back-off thresholds, with 95 % intervals over prompts.

Every threshold replies to the same prompts with the same seeds. The first reply to each prompt is timed,
interleaved with the base model's own loop; the others are decoded together.
With --data, also how often the joint's confidence is right on held-out text. With --output, a killed sweep
continues with the next threshold if the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dynamo.commands.generate import (
    add_loading_arguments,
    add_model_argument,
    add_prompts_arguments,
    loading_options,
)
from dynamo.common.files import check_output
from dynamo.common.options import add_arguments, from_arguments
from dynamo.common.threads import add_threads_argument, settle_threads
from dynamo.data.reading import Reading
from dynamo.data.sources import data_files
from dynamo.decoding.engine import Engine
from dynamo.evaluation.replies import BATCH, check_batch
from dynamo.sampling.options import SamplingOptions

VARIED = ("threshold", "exact", "exact_threshold", "exact_vocabulary")  # no options of a sweep
THRESHOLDS = [round(0.1 * i, 1) for i in range(11)]


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS, metavar="EPS",
                        help="back-off thresholds, 0 to 1 (default: 0 to 1 in steps of 0.1)")  # fmt: skip
    add_prompts_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3, help="replies to each prompt (default: 3)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="most tokens of a reply (default: 128)"
    )
    parser.add_argument(
        "--batch", type=int, default=BATCH,
        help="replies decoded at once, all but the first to each prompt, which alone are timed; 1 to time "
        f"every reply (default: {BATCH})",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", help="held-out data, as `train` takes it: adds the joint's calibration on it"
    )
    parser.add_argument("--positions", type=int, default=4000,
                        help="positions of --data to look at (default: 4000)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the report here, as JSON")
    add_loading_arguments(parser)
    add_threads_argument(parser)
    add_arguments(parser, SamplingOptions, leave_out=VARIED, absent=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data.documents import read_documents
    from dynamo.data.prompts import read_prompts
    from dynamo.evaluation import machine
    from dynamo.evaluation.sweep_report import SweepReport

    from_arguments(SamplingOptions, arguments)  # a mistake is said before a model is loaded
    _check(arguments)
    pair = loading.load(arguments.model, **loading_options(arguments))
    options = from_arguments(SamplingOptions, arguments, **asdict(replace(pair.options, exact=False)))
    settle_threads(Engine(pair.dynamo, pair.table, pair.tokenizer), arguments.threads)
    prompts = read_prompts(arguments.prompts, pair.tokenizer, arguments.limit)
    documents = None
    if arguments.data is not None:
        reading = Reading()
        documents = read_documents(arguments.data, pair.tokenizer, reading)
        reading.say("data")
    base, *points = _points(arguments, pair, options, prompts)
    report = SweepReport(
        model=arguments.model,
        options=_options(arguments, options),
        prompts=len(prompts),
        seeds=arguments.seeds,
        max_new_tokens=arguments.max_new_tokens,
        machine=machine.describe(pair.dynamo),
        base=base,
        points=tuple(points),
        calibration=_calibration(arguments, pair, options, documents),
    )
    _print(report)
    if arguments.output is not None:
        report.write(arguments.output)
        _half_done(arguments.output).unlink()
    return report.to_json()


def _half_done(output: Path) -> Path:
    """The file of the points measured so far."""
    return output.with_name(f"{output.name}.points")


def _options(arguments: argparse.Namespace, options: SamplingOptions) -> dict[str, Any]:
    own = {name: value for name, value in asdict(options).items() if name not in VARIED}
    return {**own, "batch": arguments.batch, "quantize": arguments.quantize}


def _points(
    arguments: argparse.Namespace, pair: Any, options: SamplingOptions, prompts: list[list[int]]
) -> list[Any]:
    """The base's point and one per threshold; those of a killed run are not measured again."""
    from tqdm import tqdm

    from dynamo.evaluation import machine
    from dynamo.evaluation.journal import Journal
    from dynamo.evaluation.sweep import Point, sweep, sweep_replies

    journal, found = None, {}
    if arguments.output is not None:
        here = machine.describe(pair.dynamo)
        settings = {
            **_options(arguments, options),
            **{name: getattr(arguments, name) for name in ("model", "seeds", "max_new_tokens")},
            "prompts": zlib.crc32(repr(prompts).encode()),
            **{name: here[name] for name in ("device", "threads", "dtype")},
        }
        journal = Journal(_half_done(arguments.output), ("threshold",), settings, Point.from_json)
        found = {row["threshold"]: Point.from_json(row) for row in journal.rows}
    left = [threshold for threshold in arguments.thresholds if threshold not in found]
    count = sweep_replies(len(left), len(prompts), arguments.seeds, arguments.batch)
    with journal or nullcontext(), tqdm(total=count, unit="reply", leave=False, disable=None) as bar:
        for point in sweep(
            pair, left, prompts, options, arguments.seeds, arguments.max_new_tokens,
            progress=bar.update, batch=arguments.batch,
        ):  # fmt: skip
            # A continued run measures the base again; the first time counts.
            if point.threshold not in found:
                found[point.threshold] = point
                if journal is not None:
                    journal.write(point.to_json())
    return [found[threshold] for threshold in (None, *arguments.thresholds)]


def _check(arguments: argparse.Namespace) -> None:
    """Refuses now what would otherwise fail minutes later."""
    check_batch(arguments.batch)
    if arguments.positions < 1:
        raise ValueError(f"positions: expected 1 or more, got {arguments.positions}")
    check_output(arguments.output)
    if arguments.data is not None:
        arguments.data = list(map(str, data_files(arguments.data)))


def _calibration(
    arguments: argparse.Namespace, pair: Any, options: SamplingOptions, documents: list[Any] | None
) -> tuple:
    from dynamo.evaluation import calibration

    heads = pair.dynamo.config.num_token_heads
    orders = range(2, min(options.max_order, heads, pair.table.order if pair.table else heads) + 1)
    if documents is None or not orders:
        return ()
    return tuple(
        calibration.measure_calibration(
            pair.dynamo, pair.table, pair.base, documents, options, orders, arguments.positions
        )
    )


def _print(report: Any) -> None:
    orders = sorted({m for point in report.points for m in point.share_by_order})
    print(
        "threshold  tokens/pass          speed-up              "
        f"{' / '.join(orders) + ' %':>16}  nats   <1 %  outside  repeated  distinct-2",
        file=sys.stderr,
    )
    for point in (report.base, *report.points):
        shares = " / ".join(f"{100 * point.share_by_order.get(m, 0):.0f}" for m in orders)
        per_pass, speed = point.tokens_per_forward, point.speed_up
        nats, below, outside, repeated, distinct = (each.value for each in point.quality.values())
        print(
            f"{'base' if point.threshold is None else point.threshold:>9}  "
            f"{per_pass.value:.2f} ({per_pass.low:.2f}-{per_pass.high:.2f})  "
            f"{speed.value:5.2f}x ({speed.low:.2f}-{speed.high:.2f})  {shares:>20}  {nats:4.2f}  "
            f"{100 * below:5.1f}  {100 * outside:7.1f}  {100 * repeated:8.1f}  {distinct:10.3f}",
            file=sys.stderr,
        )
    for curve in report.calibration:
        print(
            f"calibration, order {curve.order}, {curve.event}: error {curve.expected_calibration_error:.3f} "
            f"at {curve.count} positions",
            file=sys.stderr,
        )
