"""Tied embeddings under peft's adapters.

An adapter is trained beside frozen weights, so a copy of these is exact. Merged into weights that the input
and the output embedding share, the adapter of one would change the other too, with no trace of it afterwards.
So the two are untied as soon as an adapter stands around one of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class UntiedByAdapters:
    """A transformers model on which peft, once its layers are in place, sets `peft_config`."""

    @property
    def peft_config(self) -> Any:
        try:
            return self.__dict__["_peft_config"]
        except KeyError:
            raise AttributeError("peft_config") from None

    @peft_config.setter
    def peft_config(self, value: Any) -> None:
        self.__dict__["_peft_config"] = value
        around = self.get_input_embeddings(), self.get_output_embeddings()
        embedding, output = (getattr(each, "base_layer", each) for each in around)
        if (embedding, output) != around and output.weight is embedding.weight:
            copied = output.weight.detach().clone()
            output.weight = nn.Parameter(copied, requires_grad=output.weight.requires_grad)
            self.config.tie_word_embeddings = False

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["_peft_config"]
