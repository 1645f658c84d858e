"""Whether a model's weights are still those that an engine was built from.

Packed copies of layers do not follow when weights change, and modules that were replaced are not asked again:
old and new weights would run in one pass. Every stream looks first. Most changes leave a trace in a
parameter's version, which is a counter; those through `.data` leave none, so some values are compared, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dynamo.model import architecture_of

SAMPLED_ROWS = 32  # of every weight but the embeddings, whose single rows are set by hand more often


class BuiltFrom:
    """The weights of a model as they are now. copied: whether a decoder has copies of them; one that runs
    the model's own modules sees their changes, and needs only that these stay in their places.
    """

    def __init__(self, model: PreTrainedModel, copied: bool):
        self._model = model
        self._modules = self._in_use()
        self._vocabulary = self._rows()
        self._weights = list(model.parameters()) if copied else []
        self._versions = self._counted(self._weights)
        self._values = self._sample() if copied else None

    def check(self) -> None:
        """Raises ValueError unless the model's weights are the same."""
        same = all(map(_is, self._in_use(), self._modules)) and self._rows() == self._vocabulary
        if same and self._values is not None:
            now = list(self._model.parameters())
            same = (
                len(now) == len(self._weights)
                and all(map(_is, now, self._weights))
                and self._counted(now) == self._versions
                and torch.equal(self._sample(), self._values)
            )
        if not same:
            raise ValueError(
                "model: its weights have changed since this engine was built, which has copies of the old "
                "ones; build another: Engine(model, ..)"
            )

    def _in_use(self) -> list[nn.Module]:
        model = self._model
        base = getattr(model, "backbone", model)
        architecture = architecture_of(model)
        shared = (base.get_input_embeddings(), base.get_output_embeddings(), architecture.final_norm(base))
        return [*shared, *architecture.layers(base), *getattr(model, "token_heads", ())]

    def _rows(self) -> list[int]:
        """Of the embeddings, which resizing leaves in their places."""
        return [len(each.weight) for each in self._modules[:2]]

    @staticmethod
    def _counted(weights: list[nn.Parameter]) -> list[int]:
        return [0 if weight.is_inference() else weight._version for weight in weights]

    @torch.inference_mode()
    def _sample(self) -> Tensor:
        """Values from all over every weight; of the embeddings, one at least from every row."""
        embeddings = {id(each.weight) for each in self._modules[:2]}
        parts = []
        for weight in self._weights:
            step = 1 if id(weight) in embeddings else max(1, len(weight) // SAMPLED_ROWS)
            # A little less than a row, so that columns vary and no row is passed over.
            row = max(1, weight.numel() // len(weight) - 1)
            parts.append(weight.reshape(-1)[:: row * step])
        return torch.cat(parts)


def _is(one: object, other: object) -> bool:
    return one is other
