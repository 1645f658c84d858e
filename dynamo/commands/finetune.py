"""Finetune a base model or a DynaMo model on instructions; the loss is on the replies only.

Data is conversations, or questions with their answers, and is written with the model's own chat template; a
tokenizer without one gets markers. A run whose output folder holds a checkpoint continues from it; the result
is OUTPUT/model.
"""

from __future__ import annotations

import argparse
from typing import Any

from dynamo.common.options import add_arguments, from_arguments
from dynamo.training.options import FinetuningRun


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, FinetuningRun, absent=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.training.finetune import finetune

    return finetune(from_arguments(FinetuningRun, arguments)).summary()
