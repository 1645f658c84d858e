"""Train token heads on a base model, or go on training one, by the modified causal-LM objective.

With --heads 1 this is plain causal-LM training and the result is a stock checkpoint. A run whose
output folder holds a checkpoint continues from it, and one that receives SIGTERM writes one first; the result
is OUTPUT/model. Runs unchanged on many processes under torchrun or accelerate launch.
"""

from __future__ import annotations

import argparse
from typing import Any

from dynamo.common.options import add_arguments
from dynamo.training.options import TrainingRun, training_run


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, TrainingRun, absent=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.training.train import train

    return train(training_run(**vars(arguments))).summary()
