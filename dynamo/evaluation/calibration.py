"""Is the joint's confidence calibrated? (The paper's open question; method, section 4.)

At positions of held-out text the joint of order m is built as the sampler builds it, before its thresholds.
The value of its largest cell is the confidence that the back-off test looks at. Two events are counted
against it: the cell's tokens are the next m tokens of the text; and they are what the base model would write
greedily from there. A calibrated joint is right as often as it is confident, in the first sense; the second
says how much of its confidence is the base's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dynamo.common import validation
from dynamo.common.device_map import execution_device
from dynamo.common.statistics import wilson
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.evaluation.places import candidates_at, random_places
from dynamo.model import DynamoForCausalLM
from dynamo.model.architectures import max_positions
from dynamo.sampling.corrections import correction_of
from dynamo.sampling.options import MAX_ORDER, SamplingOptions

BINS = 10
CUT = 512
EVENTS = {"text": "equals the next tokens of held-out text", "base": "equals the base model's greedy text"}


@dataclass(frozen=True)
class Bin:
    """Positions whose confidence lies in (low, high]: how many, their mean confidence, how many were right,
    and the 95 % interval of their share (Wilson; positions are taken as independent)."""

    low: float
    high: float
    count: int
    confidence: float
    right: int
    interval: tuple[float, float]

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.count)


@dataclass(frozen=True)
class Reliability:
    """One curve: order m, event ("text" or "base"), its bins, and positions where the mask left no cell."""

    order: int
    event: str
    bins: tuple[Bin, ...]
    without_joint: int

    @property
    def count(self) -> int:
        return sum(each.count for each in self.bins)

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighted by their positions."""
        gaps = sum(each.count * abs(each.confidence - each.accuracy) for each in self.bins)
        return gaps / max(1, self.count)

    def to_json(self) -> dict[str, Any]:
        return {
            "order": self.order,
            "event": self.event,
            "meaning": EVENTS[self.event],
            "positions": self.count,
            "without_joint": self.without_joint,
            "expected_calibration_error": self.expected_calibration_error,
            "bins": [
                {**asdict(each), "interval": list(each.interval), "accuracy": each.accuracy}
                for each in self.bins
            ],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Reliability:
        return cls(
            validation.require_int("order", fields["order"], 2, MAX_ORDER),
            str(fields["event"]),
            tuple(_bin(each) for each in fields["bins"]),
            validation.require_int("without_joint", fields["without_joint"]),
        )


def _bin(fields: dict[str, Any]) -> Bin:
    low, high = fields["interval"]
    count = validation.require_int("count", fields["count"])
    return Bin(
        low=validation.number("low", fields["low"], 0, 1),
        high=validation.number("high", fields["high"], 0, 1),
        count=count,
        confidence=validation.number("confidence", fields["confidence"], 0, 1),
        right=validation.require_int("right", fields["right"], most=count),
        interval=(validation.number("interval", low, 0, 1), validation.number("interval", high, 0, 1)),
    )


def measure_calibration(
    model: DynamoForCausalLM,
    table: CooccurrenceTable | None,
    base: PreTrainedModel,
    documents: Sequence[NDArray[np.integer]],
    options: SamplingOptions | None = None,
    orders: Sequence[int] = (2, 3),
    positions: int = 4000,
    per_document: int = 20,
    seed: int = 0,
) -> list[Reliability]:
    """Both curves of every order, at `per_document` random positions of randomly chosen documents.

    documents: ids, cut at `CUT` tokens; positions: how many in all, fewer if the documents are used up;
    options: temperature, top-k, correction and mask strength are used. Raises ValueError if an order is not
    the model's or no document is long enough.
    """
    options = options or SamplingOptions()
    heads, longest = model.config.num_token_heads, max(orders)
    if not 2 <= min(orders) <= longest <= heads:
        raise ValueError(f"orders: expected 2 to {heads} (the model's heads), got {tuple(orders)}")
    cut = min(CUT, max_positions(base), max_positions(model))
    found: dict[int, list[tuple[float, bool, bool]]] = {order: [] for order in orders}
    missing = dict.fromkeys(orders, 0)
    for document, places in random_places(documents, longest, positions, per_document, cut, seed):
        _, candidates = candidates_at(model, document, places, longest, options)
        cells = [
            (place, order, correction_of(each, order, table, options).largest())
            for place, each in zip(places.tolist(), candidates, strict=True)
            for order in orders
        ]
        chunks = [(place, cell.tokens) for place, _, cell in cells if cell is not None]
        agrees = iter(base_agrees(base, document, chunks))
        for place, order, cell in cells:
            if cell is None:  # the mask left none
                missing[order] += 1
                continue
            follows = tuple(document[place + 1 : place + 1 + order].tolist()) == cell.tokens
            found[order].append((cell.value, follows, next(agrees)))
    return [
        Reliability(order, event, _bins(found[order], column), missing[order])
        for order in orders
        for column, event in enumerate(EVENTS, start=1)
    ]


@torch.inference_mode()
def base_agrees(
    base: PreTrainedModel,
    document: NDArray[np.int64],
    chunks: Sequence[tuple[int, tuple[int, ...]]],
) -> list[bool]:
    """Whether the base, having read document[: place + 1], would write each chunk greedily: (place, tokens).

    One pass for all chunks: they follow the document, and each of their tokens sees the document up to its
    place and the earlier tokens of its own chunk, nothing else.
    """
    if not chunks:
        return []
    ids, position, owner, rows = document.tolist(), list(range(len(document))), [-1] * len(document), []
    for number, (place, tokens) in enumerate(chunks):
        drafted = tokens[:-1]  # the last one is compared, never read
        rows += [place, *range(len(ids), len(ids) + len(drafted))]
        ids += drafted
        position += range(place + 1, place + 1 + len(drafted))
        owner += [number] * len(drafted)
    device = execution_device(base)
    logits = base(
        torch.tensor([ids], device=device),
        attention_mask=_tree_mask(position, owner, chunks, base.dtype).to(device),
        position_ids=torch.tensor([position], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(rows, device=device),
    ).logits[0]
    expected = torch.tensor([token for _, tokens in chunks for token in tokens])
    same = (logits.argmax(dim=-1).cpu() == expected).split([len(tokens) for _, tokens in chunks])
    return [bool(each.all()) for each in same]


def _tree_mask(
    position: list[int], owner: list[int], chunks: Sequence[tuple[int, tuple[int, ...]]], dtype: torch.dtype
) -> torch.Tensor:
    """Which id sees which, additive, (1, 1, ids, ids); owner: -1 (the document) or a chunk's number."""
    at, whose = torch.tensor(position), torch.tensor(owner)
    # A chunk's id sees the document up to its place, an id of the document up to itself.
    reach = torch.where(whose < 0, at, torch.tensor([*(place for place, _ in chunks), 0])[whose])
    of_document = (whose < 0) & (at <= reach[:, None])
    of_own_chunk = (whose >= 0) & (whose == whose[:, None]) & (at <= at[:, None])
    return torch.where(of_document | of_own_chunk, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]


def _bins(found: list[tuple[float, bool, bool]], column: int) -> tuple[Bin, ...]:
    confidence = np.array([row[0] for row in found])
    right = np.array([row[column] for row in found], dtype=bool)
    edges = np.linspace(0.0, 1.0, BINS + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        here = index == number
        count, hits = int(here.sum()), int(right[here].sum())
        mean = float(confidence[here].mean()) if count else 0.0
        low, high = float(edges[number]), float(edges[number + 1])
        bins.append(Bin(low, high, count, mean, hits, wilson(hits, count)))
    return tuple(bins)
