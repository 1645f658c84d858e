"""Inner loops compiled by numba: the sampler's and the correlator's, which `dynamo.sampling` and
`dynamo.cooccurrence.trie` state in numpy, and attention, products and layers for a few positions, which
`dynamo.decoding` states in torch.

A pass looks at a few thousand cells, and runs a small model's layers for a few positions: too little for the
calls of libraries to be cheap, too much for Python's loops. Same candidates, cells, reasons and tokens as
without them; values agree up to the rounding of sums (of activations too, in products with few bits).

numba is imported, and a loop compiled, when a loop is first asked for. Where numba is missing there are none,
nor where the environment says DYNAMO_KERNELS=numpy: numpy and torch then do the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)
VARIABLE = "DYNAMO_KERNELS"
MOST_CANDIDATES = 256  # the loops look at each by itself, which is for few


class Loops(NamedTuple):
    """The compiled functions; arguments and results are said where they are."""

    top_k: Callable
    masked_joint: Callable
    product_above: Callable
    next_candidates: Callable
    survivors: Callable
    next_token: Callable
    drawn: Callable
    attend: Callable
    parallel_layers: Callable
    rms_normed: Callable
    product: Callable
    product_on_all_cores: Callable
    layers_of_a_pass: Callable
    likeliest: Callable
    after_chunks: Callable
    use_threads: Callable
    widens_halves: Callable


_given_up: list[Exception] = []


@cache
def loops() -> Loops | None:
    """The compiled loops, None where there are to be none. Asked once a process.

    Raises ValueError if DYNAMO_KERNELS names neither of the two.
    """
    asked = os.environ.get(VARIABLE) or "numba"
    if asked not in ("numba", "numpy"):
        raise ValueError(f"{VARIABLE}: expected numba or numpy, got {asked!r} (numba is the default)")
    if asked == "numpy" or _given_up:
        return None
    try:
        from dynamo.kernels import (
            attention,
            compiling,
            correlated,
            layers,
            masked_joint,
            norms,
            passes,
            products,
            thresholds,
            top_k,
        )
    except ImportError:
        return None
    return Loops(
        top_k.top_k,
        masked_joint.masked_joint,
        masked_joint.product_above,
        masked_joint.next_candidates,
        thresholds.survivors,
        thresholds.next_token,
        thresholds.drawn,
        attention.attend,
        layers.parallel_layers,
        norms.rms_normed,
        products.product,
        products.product_on_all_cores,
        passes.layers_of_a_pass,
        correlated.likeliest,
        correlated.after_chunks,
        compiling.use_threads,
        compiling.widens_halves,
    )


def run(name: str, *given: Any) -> Any:
    """A loop for all cores, by as many threads as torch has."""
    from torch import get_num_threads

    found, threads = loops(), get_num_threads()
    found.use_threads(threads)  # numba counts its own
    return getattr(found, name)(*given, threads)


@contextmanager
def tried() -> Iterator[None]:
    """Where a first call fails, in compiling or at keeping the result, this process goes on without loops."""
    from dynamo.kernels.compiling import FAILURES

    try:
        yield
    except FAILURES as error:
        logger.warning("the inner loops could not be compiled, numpy and torch do their work: %s", error)
        _given_up.append(error)
        loops.cache_clear()
