"""Random places of held-out documents, and the candidates that a sampler has there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.common.device_map import execution_device
from dynamo.model import DynamoForCausalLM
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.correlated import Correlators
from dynamo.sampling.options import SamplingOptions


def random_places(
    documents: Sequence[NDArray[np.integer]],
    longest: int,
    positions: int,
    per_document: int,
    cut: int,
    seed: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """A document and `per_document` places of it, ascending, until there are `positions` or no documents.

    documents: ids, read up to `cut` tokens; place t has read document[: t + 1], and `longest` tokens follow.
    Raises ValueError if no document is long enough.
    """
    long_enough = [document[:cut] for document in documents if len(document[:cut]) > longest]
    if not long_enough:
        raise ValueError(f"documents: none has more than {longest} tokens")
    random = np.random.default_rng(seed)
    for index in random.permutation(len(long_enough)):
        document = long_enough[index].astype(np.int64)
        places = random.permutation(len(document) - longest)[: min(per_document, positions)]
        yield document, np.sort(places)
        positions -= len(places)
        if positions == 0:
            return


@torch.inference_mode()
def candidates_at(
    model: DynamoForCausalLM,
    document: NDArray[np.int64],
    places: NDArray[np.int64],
    heads: int,
    options: SamplingOptions,
) -> tuple[torch.Tensor, list[Candidates]]:
    """Logits of the first heads, (places, heads, vocab), and each place's candidates by the options'
    temperature, top-k and correction."""
    states = model.head_states(torch.from_numpy(document)[None].to(execution_device(model)))[:heads]
    states = torch.stack([state[0, places] for state in states], dim=1)  # (places, heads, hidden)
    logits = [model.head_logits(n, state) for n, state in enumerate(states.unbind(1))]
    logits = torch.stack(logits, dim=1).float()
    candidates = [top_candidates(rows, options) for rows in logits.cpu()]
    if options.correction == "correlator":
        correlators = Correlators.from_model(model)
        candidates = [
            correlators.attach(each, rows[1:], own[1:], options)
            for each, rows, own in zip(candidates, logits.cpu(), states, strict=True)
        ]
    return logits, candidates
