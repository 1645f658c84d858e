"""A loaded pair as the page uses it, and nothing more of it.

The page is built on `ModelPair`, a handful of values and callables; `ModelPair.from_pair` is the only place
where it touches models and tokenizers. Tests race scripted pairs. The page and the evaluation never import
each other: `app.py` hands over what measures a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from dynamo.common.validation import message, short_repr
from dynamo.data.text import IncrementalDecoder, TokenLabels, encode_chat, encode_plain, has_chat_template
from dynamo.loading.about import About
from dynamo.model.architectures import max_positions, model_shape
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import warm_up
from dynamo.trace.ndjson import Header
from dynamo.trace.recorder import Decoder
from dynamo.ui.compare.chat import LANES, Chat, Message
from dynamo.ui.compare.examples import CHAT, COMPLETION, DIALOGUES
from dynamo.ui.compare.presenter import RecordedRun
from dynamo.ui.compare.settings import Settings
from dynamo.ui.server.engines import (
    DYNAMO,
    Engines,
    GenerationRequest,
    LocalEngines,
    RemoteEngines,
    StepEngine,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynamo.loading import Footprint, Pair
    from dynamo.ui.server.zerogpu import GpuWorker

OWN_LOOP, GENERATE, THRESHOLD_1 = "loop", "generate", "threshold-1"


@dataclass(frozen=True)
class AtThresholdOne:
    """DynaMo held to one token a pass: same weights, same loop, all heads computed."""

    engine: StepEngine

    def stream(
        self, input_ids: Any, options: SamplingOptions, *arguments: Any, **keywords: Any
    ) -> Iterator[StepRecord]:
        return self.engine.stream(input_ids, replace(options, threshold=1.0), *arguments, **keywords)


class Opinion(Protocol):
    """What the base model thinks of one reply, token by token (`dynamo.evaluation.audit.Audit`)."""

    log_probabilities: tuple[float, ...]
    ranks: tuple[int, ...]
    nats_per_token: float
    unlikely_share: float
    repetition: float


@dataclass(frozen=True)
class ModelPair:
    """Engines that share a tokenizer, and what can be measured of them; what is None is not offered.

    engines: DynaMo, and what may run in the base lane; encode: messages (`role`, `content`) and the most ids
    that they may take to input ids, the oldest turns left out where they do not fit; decoder: a fresh decoder
    for one run, whose text ends where a given stop string begins; label: one token id to text that can be
    read alone; end_tokens: ids that end a text; chat: whether it was finetuned to answer, else it completes
    text; general: whether it may be asked anything, or only about the dialogues' domains; footprint: its
    memory; bits: of its weights where they are quantised, else 0; weights: which copies of them the engines
    run on (`dynamo.Engine`); options: what the sampler's controls begin with, and what those of them keep
    that have no control; about: in a few words; parameters: of the base, and of what was added for DynaMo.

    settle: chooses anew how many threads decode, by a few timed passes; audit: prompt ids and reply ids to
    the base's opinion; profile: where a pass's time goes; report: a finished sweep; sweep: runs one over so
    many prompts, calling back with (done, total) after every reply, and yields the report so far. Reports and
    profiles are JSON-able.
    """

    name: str
    description: str
    engines: Engines
    encode: Callable[[list[Message], int], list[int]]
    decoder: Callable[[Sequence[str]], Decoder]
    label: Callable[[int], str]
    end_tokens: frozenset[int]
    max_length: int = 1024
    heads: int = 3
    chat: bool = True
    general: bool = False
    footprint: Footprint | None = None
    bits: int = 0
    weights: str = "own"
    options: SamplingOptions = field(default_factory=SamplingOptions)
    about: About = field(default_factory=About)
    parameters: tuple[int, int] = (0, 0)
    settle: Callable[[], object] | None = None
    audit: Callable[[Sequence[int], Sequence[int]], Opinion] | None = None
    profile: Callable[[], dict[str, Any]] | None = None
    report: dict[str, Any] | None = None
    sweep: Callable[[int, Callable[[int, int], None]], Iterator[dict[str, Any]]] | None = None

    @classmethod
    def from_pair(cls, pair: Pair, gpu_worker: GpuWorker | None = None) -> ModelPair:
        """gpu_worker: of a ZeroGPU Space; the engines are then built and run there."""
        from dynamo.decoding.engine import checked_prompt, end_of_text_ids
        from dynamo.loading import EMBEDDED

        config = pair.dynamo.config
        makers = engine_makers(pair)
        if gpu_worker is None:
            makers[DYNAMO]()  # first, as the base then finds all its copies of shared weights
            engines: Engines = LocalEngines({name: make() for name, make in makers.items()})
        else:
            # Workers begin as copies of this process, so what it compiles takes nobody's quota.
            warm_up(config.num_token_heads, config.vocab_size, pair.table)
            engines = RemoteEngines(
                gpu_worker,
                pair.name,
                makers,
                lambda ids: checked_prompt(ids, config.vocab_size, max_positions(config)),
            )
        return cls(
            name=pair.name,
            description=pair.description,
            engines=engines,
            encode=lambda messages, room: encode_messages(pair.tokenizer, messages, room),
            decoder=lambda stop: IncrementalDecoder(pair.tokenizer, stop),
            label=TokenLabels(pair.tokenizer),
            end_tokens=end_of_text_ids(pair.dynamo, pair.tokenizer),
            max_length=max_positions(config),
            heads=config.num_token_heads,
            chat=has_chat_template(pair.tokenizer),
            general=pair.name != EMBEDDED,
            footprint=_footprint(pair) if gpu_worker is None else None,
            bits=_bits(pair),
            weights=pair.weights,
            options=pair.options,
            about=pair.about,
            parameters=_parameters(pair),
        )

    @property
    def examples(self) -> str:
        """Which prompts to offer (`dynamo.ui.compare.examples`)."""
        if not self.chat:
            return COMPLETION
        return CHAT if self.general else DIALOGUES

    @property
    def notice(self) -> str:
        """What the page says on top of a pair that completes text."""
        if self.chat:
            return ""
        return f"{self.name} was not finetuned to chat: it completes your text instead of answering it."

    def lanes(
        self,
        chat: Chat,
        prompt: str,
        settings: Settings,
        opponent: str = OWN_LOOP,
        only: Sequence[str] = LANES,
    ) -> dict[str, RecordedRun]:
        """The lanes of one new run, each after its own history.

        Raises what the engines raise on bad input, and ValueError on an empty prompt or unknown opponent.
        """
        prompt = message("prompt", prompt).strip()
        if not prompt:
            raise ValueError("prompt: it is empty; write at least one word")
        if opponent not in self.engines.opponents:
            raise ValueError(
                f"opponent: expected one of {', '.join(self.engines.opponents)}, got {short_repr(opponent)}"
            )
        engines = {"base": opponent, "dynamo": DYNAMO}
        length, seed = settings.max_new_tokens, settings.seed
        recorded = {**asdict(settings.options), "max_new_tokens": length, "seed": seed}
        if self.bits:  # or a trace and a vote would name another model than answered
            recorded["bits"] = self.bits
        # Half of the model's positions at least are the chat's.
        room = max(self.max_length // 2, self.max_length - length)
        requests = {}
        for kind in only:
            messages = [*chat.messages(kind), {"role": "user", "content": prompt}]
            ids = tuple(self.encode(messages, room))
            requests[kind] = GenerationRequest(
                engines[kind], ids, settings.options, length, seed, settings.stop
            )
        streams = self.engines.start(requests)
        is_local = isinstance(self.engines, LocalEngines)
        return {
            kind: RecordedRun(
                Header(uuid4().hex, kind, self.name, prompt, recorded, engine=request.engine),
                streams[kind],
                self.decoder(settings.stop),
                self.end_tokens,
                before=chat.wire(kind),
                prompt_ids=request.ids,
                label=self.label,
                again=partial(self._stream, kind, request) if is_local else None,
            )
            for kind, request in requests.items()
        }

    def _stream(self, kind: str, request: GenerationRequest) -> Iterator[StepRecord]:
        return self.engines.start({kind: request})[kind]


def _parameters(pair: Pair) -> tuple[int, int]:
    base = pair.base.num_parameters()
    return base, pair.dynamo.num_parameters() - base


def _bits(pair: Pair) -> int:
    from dynamo.loading.quantised import quantised_as

    name = quantised_as(pair.dynamo) or pair.weights  # "8bit", "int4", "own"
    return int("".join(filter(str.isdigit, name)) or 0)


def _footprint(pair: Pair) -> Footprint:
    """With the copies that the engines run on."""
    from dynamo.decoding.few_bits import BYTES
    from dynamo.loading import Footprint

    footprint = Footprint.from_pair(pair)
    if pair.weights not in BYTES:
        return footprint
    shapes = [model_shape(model) for model in (pair.base, pair.dynamo)][pair.is_shared :]
    copies = sum(shape.few_bits_bytes(BYTES[pair.weights]) for shape in shapes)
    full = footprint.weights + footprint.copies
    return replace(footprint, quantised=pair.weights, copies=copies, full=full)


def engine_makers(pair: Pair) -> dict[str, Callable[[], StepEngine]]:
    """Builders of a pair's engines, each built once: the opponents, the usual one first, and DynaMo."""
    from dynamo.decoding.engine import Engine
    from dynamo.decoding.generate import GenerateEngine

    dynamo = cache(lambda: Engine(pair.dynamo, pair.table, pair.tokenizer, pair.weights))
    return {
        OWN_LOOP: cache(lambda: Engine(pair.base, None, pair.tokenizer, pair.weights)),
        GENERATE: cache(lambda: GenerateEngine(pair.base, pair.tokenizer)),
        THRESHOLD_1: lambda: AtThresholdOne(dynamo()),
        DYNAMO: dynamo,
    }


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
