"""Answer one prompt with the base model and with DynaMo, same seed: texts, speeds, and the base's opinion.

The lanes take turns, the one with less model time first, so neither disturbs the other's timing. DynaMo is
lossy: its text may differ from the base model's, and the audit says by how much.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from dynamo.commands.generate import (
    add_engine_arguments,
    add_generation_arguments,
    add_loading_arguments,
    add_model_argument,
    in_words,
    loading_options,
    sampling_options,
    summary,
)
from dynamo.common.threads import settle_threads
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.trace.joint_line import JointLine
from dynamo.trace.ndjson import End, Header, Line, PassLine, encode_lines
from dynamo.trace.recorder import Recorder, speed_up

WARM_UP_TOKENS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say to both models")
    add_model_argument(parser)
    parser.add_argument("--trace", help="file for both runs, pass by pass (NDJSON); the page can replay it")
    add_loading_arguments(parser)
    add_engine_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data import text
    from dynamo.decoding.engine import Engine
    from dynamo.decoding.race import race
    from dynamo.evaluation.audit import audit

    sampling_options(arguments, SamplingOptions())  # a mistake is said before a model is loaded
    pair = loading.load(arguments.model, **loading_options(arguments))
    options = sampling_options(arguments, pair.options)
    prompt = text.encode_prompt(pair.tokenizer, arguments.prompt)
    engines = {
        "base": Engine(pair.base, None, pair.tokenizer, arguments.weights),
        "dynamo": Engine(pair.dynamo, pair.table, pair.tokenizer, arguments.weights),
    }
    settle_threads(engines["dynamo"], arguments.threads)
    for (
        engine
    ) in engines.values():  # the first passes of a process are slow, and only the base would have them
        list(engine.stream(prompt, options, WARM_UP_TOKENS, arguments.seed))
    lanes = {
        lane: engine.stream(prompt, options, arguments.max_new_tokens, arguments.seed, arguments.stop)
        for lane, engine in engines.items()
    }
    recordings = {lane: _Recording(lane, pair, arguments, options) for lane in lanes}
    for lane, step in race(lanes):
        if step is not None:
            recordings[lane].take(step)
    for recording in recordings.values():
        recording.end()
    if arguments.trace:
        _write(arguments.trace, recordings.values())
    result: dict[str, Any] = {"model": arguments.model, "table": pair.table is not None}
    for lane, recording in recordings.items():
        opinion = audit(pair.base, prompt, recording.tokens)
        print(f"{lane}\n  {recording.text}\n  {in_words(recording)}", file=sys.stderr)
        print(
            f"  under the base model: {opinion.nats_per_token:.2f} nats a token, "
            f"{100 * opinion.unlikely_share:.1f} % of the tokens below 1 %\n",
            file=sys.stderr,
        )
        result[lane] = {
            **summary(recording),
            "nats_per_token_under_base": opinion.nats_per_token,
            "share_below_1_percent": opinion.unlikely_share,
        }
    ratio = speed_up(recordings["base"], recordings["dynamo"])
    said = f"{ratio:.2f}x" if ratio else "no ratio: too few tokens, or something disturbed the clocks"
    print(f"wall clock, tokens per second of model time: {said}", file=sys.stderr)
    return {**result, "wall_clock_ratio": ratio}


class _Recording(Recorder):
    """One lane's run as lines of a trace, joints included."""

    def __init__(self, lane: str, pair: Any, arguments: argparse.Namespace, options: SamplingOptions):
        from dynamo.data.text import IncrementalDecoder, TokenLabels
        from dynamo.decoding.engine import end_of_text_ids
        from dynamo.evaluation.machine import describe

        machine = describe(pair.base)
        settings = {**asdict(options), "max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
        super().__init__(
            IncrementalDecoder(pair.tokenizer, arguments.stop),
            end_of_text_ids(pair.dynamo, pair.tokenizer),
            TokenLabels(pair.tokenizer),
        )
        self._threshold = options.threshold
        header = Header(
            uuid4().hex,
            lane,
            pair.name,
            arguments.prompt,
            settings,
            engine="dynamo" if lane == "dynamo" else "loop",
            recorded=f"{machine['device']}, {machine['threads']} threads, {machine['date']}",
        )
        self.lines: list[Line] = [header]

    def take(self, record: StepRecord) -> PassLine:
        line = super().take(record)
        joint = JointLine.from_record(line.index, record, self._threshold, self._label)
        self.lines += [line] if joint is None else [line, joint]
        return line

    def end(self, reason: str = "", message: str = "") -> End:
        self.lines.append(super().end(reason, message))
        return self.lines[-1]


def _write(path: str, recordings: Iterable[_Recording]) -> None:
    temporary = Path(f"{path}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for recording in recordings:
                file.write(encode_lines(recording.lines))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
