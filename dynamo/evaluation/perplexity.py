"""Perplexities on held-out documents (paper, section 4.2 and Table 2; PPL_d: method, section 4).

PPL_n = exp(mean nats of head n); PPL_1:n is the geometric mean of PPL_1 .. PPL_n. Bits per byte relate head 1
to the text itself: all tokens are paid for, markers too, and only the text's UTF-8 bytes are divided by.
PPL_d is that of the tokens that the sampler would emit, against the back-off threshold: at places of the
text the sampler decides on m tokens, and the score is what heads 1 .. m give the m true tokens there, each by
its full softmax at temperature 1, without the mask; pooled, PPL_d = exp(-sum log p / sum m). How many tokens
are emitted does not depend on the draw, so only the choice of places is random.
Intervals are over documents, as tokens of one document belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, ratio
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data.held_out import held_out_nats
from dynamo.evaluation.places import candidates_at, random_places
from dynamo.model import DynamoForCausalLM
from dynamo.model.architectures import max_positions
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose


@dataclass(frozen=True)
class Perplexity:
    """nats: sum per head; targets: tokens that each head was scored on; text_bytes: of what was read;
    intervals: PPL_1 .. PPL_n and PPL_1:2 .. PPL_1:n with 95 % intervals, by name."""

    nats: tuple[float, ...]
    targets: tuple[int, ...]
    text_bytes: int
    intervals: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def mean_nats(self) -> list[float]:
        return [nats / max(1, targets) for nats, targets in zip(self.nats, self.targets, strict=True)]

    @property
    def ppl(self) -> list[float]:
        """PPL_1 .. PPL_n."""
        return [math.exp(nats) for nats in self.mean_nats]

    @property
    def joint_ppl(self) -> list[float]:
        """PPL_1:1 .. PPL_1:n."""
        means = self.mean_nats
        return [math.exp(sum(means[:n]) / n) for n in range(1, len(means) + 1)]

    @property
    def bits_per_byte(self) -> float:
        return self.nats[0] / math.log(2) / max(1, self.text_bytes)

    def summary(self) -> dict:
        return {
            "mean_nats": self.mean_nats,
            "ppl": self.ppl,
            "joint_ppl": self.joint_ppl,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.targets[0],
            "text_bytes": self.text_bytes,
            "intervals": {name: [each.low, each.high] for name, each in self.intervals.items()},
        }


def measure_perplexity(
    model: DynamoForCausalLM,
    documents: Sequence[np.ndarray],
    bytes_per_token: np.ndarray,
    cut: int = 512,
) -> Perplexity:
    """Every document alone from its first token, cut at `cut` tokens; bytes_per_token: (vocab,)."""
    sums = document_sums(model, documents, cut)
    text_bytes = int(sum(bytes_per_token[document[:cut]].sum() for document in documents))
    nats, targets = sums.sum(axis=0)
    return Perplexity(tuple(nats.tolist()), tuple(map(int, targets)), text_bytes, head_estimates(sums))


def document_sums(
    model: DynamoForCausalLM, documents: Sequence[np.ndarray], cut: int = 512
) -> NDArray[np.float64]:
    """(documents, 2, heads): nats and targets of every head in every document, cut at `cut` tokens."""
    return np.stack(held_out_nats(model, documents, cut), axis=1)


def head_estimates(sums: NDArray[np.float64]) -> dict[str, Estimate]:
    """PPL_1 .. PPL_n and PPL_1:2 .. PPL_1:n of (documents, 2, heads), with 95 % intervals over documents."""
    heads = sums.shape[2]
    flat = sums.reshape(len(sums), 2 * heads)

    def ppl(first: int, last: int) -> Estimate:
        return bootstrap(flat, lambda pooled: np.exp(_means(pooled, heads)[:, first:last].mean(axis=1)))

    single = {f"PPL_{n + 1}": ppl(n, n + 1) for n in range(heads)}
    return {**single, **{f"PPL_1:{n}": ppl(0, n) for n in range(2, heads + 1)}}


def _means(pooled: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    return ratio(np.ascontiguousarray(pooled[:, :heads]), np.ascontiguousarray(pooled[:, heads:]))


@dataclass(frozen=True)
class DynamicPerplexity:
    """At one threshold: PPL_d and mean tokens per place, with 95 % intervals over documents, and the share of
    places by tokens decided on."""

    threshold: float
    ppl: Estimate
    tokens_per_place: Estimate
    share_by_order: dict[str, float]
    places: int

    def to_json(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "ppl": self.ppl.to_json(),
            "tokens_per_place": self.tokens_per_place.to_json(),
        }


def measure_dynamic_perplexity(
    model: DynamoForCausalLM,
    table: CooccurrenceTable | None,
    documents: Sequence[NDArray[np.integer]],
    thresholds: Sequence[float],
    options: SamplingOptions | None = None,
    positions: int = 4000,
    per_document: int = 20,
    cut: int = 512,
    special_ids: Sequence[int] = (),
    seed: int = 0,
) -> list[DynamicPerplexity]:
    """PPL_d at each threshold, at the same `per_document` random places of randomly chosen documents.

    documents: ids, read up to `cut` tokens; positions: places in all, fewer if the documents are used up;
    special_ids: never penalised. Raises ValueError in exact mode, for a threshold out of range and if no
    document is long enough.
    """
    options = options or SamplingOptions()
    if options.exact:
        raise ValueError("exact: PPL_d moves the back-off threshold, which exact mode does not have")
    if options.draw == "anchored":
        raise ValueError("draw: PPL_d scores what a joint decides on, and an anchored chunk has none")
    each = [replace(options, threshold=threshold) for threshold in thresholds]
    heads = min(options.max_order, model.config.num_token_heads)
    cut = min(cut, max_positions(model))
    orders: list[NDArray[np.int64]] = []  # of each document: (places, thresholds)
    nats: list[NDArray[np.float64]] = []  # the same
    for document, places in random_places(documents, heads, positions, per_document, cut, seed):
        found = _decided(model, table, document, places, each, heads, special_ids)
        orders.append(found[0])
        nats.append(found[1])
    return [
        _pooled(one.threshold, [o[:, i] for o in orders], [n[:, i] for n in nats])
        for i, one in enumerate(each)
    ]


@torch.inference_mode()
def _decided(
    model: DynamoForCausalLM,
    table: CooccurrenceTable | None,
    document: NDArray[np.int64],
    places: NDArray[np.int64],
    each: Sequence[SamplingOptions],
    heads: int,
    special_ids: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many tokens every option set would emit at every place, and their nats: (places, options) each."""
    # Candidates depend on temperature, top-k and correction alone, which all option sets share.
    logits, candidates = candidates_at(model, document, places, heads, each[0])
    targets = torch.from_numpy(document[places[:, None] + np.arange(1, heads + 1)])  # (places, heads)
    log_p = logits.log_softmax(-1).gather(2, targets.to(logits.device)[:, :, None])[:, :, 0]
    summed = -log_p.double().cumsum(1).cpu().numpy()
    orders = np.zeros((len(places), len(each)), dtype=np.int64)
    context, read = Context(logits.shape[-1], tuple(special_ids)), 0
    for row, (place, found) in enumerate(zip(places.tolist(), candidates, strict=True)):
        context.add(document[read : place + 1])
        read = place + 1
        orders[row] = [choose(found, context, table, options, 0.0).order for options in each]
    return orders, np.take_along_axis(summed, orders - 1, axis=1)


def _pooled(
    threshold: float, orders: Sequence[NDArray[np.int64]], nats: Sequence[NDArray[np.float64]]
) -> DynamicPerplexity:
    """One threshold's places, document by document."""
    sums = np.array([[n.sum(), o.sum(), len(o)] for o, n in zip(orders, nats, strict=True)])
    decided = np.concatenate(list(orders))
    counts = np.bincount(decided)
    return DynamicPerplexity(
        threshold=threshold,
        ppl=bootstrap(sums[:, :2], lambda pooled: np.exp(ratio(pooled[:, 0], pooled[:, 1]))),
        tokens_per_place=bootstrap_ratio(sums[:, 1], sums[:, 2]),
        share_by_order={str(m): float(counts[m] / len(decided)) for m in np.flatnonzero(counts).tolist()},
        places=len(decided),
    )
