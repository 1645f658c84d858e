"""What the page needs of a loaded pair, and nothing more.

The page is built on `ModelPair`, a handful of callables; `ModelPair.from_pair` is the only place where it
touches models and tokenizers. Tests race scripted ones. Where model time is lent
(`dynamo.ui.server.lending`) the engines are made by the worker, and what makes them is all that is handed
over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from dynamo.common.validation import short_repr
from dynamo.data.text import IncrementalDecoder, TokenLabels, encode_chat, encode_plain, has_chat_template
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import SamplingOptions, warm_up
from dynamo.trace.ndjson import Header
from dynamo.trace.recorder import Decoder
from dynamo.ui.compare.chat import LANES, Chat, Message
from dynamo.ui.compare.examples import CHAT, COMPLETION, DIALOGUES
from dynamo.ui.compare.presenter import RecordedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynamo.loading import Footprint, Pair
    from dynamo.ui.server.zerogpu import GpuWorker

OWN_LOOP, GENERATE, THRESHOLD_1 = "loop", "generate", "threshold-1"
DYNAMO = "dynamo"


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
class GenerationRequest:
    """What one lane is asked for; plain values, so that it can be sent to a worker."""

    engine: str
    ids: tuple[int, ...]
    options: SamplingOptions
    max_new_tokens: int
    seed: int

    def of(self, engine: StepEngine) -> Iterator[StepRecord]:
        return engine.stream(list(self.ids), self.options, max_new_tokens=self.max_new_tokens, seed=self.seed)


# Lanes by name to their streams; what is wrong with one is raised before any begins.
Start = Callable[[Mapping[str, GenerationRequest]], Mapping[str, Iterator[StepRecord]]]


@dataclass(frozen=True)
class ModelPair:
    """Two engines that share a tokenizer, and who else may run in the base lane.

    opponents: engines for the base lane by name, the usual one first; encode: messages (`role`, `content`)
    and the most ids that they may take to input ids, the oldest turns left out where they do not fit;
    decoder: a fresh decoder for one run; label: one token id to something that can be read alone;
    end_tokens: ids that end a text; chat: whether it was finetuned to answer, else it completes text;
    general: whether it may be asked for anything, and not for the dialogues' domains alone; start:
    starts the lanes of one run where they have to start together, None: each engine's own `stream`;
    footprint: what it takes in memory, None where that is not known; bits: of its weights where they are
    quantised, else 0.
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
    chat: bool = True
    general: bool = False
    start: Start | None = None
    footprint: Footprint | None = None
    bits: int = 0

    @classmethod
    def from_pair(cls, pair: Pair, gpu_worker: GpuWorker | None = None) -> ModelPair:
        """gpu_worker: who lends model time on a ZeroGPU Space; the engines are then made and run there."""
        from dynamo.decoding.engine import end_of_text_ids
        from dynamo.loading import EMBEDDED, Footprint
        from dynamo.loading.quantised import quantised_as

        makers = engine_makers(pair)
        start = None
        if gpu_worker is None:
            engines = {name: make() for name, make in makers.items()}
        else:
            from dynamo.ui.server.lending import RemoteEngines

            # Workers begin as copies of this process: what it compiles takes nobody's quota.
            warm_up(pair.dynamo.config.num_token_heads, pair.dynamo.config.vocab_size, pair.table)
            lent = RemoteEngines(gpu_worker, pair.name, makers, lambda asked: check_asked(pair, asked))
            engines, start = lent.engines(), lent.start
        dynamo = engines.pop(DYNAMO)
        return cls(
            name=pair.name,
            description=pair.description,
            opponents=engines,
            dynamo=dynamo,
            encode=lambda messages, room: encode_messages(pair.tokenizer, messages, room),
            decoder=lambda: IncrementalDecoder(pair.tokenizer),
            label=TokenLabels(pair.tokenizer),
            end_tokens=end_of_text_ids(pair.dynamo),
            max_length=pair.dynamo.config.max_position_embeddings,
            heads=pair.dynamo.config.num_token_heads,
            chat=has_chat_template(pair.tokenizer),
            general=pair.name != EMBEDDED,
            start=start,
            footprint=Footprint.of(pair) if gpu_worker is None else None,
            bits=int(quantised_as(pair.dynamo).removesuffix("bit") or 0),
        )

    @property
    def examples(self) -> str:
        """Which prompts to offer (`dynamo.ui.compare.examples`)."""
        if not self.chat:
            return COMPLETION
        return CHAT if self.general else DIALOGUES

    def lanes(
        self,
        chat: Chat,
        prompt: str,
        options: SamplingOptions,
        max_new_tokens: int,
        seed: int,
        opponent: str = OWN_LOOP,
        only: Sequence[str] = LANES,
    ) -> dict[str, RecordedRun]:
        """The lanes of one new run, each after its own history.

        Raises what the engines raise on bad input, and ValueError on an empty prompt or unknown opponent.
        """
        if not prompt.strip():
            raise ValueError("prompt: it is empty; write at least one word")
        if not any(opponent == each for each in self.opponents):
            raise ValueError(
                f"opponent: expected one of {', '.join(self.opponents)}, got {short_repr(opponent)}"
            )
        engines = {"base": opponent, "dynamo": DYNAMO}
        settings = {**asdict(options), "max_new_tokens": max_new_tokens, "seed": seed}
        if self.bits:  # or a trace and a vote would name another model than answered
            settings["bits"] = self.bits
        # Half of the model's positions at least are the chat's.
        room = max(self.max_length // 2, self.max_length - max_new_tokens)
        asked = {}
        for kind in only:
            messages = [*chat.messages(kind), {"role": "user", "content": prompt}]
            ids = tuple(self.encode(messages, room))
            asked[kind] = GenerationRequest(engines[kind], ids, options, max_new_tokens, seed)
        streams = (self.start or self._start)(asked)
        return {
            kind: RecordedRun(
                Header(uuid4().hex, kind, self.name, prompt, settings, engine=each.engine),
                streams[kind],
                self.decoder(),
                self.end_tokens,
                before=chat.wire(kind),
                prompt_ids=each.ids,
                label=self.label,
            )
            for kind, each in asked.items()
        }

    def _start(self, asked: Mapping[str, GenerationRequest]) -> dict[str, Iterator[StepRecord]]:
        engines = {**self.opponents, DYNAMO: self.dynamo}
        return {lane: each.of(engines[each.engine]) for lane, each in asked.items()}


def engine_makers(pair: Pair) -> dict[str, Callable[[], StepEngine]]:
    """What makes each engine of a pair, once: the opponents, the usual one first, and DynaMo."""
    from dynamo.decoding.engine import Engine
    from dynamo.decoding.generate import GenerateEngine

    dynamo = cache(lambda: Engine(pair.dynamo, pair.table, pair.tokenizer))
    return {
        OWN_LOOP: cache(lambda: Engine(pair.base, tokenizer=pair.tokenizer)),
        GENERATE: cache(lambda: GenerateEngine(pair.base, pair.tokenizer)),
        THRESHOLD_1: lambda: AtThresholdOne(dynamo()),
        DYNAMO: dynamo,
    }


def check_asked(pair: Pair, asked: GenerationRequest) -> None:
    """Raises ValueError for what the pair's engines would refuse, without making one."""
    from dynamo.decoding.engine import checked_prompt

    config = pair.dynamo.config
    checked_prompt(asked.ids, config.vocab_size, config.max_position_embeddings)
    if asked.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected 1 or more, got {asked.max_new_tokens}")
    if asked.seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {asked.seed}")
    if asked.engine in (DYNAMO, THRESHOLD_1) and pair.table is not None and asked.options.mask_strength > 0:
        pair.table.check(order=min(asked.options.highest_order, config.num_token_heads))


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message], room: int) -> list[int]:
    """Ids of a chat to be answered; the oldest turns are left out while it takes more than `room` ids.

    A tokenizer without the chat template has its messages joined and completed as plain text. What is left
    out is hardly looked at: a chat may be much longer than the room.
    """
    chat = has_chat_template(tokenizer)
    turns = (len(messages) - 1) // 2  # before the message that is to be answered

    def encoded(kept: int) -> list[int]:
        last = messages[2 * (turns - kept) :]
        if chat:
            return encode_chat(tokenizer, last)
        return encode_plain(tokenizer, ["".join(message["content"] for message in last)])[0]

    fitting, ids, too_many = 0, encoded(0), turns + 1
    while too_many - fitting > 1:
        growing = too_many > turns  # twice as many as long as they fit
        tried = min(2 * fitting + 1, turns) if growing else (fitting + too_many) // 2
        longer = encoded(tried)
        if len(longer) <= room:
            fitting, ids = tried, longer
        else:
            too_many = tried
    return ids
