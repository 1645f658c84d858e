"""The sampler's inner loops, compiled by numba: what `dynamo.joint` and `dynamo.tuples` state in numpy.

A pass looks at a few thousand cells: too few for numpy's calls to be cheap, too many for Python's loops. Same
candidates, cells, reasons and tokens as the numpy path; values agree up to the rounding of sums.

numba is imported, and a loop compiled, when a loop is first asked for. Where numba is missing there are none,
nor where the environment says DYNAMO_KERNELS=numpy: the sampler then does the same in numpy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

VARIABLE = "DYNAMO_KERNELS"
MOST_CANDIDATES = 256  # the loops insert one by one, which is for few


class Loops(NamedTuple):
    """The compiled functions; arguments and results are said where they are."""

    top_k: Callable
    masked_joint: Callable
    product_above: Callable
    survivors: Callable
    next_token: Callable
    drawn: Callable


@cache
def loops() -> Loops | None:
    """The compiled loops, None where the sampler is to do without. Asked once a process.

    Raises ValueError if DYNAMO_KERNELS names neither of the two.
    """
    asked = os.environ.get(VARIABLE) or "numba"
    if asked not in ("numba", "numpy"):
        raise ValueError(f"{VARIABLE}: expected numba or numpy, got {asked!r} (numba is the default)")
    if asked == "numpy":
        return None
    try:
        from dynamo.kernels import cells, heads, thresholds
    except ImportError:
        return None
    return Loops(
        heads.top_k,
        cells.masked_joint,
        cells.product_above,
        thresholds.survivors,
        thresholds.next_token,
        thresholds.drawn,
    )
