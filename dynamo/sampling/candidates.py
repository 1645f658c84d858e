"""The most likely tokens of each head: a pass's logits, reduced before anything is chosen.

Logits on the CPU go through a compiled loop where there is one (`dynamo.kernels`), others through torch, so
that only the candidates are copied to the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo import kernels
from dynamo.sampling import joint
from dynamo.sampling.options import SamplingOptions

TIED = 64  # copied to the host beside the top k; with more ties than these, all logits are
MOST_COUNTED = 128  # largest k of the loop; from about here on torch's selection is as fast


class Given(Protocol):
    """What a correlator makes of a pass's candidates (`dynamo.sampling.correlated`)."""

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]: ...

    def later(self, order: int) -> float: ...


class Candidates(NamedTuple):
    """The top k of each head: ids (heads, k) and probabilities f (heads, k), in falling order of f.

    given: their probabilities after the tokens chosen before, where a correlator was asked for.
    """

    ids: NDArray[np.int64]
    f: NDArray[np.float64]
    given: Given | None = None


def top_candidates(logits: Tensor | NDArray[np.floating], options: SamplingOptions) -> Candidates:
    """Top-k of each head and the softmax over the survivors; ties go to the lower id. logits: (heads, vocab).

    Raises ValueError if a head's largest logit is not a finite number.
    """
    logits = logits if isinstance(logits, Tensor) else torch.from_numpy(logits)
    k, temperature = min(options.top_k, logits.shape[1]), options.temperature or 1.0
    loops = kernels.loops()
    if loops is not None and k <= MOST_COUNTED and _is_single_on_cpu(logits):
        rows = np.ascontiguousarray(_on_host(logits))
        ids, f, finite = loops.top_k(rows, int(k), float(temperature))
        if not finite:
            raise _not_finite(np.fmax.reduce(rows, axis=1).tolist())
        return Candidates(ids, f)
    # More than k: ties with the last one must be seen, and half-precision logits often tie.  (heads, k + 64)
    best, ids = _copied(*torch.topk(logits, min(k + TIED, logits.shape[1])))
    if not np.isfinite(best[:, 0]).all():  # NaN counts as the largest
        raise _not_finite(best[:, 0].tolist())
    if best.shape[1] < logits.shape[1] and (best[:, -1] == best[:, k - 1]).any():
        everything = _on_host(logits)  # (heads, vocab)
        ids = np.stack([_top_k_of_ties(row, k) for row in everything])
        best = np.take_along_axis(everything, ids, axis=1)
    else:
        order = np.lexsort((ids, -best))[:, :k]  # by logit, ties by id
        ids, best = (np.take_along_axis(each, order, axis=1) for each in (ids, best))
    f = joint.survivors_of_top_k(best, temperature)
    return Candidates(np.ascontiguousarray(ids), np.ascontiguousarray(f))


def _is_single_on_cpu(logits: Tensor) -> bool:
    """Whether the compiled loop can read these logits: on the CPU, of 32 bits at most."""
    return logits.is_cpu and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _not_finite(largest: list[float]) -> ValueError:
    return ValueError(
        f"the model's logits are not finite (largest of each head: {largest}); load it in float32 or bfloat16"
    )


def _on_host(values: Tensor) -> NDArray[Any]:
    half = values.is_floating_point() and values.itemsize < 4
    return (values.float() if half else values).numpy(force=True)


def _copied(values: Tensor, indices: Tensor) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Both on the host, by one copy where values are of 32 bits at most: each copy waits for the device."""
    if values.is_cpu or values.itemsize > 4:
        return _on_host(values), _on_host(indices)
    both = torch.stack([values.float().view(torch.int32), indices.int()]).numpy(force=True)
    return both[0].view(np.float32), both[1].astype(np.int64)


def _top_k_of_ties(row: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    kth = np.partition(row, len(row) - k)[len(row) - k]
    ids = np.flatnonzero(row >= kth)  # rising, so that the stable sort gives ties to the lower id
    return ids[np.argsort(-row[ids], kind="stable")[:k]]
