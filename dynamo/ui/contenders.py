"""What the page needs of a loaded pair, and nothing more.

The page is built on `Contenders`, a handful of callables; `Contenders.from_pair` is the only place where it
touches models and tokenizers. Tests race scripted ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from dynamo.ndjson import Header
from dynamo.sampler import SamplingOptions
from dynamo.text import IncrementalDecoder, encode_prompt, token_bytes
from dynamo.trace import StepRecord
from dynamo.ui.presenter import Decoder, Lane

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynamo.loading import Pair


class StepEngine(Protocol):
    """One model that streams its forward passes (`dynamo.Engine`)."""

    def stream(
        self,
        input_ids: Any,
        options: SamplingOptions,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[StepRecord]: ...


@dataclass(frozen=True)
class Contenders:
    """Two engines that share a tokenizer.

    encode: a user's message to the input ids that both engines take; decoder: a fresh decoder for one run;
    label: one token id to something that can be read alone; end_tokens: ids that end a text.
    """

    name: str
    description: str
    base: StepEngine
    dynamo: StepEngine
    encode: Callable[[str], Any]
    decoder: Callable[[], Decoder]
    label: Callable[[int], str]
    end_tokens: frozenset[int]

    @classmethod
    def from_pair(cls, pair: Pair) -> Contenders:
        import torch

        from dynamo.engine import Engine

        def encode(prompt: str) -> torch.Tensor:
            return torch.tensor([encode_prompt(pair.tokenizer, prompt)])

        dynamo = Engine(pair.dynamo, pair.table, pair.tokenizer)
        return cls(
            name=pair.name,
            description=pair.description,
            base=Engine(pair.base, tokenizer=pair.tokenizer),
            dynamo=dynamo,
            encode=encode,
            decoder=lambda: IncrementalDecoder(pair.tokenizer),
            label=TokenLabels(pair.tokenizer),
            end_tokens=frozenset(dynamo.end_ids),
        )

    def lanes(
        self, prompt: str, options: SamplingOptions, max_new_tokens: int, seed: int
    ) -> tuple[Lane, Lane]:
        """The base lane and the DynaMo lane of one new run. Raises what the engines raise on bad input."""
        run = uuid4().hex
        input_ids = self.encode(prompt)
        settings = {**asdict(options), "max_new_tokens": max_new_tokens, "seed": seed}

        def lane(kind: str, engine: StepEngine) -> Lane:
            return Lane(
                Header(run, kind, self.name, prompt, settings),
                engine.stream(input_ids, options, max_new_tokens=max_new_tokens, seed=seed),
                self.decoder(),
                self.end_tokens,
            )

        return lane("base", self.base), lane("dynamo", self.dynamo)


class TokenLabels:
    """Token ids to labels that stand alone: a token that is only a part of a character shows its bytes.

    Labels are kept, because a heatmap asks for the same few candidates again and again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._labels: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        label = self._labels.get(token)
        if label is None:
            label = self._labels[token] = self._label(token)
        return label

    def _label(self, token: int) -> str:
        text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" not in text:
            return text
        return token_bytes(self._tokenizer, token).hex(" ").upper() or text
