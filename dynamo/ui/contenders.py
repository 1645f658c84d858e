"""What the page needs of a loaded pair, and nothing more.

The page is built on `Contenders`, a handful of callables; `Contenders.from_pair` is the only place where it
touches models and tokenizers. Tests race scripted ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from dynamo.ndjson import Header
from dynamo.recorder import Decoder
from dynamo.sampler import SamplingOptions
from dynamo.text import IncrementalDecoder, TokenLabels, encode_chat, encode_plain, has_chat_template
from dynamo.trace import StepRecord
from dynamo.ui.chat import LANES, Chat, Message
from dynamo.ui.presenter import Lane

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynamo.loading import Pair

OWN_LOOP, GENERATE, THRESHOLD_1 = "loop", "generate", "threshold-1"


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
class AtThresholdOne:
    """DynaMo held to one token a pass: same weights, same loop, all heads computed."""

    engine: StepEngine

    def stream(
        self, input_ids: Any, options: SamplingOptions, *arguments: Any, **keywords: Any
    ) -> Iterator[StepRecord]:
        return self.engine.stream(input_ids, replace(options, threshold=1.0), *arguments, **keywords)


@dataclass(frozen=True)
class Contenders:
    """Two engines that share a tokenizer, and who else may run in the base lane.

    opponents: engines for the base lane by name, the usual one first; encode: messages (`role`, `content`)
    and the most ids that they may take to input ids, the oldest turns left out where they do not fit;
    decoder: a fresh decoder for one run; label: one token id to something that can be read alone;
    end_tokens: ids that end a text.
    """

    name: str
    description: str
    opponents: Mapping[str, StepEngine]
    dynamo: StepEngine
    encode: Callable[[list[Message], int], list[int]]
    decoder: Callable[[], Decoder]
    label: Callable[[int], str]
    end_tokens: frozenset[int]
    max_length: int = 1024
    heads: int = 3

    @classmethod
    def from_pair(cls, pair: Pair) -> Contenders:
        from dynamo.engine import Engine
        from dynamo.stock import GenerateEngine

        dynamo = Engine(pair.dynamo, pair.table, pair.tokenizer)
        return cls(
            name=pair.name,
            description=pair.description,
            opponents={
                OWN_LOOP: Engine(pair.base, tokenizer=pair.tokenizer),
                GENERATE: GenerateEngine(pair.base, pair.tokenizer),
                THRESHOLD_1: AtThresholdOne(dynamo),
            },
            dynamo=dynamo,
            encode=lambda messages, room: encode_messages(pair.tokenizer, messages, room),
            decoder=lambda: IncrementalDecoder(pair.tokenizer),
            label=TokenLabels(pair.tokenizer),
            end_tokens=frozenset(dynamo.end_ids),
            max_length=dynamo.max_length,
            heads=dynamo.heads,
        )

    def lanes(
        self,
        chat: Chat,
        prompt: str,
        options: SamplingOptions,
        max_new_tokens: int,
        seed: int,
        opponent: str = OWN_LOOP,
        only: Sequence[str] = LANES,
    ) -> dict[str, Lane]:
        """The lanes of one new run, each after its own history.

        Raises what the engines raise on bad input, and ValueError on an empty prompt or unknown opponent.
        """
        if not prompt.strip():
            raise ValueError("prompt: it is empty; write at least one word")
        if opponent not in self.opponents:
            raise ValueError(f"opponent: expected one of {', '.join(self.opponents)}, got {opponent!r}")
        engines = {"base": (opponent, self.opponents[opponent]), "dynamo": ("dynamo", self.dynamo)}
        settings = {**asdict(options), "max_new_tokens": max_new_tokens, "seed": seed}
        # Half of the model's positions at least are the chat's.
        room = max(self.max_length // 2, self.max_length - max_new_tokens)
        lanes = {}
        for kind in only:
            name, engine = engines[kind]
            messages = [*chat.messages(kind), {"role": "user", "content": prompt}]
            ids = self.encode(messages, room)
            lanes[kind] = Lane(
                Header(uuid4().hex, kind, self.name, prompt, settings, engine=name),
                engine.stream(ids, options, max_new_tokens=max_new_tokens, seed=seed),
                self.decoder(),
                self.end_tokens,
                before=chat.wire(kind),
                prompt_ids=tuple(ids),
                label=self.label,
            )
        return lanes


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message], room: int) -> list[int]:
    """Ids of a chat to be answered; the oldest turns are left out while it takes more than `room` ids.

    A tokenizer without the chat template has its messages joined and completed as plain text.
    """
    while True:
        if has_chat_template(tokenizer):
            ids = encode_chat(tokenizer, messages)
        else:
            ids = encode_plain(tokenizer, ["".join(message["content"] for message in messages)])[0]
        if len(ids) <= room or len(messages) < 3:
            return ids
        messages = messages[2:]
