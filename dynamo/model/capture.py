"""What a pass through the base looks like inside, as transformers' models show it when they are asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from dynamo.model.architectures import architecture_of


class Capture:
    """hidden_states: the embedded tokens, then every layer's output, the last behind the final norm, (batch,
    seq, hidden) each; attentions: every layer's weights, (batch, heads, seq, seq) each, of an implementation
    of attention that has them ("eager"). None where not asked for.
    """

    def __init__(self, hidden_states: bool, attentions: bool):
        self.hidden_states: list[Tensor] | None = [] if hidden_states else None
        self.attentions: list[Tensor] | None = [] if attentions else None

    @contextmanager
    def recording(self, base: PreTrainedModel) -> Iterator[None]:
        """Fill it with what the base's layers do meanwhile in this thread."""
        architecture, thread = architecture_of(base), threading.get_ident()

        def entered(_: Any, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == thread:
                self.hidden_states.append(inputs[0])

        def attended(_: Any, __: Any, output: tuple[Tensor, Tensor | None]) -> None:
            if threading.get_ident() == thread and output[1] is not None:
                self.attentions.append(output[1])

        with ExitStack() as hooks:
            for layer in architecture.layers(base):
                if self.hidden_states is not None:
                    hooks.enter_context(_removed(layer.register_forward_pre_hook(entered)))
                if self.attentions is not None:
                    attention = architecture.attention(layer)
                    hooks.enter_context(_removed(attention.register_forward_hook(attended)))
            yield

    def outputs(self, last: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """What was asked for, by its name in a model's output; last: the first head's normed states."""
        shown: dict[str, tuple[Tensor, ...]] = {}
        if self.hidden_states is not None:
            shown["hidden_states"] = (*self.hidden_states, last)
        if self.attentions is not None:
            shown["attentions"] = tuple(self.attentions)
        return shown


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
