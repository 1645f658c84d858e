"""Every experiment, in the order of the report."""

from __future__ import annotations

from dynamo.reproduction import (
    ablations,
    continual,
    data_scaling,
    first_head,
    heads,
    joints,
    num_heads,
    perplexities,
    replies,
    thresholds,
    variants,
)
from dynamo.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    perplexities.TABLE_2,
    heads.TABLE_4,
    ablations.TABLE_9,
    ablations.OTSU,
    variants.TABLE_10,
    variants.TABLE_10_SHAPES,
    thresholds.FIGURE_5,
    joints.FIGURE_11,
    ablations.FIGURE_12,
    thresholds.FIGURE_15,
    num_heads.HOW_MANY,
    data_scaling.HOW_MUCH,
    first_head.BETTER,
    continual.CONTINUAL,
    replies.CALIBRATION,
    replies.NEXT_TURNS,
    perplexities.OTHER_CORPUS,
)

UNTESTED: tuple[tuple[str, str], ...] = (
    (
        "win rates and same-quality speed-ups of the sentence-completion benchmark",
        "a judge model rates the texts; `complete` and `judge` run it against any such endpoint",
    ),
    (
        "the chat models on the Vicuna benchmark",
        "a judge model rates the replies; `complete` and `judge` run it against any such endpoint",
    ),
    (
        "natural-language understanding with the first head",
        "its tasks are English text beyond the corpus of a small dialogue model; the harness scores the "
        "export of a larger one",
    ),
    (
        "perplexities of the seven sizes on the Pile",
        "they take Pythia checkpoints and GPU-days of training; `train --recipe` has the paper's recipes",
    ),
)
