"""Finetune a base model or a DynaMo model on instructions; the loss is on the replies only.

Data is conversations, or questions with their answers, and is written with the model's own chat template; a
tokenizer without one gets markers. A run whose output folder holds a checkpoint continues from it; the result
is OUTPUT/model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dynamo import loading
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data import instructions, text
from dynamo.data.documents import fitted
from dynamo.data.reading import Reading
from dynamo.data.sources import data_files
from dynamo.model import DynamoForCausalLM
from dynamo.training.options import FinetuningRun
from dynamo.training.train import (
    TrainingResult,
    check_length,
    check_unfinished,
    check_vocabulary,
    give_markers,
    stop_at_end_of_turn,
    train_and_save,
)
from dynamo.training.trainer import Trainer


@dataclass(frozen=True)
class FinetuningResult(TrainingResult):
    """examples: how many were learned; table: whether the model's co-occurrence table serves it still."""

    examples: int
    left_out_by_rating: int
    left_out_by_length: int
    table: bool


def finetune(run: FinetuningRun) -> FinetuningResult:
    """Finetune as `run` says.

    Raises ValueError for options out of range, examples that cannot be read, an output that is finished
    already, and where SIGTERM ended the run, which the same call then continues.
    """
    check_unfinished(run.output)
    if run.ratings and run.min_rating is None:
        raise ValueError("ratings: without --min-rating they decide nothing; give it, such as 4.5")
    if run.ratings and not Path(run.ratings).is_file():
        raise ValueError(f"ratings: there is no file {run.ratings}")
    files = data_files(run.data)
    held_out_files = data_files([run.validation], "validation") if run.validation else []
    reading, held_out = Reading(run.strict), Reading(run.strict)
    rated = examples = instructions.read_examples(files, reading)
    if run.min_rating is not None:
        ratings = instructions.read_ratings(run.ratings) if run.ratings else None
        rated = instructions.rated(examples, run.min_rating, ratings)
    model, tokenizer, table = _starting_model(run)
    check_length("max_length", run.max_length, model.config)
    taken = list(fitted(rated, tokenizer, reading))
    reading.check(run.data)
    encoded = instructions.encode(taken, tokenizer, run.max_length)
    rows = instructions.InstructionRows(encoded, run.options.seed)
    validation = []
    if held_out_files:
        validation = fitted(instructions.read_examples(held_out_files, held_out), tokenizer, held_out)
        validation = instructions.encode(list(validation), tokenizer, run.max_length)
    trainer = Trainer(
        model,
        rows,
        replace(run.options, steps=_steps(run, len(encoded))),
        run.output,
        validation=[ids for ids, _ in validation],
        validation_cut=run.max_length,
        validation_labels=[labels for _, labels in validation],
    )
    if trainer.is_main:
        cut = f"{len(encoded):,} examples of at most {run.max_length} tokens"
        without = len(taken) - len(encoded)
        reading.say("data", cut + (f"; left out {without:,} whose replies begin later" if without else ""))
        if run.validation:
            held_out.say("validation")
    table = _still_fitting(table, tokenizer) if trainer.is_main else None
    return FinetuningResult(
        **train_and_save(trainer, tokenizer, table),
        examples=len(encoded),
        left_out_by_rating=len(examples) - len(rated),
        left_out_by_length=len(taken) - len(encoded),
        reading=reading.to_json(),
        table=table is not None,
    )


def _starting_model(run: FinetuningRun) -> tuple[DynamoForCausalLM, Any, CooccurrenceTable | None]:
    torch.manual_seed(run.options.seed)
    model, tokenizer, table = loading.load_model(run.model, device="cpu", dtype=torch.float32)
    if not isinstance(model, DynamoForCausalLM):
        model = DynamoForCausalLM.from_base(model, num_token_heads=1)
    give_markers("model", tokenizer)
    check_vocabulary(run.model, model, tokenizer)
    stop_at_end_of_turn(model, tokenizer)
    return model, tokenizer, table


def _steps(run: FinetuningRun, examples: int) -> int:
    if run.steps is not None:
        return run.steps
    if not run.epochs > 0:
        raise ValueError(f"epochs: expected more than 0, got {run.epochs}")
    return max(1, round(run.epochs * examples / run.options.batch_size))


def _still_fitting(table: CooccurrenceTable | None, tokenizer: Any) -> CooccurrenceTable | None:
    """The model's table, None where its vocabulary has new words."""
    if table is not None and table.tokenizer not in ("", text.fingerprint(tokenizer)):
        print(
            "the chat template added tokens: count the table again (python -m dynamo count)", file=sys.stderr
        )
        return None
    return table
