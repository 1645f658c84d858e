"""PPL_d: perplexity of the tokens that the sampler would emit, against the back-off threshold (method,
section 4).

At places of held-out text the sampler decides how many tokens m it would emit. The score is what heads 1 .. m
give the m true tokens there, each by its full softmax at temperature 1, without the mask; pooled,
PPL_d = exp(-sum log p / sum m). How many tokens are emitted does not depend on the draw, so nothing here is
random but the choice of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, ratio
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.model import DynamoForCausalLM
from dynamo.sampling.sampler import Candidates, Context, SamplingOptions, choose, top_candidates


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


def measure(
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

    documents: ids, read up to `cut` tokens; positions: places in all, fewer where the documents are used up;
    special_ids: never penalised. Raises ValueError in exact mode, for a threshold out of range and if no
    document is long enough.
    """
    options = options or SamplingOptions()
    if options.exact:
        raise ValueError("exact: PPL_d moves the back-off threshold, which exact mode does not have")
    each = [replace(options, threshold=threshold) for threshold in thresholds]
    heads = min(options.max_order, model.config.num_token_heads)
    cut = min(cut, model.config.max_position_embeddings)
    long_enough = [document[:cut] for document in documents if len(document[:cut]) > heads]
    if not long_enough:
        raise ValueError(f"documents: none has more than {heads} tokens")
    random = np.random.default_rng(seed)
    orders: list[NDArray[np.int64]] = []  # of each document: (places, thresholds)
    nats: list[NDArray[np.float64]] = []  # the same
    taken = 0
    for index in random.permutation(len(long_enough)):
        document = long_enough[index].astype(np.int64)
        # Position t has read document[: t + 1]; the longest chunk after it must exist.
        places = np.sort(random.permutation(len(document) - heads)[: min(per_document, positions - taken)])
        found = _decided(model, table, document, places, each, heads, special_ids)
        orders.append(found[0])
        nats.append(found[1])
        taken += len(places)
        if taken == positions:
            break
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
    states = model.head_states(torch.from_numpy(document)[None].to(model.device))[:heads]
    logits = torch.stack(
        [model.head_logits(n, state[0, places]) for n, state in enumerate(states)], dim=1
    ).float()
    targets = torch.from_numpy(document[places[:, None] + np.arange(1, heads + 1)])  # (places, heads)
    log_p = logits.log_softmax(-1).gather(2, targets.to(logits.device)[:, :, None])[:, :, 0]
    summed = -log_p.double().cumsum(1).cpu().numpy()
    orders = np.zeros((len(places), len(each)), dtype=np.int64)
    context, read = Context(logits.shape[-1], tuple(special_ids)), 0
    for row, (place, rows) in enumerate(zip(places.tolist(), logits.cpu(), strict=True)):
        context.add(document[read : place + 1])
        read = place + 1
        # Candidates depend on temperature and top-k alone, which all option sets share.
        candidates: Candidates = top_candidates(rows, each[0])
        orders[row] = [choose(candidates, context, table, options, 0.0).order for options in each]
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
