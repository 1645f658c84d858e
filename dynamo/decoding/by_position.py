"""A pass's logits, of which few are read: each made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ALL = slice(None)


class LogitsByPosition:
    """As an array (queries, heads, vocab), asked for one position, made once, or for a position or several,
    then a head or several, then all tokens or those of some ids.

    logits: makes them of states (heads, queries, hidden), as `Decoder.logits`.
    """

    def __init__(self, logits: Callable[..., Tensor], states: Tensor):
        self._logits, self._states = logits, states
        self._made: dict[int, Tensor] = {}

    def __getitem__(self, asked: Any) -> Tensor:
        if isinstance(asked, tuple):
            return self._some(*asked)
        if asked not in self._made:
            self._made[asked] = self._some(asked, ALL)
        return self._made[asked]

    def _some(
        self, position: int | slice, head: int | slice, tokens: NDArray[np.int64] | None = None
    ) -> Tensor:
        positions, heads = _as_slice(position), _as_slice(head)
        made = self._logits(self._states[heads, positions], heads.start or 0, tokens).transpose(0, 1)
        return made[ALL if position is positions else 0, ALL if head is heads else 0]


def _as_slice(index: int | slice) -> slice:
    return index if isinstance(index, slice) else slice(index, index + 1)
