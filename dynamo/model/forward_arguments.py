"""What transformers' own callers give to a model's `forward`, and what DynaMo's cannot do with it.

Trainer gives the number of targets in a whole batch, `generate` asks for hidden states and attentions, and
collators that lay texts end to end give their lengths. All of this is in transformers' `TransformersKwargs`.
Anything else is refused: a misspelt argument would be ignored without any sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import TransformersKwargs

from dynamo.model.loss import IGNORED_LABEL

KNOWN = frozenset(TransformersKwargs.__optional_keys__)


def check_arguments(given: dict[str, Any], labels: Tensor | None) -> None:
    """Raises ValueError for keyword arguments that no model here has a use for, or that would be misread."""
    unknown = sorted(name for name, value in given.items() if name not in KNOWN and value is not None)
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: forward has no such argument; besides its own it takes "
            f"{', '.join(sorted(KNOWN))}"
        )
    if given.get("is_causal") is False:
        raise ValueError("is_causal: expected True, as heads that see the next tokens predict nothing")
    if given.get("num_items_in_batch") is not None and labels is None:
        raise ValueError(
            "labels: num_items_in_batch came without them, as with Trainer's label_smoothing_factor and "
            "compute_loss_func, whose losses know the first head only; leave these out, or override "
            "Trainer.compute_loss"
        )


def labels_by_head(labels: Tensor, heads: int, position_ids: Tensor | None) -> list[Tensor]:
    """Labels (batch, seq) for each head, -100 where a later head would look into another text.

    Texts laid end to end in a row begin at position 0 each; position_ids (batch or 1, seq) show where. The
    first head has the labels as they are, as in transformers.
    """
    if position_ids is None:
        return [labels] * heads
    each = [labels]
    for distance in range(2, heads + 1):
        other = position_ids[:, distance:] - position_ids[:, :-distance] != distance
        own = labels.clone()
        own[:, distance:] = own[:, distance:].masked_fill(other, IGNORED_LABEL)
        each.append(own)
    return each


def divisors(labels: list[Tensor], targets: Tensor | None, num_items: Tensor | int | None) -> Tensor:
    """What each head's summed nats are divided by, (heads,): `targets` (heads,) where given, else num_items
    for all, else each head's own number of valid targets; 1 at least.
    """
    if targets is None and num_items is not None:
        targets = torch.as_tensor(num_items, device=labels[0].device).reshape(-1).expand(len(labels))
    if targets is None:
        valid = [(each[:, head:] != IGNORED_LABEL).sum() for head, each in enumerate(labels, start=1)]
        targets = torch.stack(valid)
    return targets.clamp(min=1)
