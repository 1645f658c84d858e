"""Heads and ratios worked out by hand, for the oracle."""

from __future__ import annotations

import numpy as np
from oracle import (
    OracleOptions,
)

# Top-2 of each head: f_1 = (0: .6, 1: .4), f_2 = (2: .7, 3: .3). The weights of 1 do not survive top_k = 2.
#
#   J     2    3          M    2    3          J * M    2    3    sum .89
#   0    .42  .18         0   .5    0          0       .21   0
#   1    .28  .12         1    2    1          1       .56  .12
TWO_HEADS = np.log([[6, 4, 1, 1], [1, 1, 7, 3]])


RATIO = {(0, 2): 0.5, (1, 2): 2.0, (1, 3): 1.0}


PLAIN = OracleOptions(
    threshold=0.2, top_k=2, temperature=1.0, repetition_penalty=1.0, max_order=2, adaptive=False, blur=3
)


def ratio_of(table):
    return lambda tokens: table.get(tokens, 0.0)


def flat_heads(heads, vocab):
    return np.zeros((heads, vocab))
