"""Every experiment, in the order of the report."""

from __future__ import annotations

from dynamo.reproduction import heads
from dynamo.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (heads.TABLE_4,)
