"""Token heads for a chat model without any data: it writes its own conversations, and teaches its own heads.

talks, and answers to questions of ours -> heads (taught by the base, with a correlator) -> pair (the heads
alone, on their base) -> measures -> recording -> card. The questions are there because a model asks itself
longer ones, and heads that know these alone foresee less where a person asks. Each stage is resumed or
skipped by its result, and WORK/pair is what `load` takes. How many tokens are worth their time depends on the
machine, so two runs of this are alike and not the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dynamo.common.files import replace_text
from dynamo.common.options import option
from dynamo.data.prompts import EVERYDAY_FILE, TRAINING_FILE
from dynamo.hub.cards import Origin, card
from dynamo.loading.names import SMOLLM2, SMOLLM2_HUB
from dynamo.pipelines.stages import Stage, commands_of
from dynamo.training.options import training_run

RECORDED = "Why is the sky blue?"  # what the page suggests first
# Of `train`; --train changes any. The pair opens in exact mode, which speaks as its base does.
TRAINING = {
    "heads_only": True, "distill": 0.5, "head_init": "copy", "correlator_rank": 384, "block_size": 1152,
    "batch_size": 16, "head_lr": 1e-3, "warmup": 0.05, "final_lr": 0.05, "steps": 3000, "evaluate_every": 250,
    "overlap_weight": 5.0,
}  # fmt: skip
SAMPLING = {"correction": "correlator", "exact": True, "exact_vocabulary": 8192}
LEAST_TOKENS = 20_000  # some hundred conversations, as one of fifty is held out


@dataclass(frozen=True)
class SelfRun:
    """Options of one run of the path; train: values by name for `training_run`, in place of `TRAINING`."""

    model: str
    work: Path
    heads: int = 3
    prompts: int = 10
    licence: str = ""
    tokens: int = option(5_000_000, "answer tokens that the model writes for --self")
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not 2 <= self.heads <= 5:
            raise ValueError(f"heads: expected 2 to 5, as the first is the base's own, got {self.heads}")
        if self.tokens < LEAST_TOKENS:
            raise ValueError(
                f"tokens: expected {LEAST_TOKENS} or more answer tokens (one conversation of fifty is "
                f"held out, to see when to stop), got {self.tokens}"
            )

    @property
    def pair(self) -> Path:
        return self.work / "pair"

    @property
    def base(self) -> str:
        """What the heads name as their base."""
        return SMOLLM2_HUB if self.model == f"{SMOLLM2}/base" else self.model


def stages(run: SelfRun) -> list[Stage]:
    """The stages in order."""
    work, pair = run.work, str(run.pair)
    talks, answers = work / "talks.jsonl", work / "answers.jsonl"
    heads, exact = work / "heads", work / "exact.jsonl"
    sweep, recording = run.pair / "sweep.json", run.pair / "recording.ndjson"
    training = {
        "model": run.model, "heads": run.heads, "data": (str(talks), str(answers)),
        "validation": str(talks.with_suffix(".dev.jsonl")), "output": heads,
    }  # fmt: skip
    found = [
        Stage("talks", ["converse", "--model", run.model, "--output", str(talks), "--tokens",
                        str(run.tokens)], work / "written.json", captured=True),
        Stage("answers", ["converse", "--model", run.model, "--output", str(answers), "--prompts",
                          str(TRAINING_FILE)], work / "answered.json", captured=True),
        Stage("heads", training_run(**{**training, **TRAINING, **run.train}), heads / "model"),
        Stage("pair", partial(save_heads, heads / "model", run.base, run.pair), run.pair),
        Stage("exact", ["complete", "--model", pair, "--prompts", str(EVERYDAY_FILE), "--thresholds", "0.5",
                        "--seeds", "1", "--max-new-tokens", "64", "--output", str(exact)],
              work / "exact.json", captured=True),
        Stage("sweep", ["sweep", "--model", pair, "--prompts", str(EVERYDAY_FILE), "--limit",
                        str(run.prompts), "--seeds", "1", "--output", str(sweep)], sweep),
        Stage("recording", ["compare", RECORDED, "--model", pair, "--max-new-tokens", "200", "--trace",
                            str(recording)], recording),
    ]  # fmt: skip
    return [*found, Stage("card", partial(write_card, run, found), run.pair / "README.md")]


def save_heads(trained: Path, base: str, target: Path) -> None:
    """The heads of a training, alone, with the options that they are to be used with."""
    from dynamo.model import load_dynamo

    model = load_dynamo(str(trained)).eval()
    model.config.sampling = SAMPLING
    model.save_heads(target, base)


def write_card(run: SelfRun, found: list[Stage]) -> None:
    """README.md of the pair, of what its own files say."""
    rows = [json.loads(line) for line in _lines(run.work / "exact.jsonl")]
    drafted = [row for row in rows if row.get("threshold") is not None]
    measured = [row["measured"] for line in _lines(run.work / "heads" / "log.jsonl")
                if (row := json.loads(line)).get("measured")]  # fmt: skip
    written, answered = (
        json.loads((run.work / name).read_text(encoding="utf-8"))
        for name in ("written.json", "answered.json")
    )
    report: dict[str, Any] = {
        "heads": measured[-1],
        "exact": {name: sum(row[name] for row in drafted) for name in ("tokens", "passes")},
        "sweep": json.loads((run.pair / "sweep.json").read_text(encoding="utf-8")),
        "commands": commands_of(found, run.work),
    }
    data = (
        f"{written['answer_tokens']:,} answer tokens in {written['conversations']:,} conversations that the "
        f"model wrote itself, questions too, and {answered['answer_tokens']:,} in its answers to questions "
        "of DynaMo's; without any data set."
    )
    base = Path(run.base).name if Path(run.base).exists() else run.base
    title = f"DynaMo heads for {base.split('/')[-1]}"
    text = card(run.pair, title, Origin(run.licence or "unknown", base, data), report)
    replace_text(run.pair / "README.md", text)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
