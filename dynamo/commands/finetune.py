"""Finetune a base model or a DynaMo model on instructions; the loss is on the replies only.

Data is Alpaca's format or conversations, JSON or JSON lines, and is written with the chat page's template. A
run whose output folder holds a checkpoint goes on from it; the result is OUTPUT/model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamo.commands.train import stop_at_end_of_turn
from dynamo.common.options import add_arguments, from_arguments
from dynamo.training.recipes import TrainingOptions

# Ours: the paper names none for its finetuning.
DEFAULTS = {"base_lr": 2e-5, "head_lr": 2e-4, "warmup": 0.03, "batch_size": 64, "evaluate_every": 0,
            "checkpoint_every": 50}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="GPT-NeoX or DynaMo model: folder or hub id")
    parser.add_argument(
        "--data", required=True, help="JSON or JSONL (also .gz): instruction, input, output; or turns"
    )
    parser.add_argument("--validation", help="the same, held out")
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--min-rating", type=float, help="leave out what is rated lower, such as 4.5")
    parser.add_argument("--ratings", help="JSON or JSONL, one for each example (default: in the rows)")
    parser.add_argument("--epochs", type=float, default=3.0, help="times the data is read (default: 3)")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    parser.add_argument("--max-length", type=int, default=512, help="tokens to cut at (default: 512)")
    add_arguments(parser, TrainingOptions, leave_out=("steps",), **DEFAULTS)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.data import instructions
    from dynamo.training.trainer import Trainer, save_model

    target = arguments.output / "model"
    if target.exists():
        raise ValueError(f"output: {target} holds a finished model already; name another folder")
    if arguments.ratings and arguments.min_rating is None:
        raise ValueError("ratings: without --min-rating they decide nothing; give it, such as 4.5")
    examples = instructions.read_examples(arguments.data)
    read = len(examples)
    if arguments.min_rating is not None:
        ratings = instructions.read_ratings(arguments.ratings) if arguments.ratings else None
        examples = instructions.rated(examples, arguments.min_rating, ratings)
    model, tokenizer, table = _starting_model(arguments.model, arguments.seed)
    config = model.config
    if not config.num_token_heads < arguments.max_length <= config.max_position_embeddings:
        raise ValueError(
            f"max_length: expected {config.num_token_heads + 1} to {config.max_position_embeddings} (the "
            f"model's positions), got {arguments.max_length}"
        )
    encoded = instructions.encode(examples, tokenizer, arguments.max_length)
    rows = instructions.InstructionRows(encoded, arguments.seed)
    held_out = _held_out(arguments, tokenizer)
    arguments.steps = _steps(arguments, len(encoded))
    options = from_arguments(TrainingOptions, arguments)
    trainer = Trainer(
        model,
        rows,
        options,
        arguments.output,
        validation=[ids for ids, _ in held_out],
        validation_cut=arguments.max_length,
        validation_labels=[labels for _, labels in held_out],
    )
    trained = trainer.run()
    if trainer.is_main:
        save_model(trained.to_pythia() if config.num_token_heads == 1 else trained, tokenizer, target)
        kept_table = _copy_table(table, tokenizer, target)
        trainer.discard_checkpoint()
    return {
        "output": str(target),
        "steps": trainer.step,
        "examples": len(encoded),
        "left_out_by_rating": read - len(examples),
        "left_out_by_length": len(examples) - len(encoded),
        "table": trainer.is_main and kept_table,
        "validation_nats": trainer.last_validation,
        **trainer.cost,
    }


def _starting_model(name: str, seed: int) -> tuple[Any, Any, Any]:
    import torch

    from dynamo import loading
    from dynamo.data import text
    from dynamo.model import DynamoForCausalLM

    torch.manual_seed(seed)
    model, tokenizer, table = loading.load_model(name, device="cpu", dtype=torch.float32)
    if not isinstance(model, DynamoForCausalLM):
        model = DynamoForCausalLM.from_neox(model, num_token_heads=1)
    if not text.has_chat_template(tokenizer):
        text.add_chat_template(tokenizer)
        missing = len(tokenizer) - model.config.vocab_size
        if missing > 0:
            raise ValueError(
                f"model: {name} has {model.config.vocab_size} ids, the chat template needs {missing} more; "
                "resize its embeddings first (resize_token_embeddings)"
            )
    stop_at_end_of_turn(model, tokenizer)
    return model, tokenizer, table


def _held_out(arguments: argparse.Namespace, tokenizer: Any) -> list[Any]:
    from dynamo.data import instructions

    if not arguments.validation:
        return []
    examples = instructions.read_examples(arguments.validation)
    return instructions.encode(examples, tokenizer, arguments.max_length)


def _steps(arguments: argparse.Namespace, examples: int) -> int:
    if arguments.steps is not None:
        return arguments.steps
    if not arguments.epochs > 0:
        raise ValueError(f"epochs: expected more than 0, got {arguments.epochs}")
    return max(1, round(arguments.epochs * examples / max(1, arguments.batch_size)))


def _copy_table(table: Any, tokenizer: Any, target: Path) -> bool:
    """The model's table goes on serving it, unless its vocabulary has new words."""
    from dynamo import loading
    from dynamo.data import text

    if table is None:
        return False
    if table.tokenizer not in ("", text.fingerprint(tokenizer)):
        print(
            "the chat template added tokens: count the table again (python -m dynamo count)", file=sys.stderr
        )
        return False
    table.save(target / loading.TABLE_FILE)
    return True
