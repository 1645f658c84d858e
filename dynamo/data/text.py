"""Text in, text out: conversations and prompts as ids, streaming decode, stop strings.

Conversations are written with the checkpoint's own chat template (`dynamo.data.chat_template`), the same for
training and chat. A tokenizer without one, such as Pythia's, can be given the markers below: a turn is then
its role's marker, the text, and the end-of-turn token.

This module knows tokenizers. It does not know models.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dynamo.data.chat_template import ROLES, ChatTemplate, EncodedChat, valid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = "<|end|>"
END_OF_TEXT = "<|endoftext|>"
MARKERS = {role: f"<|{role}|>" for role in ("user", "assistant")}
SPECIAL_TOKENS = (END_OF_TEXT, *MARKERS.values(), END_OF_TURN)

# For tokenizers that have none.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKERS_ADDED = (
    f"the tokenizer has no chat template; it gets the markers {', '.join(MARKERS.values())} and {END_OF_TURN}"
)

# What chat models of the supported families end a turn with; not every checkpoint declares its own.
CHAT_STOPS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "</s>", "<|end|>")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Raises ValueError for a tokenizer without one."""
    # The project's own would write other roles as text.
    own = tokenizer.chat_template == CHAT_TEMPLATE
    return ChatTemplate(tokenizer, tuple(MARKERS) if own else ROLES)


def encode_turns(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> EncodedChat:
    """Ids of whole turns (`role`, `content`) and where the answers are.

    Raises ValueError for a tokenizer without a chat template and for turns that the template does not take.
    """
    return encode_many(tokenizer, [turns])[0]


def encode_many(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]]
) -> list[EncodedChat]:
    """`encode_turns` for many conversations in one call of the tokenizer, which is much faster."""
    return chat_template(tokenizer).encode(conversations)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of a conversation to be answered: its turns, then the assistant's marker."""
    return chat_template(tokenizer).encode([messages], ask=True)[0].ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Ids of a chat message if the tokenizer has a chat template, else of plain text to be completed.

    Raises ValueError for an empty prompt.
    """
    if not prompt.strip():
        raise ValueError("prompt: it is empty; write at least one word")
    if has_chat_template(tokenizer):
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    return encode_plain(tokenizer, [prompt])[0]


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.chat_template)


def add_chat_template(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a tokenizer without a chat template markers and one; returns the number of added tokens.

    Raises ValueError for a tokenizer that has one.
    """
    if has_chat_template(tokenizer):
        raise ValueError("tokenizer: it has a chat template already, which is kept")
    added = tokenizer.add_special_tokens({"additional_special_tokens": [*MARKERS.values(), END_OF_TURN]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return added


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of all special tokens, also of those that no name such as eos stands for."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, each in added.items() if each.special}


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens that end a text: eos, what ends an answer of the chat template, and the stop tokens
    of chat models."""
    names = {*CHAT_STOPS, tokenizer.eos_token}
    if has_chat_template(tokenizer):
        with suppress(ValueError):  # which is raised where a conversation is encoded
            names.add(chat_template(tokenizer).end_of_answer())
    return frozenset(i for i in special_ids(tokenizer) if tokenizer.convert_ids_to_tokens(i) in names)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's vocabulary: tables and models of one fingerprint belong together."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing counts as a marker, whatever it spells."""
    if not texts:
        return []
    return tokenizer([valid(each) for each in texts], add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """The text of ids; special tokens and half a character at the end are left out."""
    decoder = IncrementalDecoder(tokenizer)
    return "".join(decoder.push(ids)) + decoder.flush()


class TokenBytes:
    """The bytes of one id after the other, for byte-level and SentencePiece vocabularies.

    Those of an added token are its text. (The libraries read the text of added tokens as if its characters
    stood for bytes, so "naïve" comes out broken.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
        steps = {step["type"]: step for step in state.get("decoders", [state]) if step}
        self._sentence_piece = not steps.keys().isdisjoint({"Metaspace", "ByteFallback"})
        # Whether a text begins with a space that nobody wrote.
        self.spaced = self._sentence_piece and (
            "Strip" in steps or steps.get("Metaspace", {}).get("prepend_scheme", "never") != "never"
        )
        self._added = {}
        for i, each in tokenizer.added_tokens_decoder.items():
            content = each.content
            if self._sentence_piece and each.normalized and backend.normalizer is not None:
                # It is looked for in normalised text, and takes the space before it along.
                content = backend.normalizer.normalize_str(content).replace("▁", " ")
            self._added[i] = content.encode()

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        symbols = self._tokenizer.convert_ids_to_tokens(token)
        if symbols is None:
            return b""  # padding of the model's vocabulary
        if self._sentence_piece:
            if byte := _BYTE_FALLBACK.fullmatch(symbols):
                return bytes.fromhex(byte[1])
            return symbols.replace("▁", " ").encode()
        if all(symbol in _BYTE_OF for symbol in symbols):
            return bytes(_BYTE_OF[symbol] for symbol in symbols)
        return symbols.encode()


_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class IncrementalDecoder:
    """Token ids to pieces of text, one per id.

    A character that spans several tokens belongs to the piece of its last token; one that is never finished
    is not shown. Special tokens have the piece "". Broken bytes become replacement characters.
    (`tokenizers.decoders.DecodeStream` shows nothing while tokens begin and end within characters.)

    stop: strings of which the first ends the text, where it begins; what may be the beginning of one is kept
    back until it is known. The text of a special token ends it, too. Raises ValueError for a stop string that
    is empty. stopped: whether one was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        if isinstance(stop, str) or any(not text for text in stop):
            raise ValueError(f"stop: expected a list of strings of one character or more, got {stop!r}")
        self.stopped = False
        self._stop = tuple(stop)
        self._held = ""  # text that may begin a stop string
        self._bytes_of = TokenBytes(tokenizer)
        self._special = special_ids(tokenizer)
        self._at_start = self._bytes_of.spaced
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(int(token)) for token in ids]

    def flush(self) -> str:
        """What was kept back, at the end of the text."""
        self._utf8.reset()
        held, self._held = self._held, ""
        return held

    def _piece(self, token: int) -> str:
        if self.stopped:
            return ""
        data = self._bytes_of(token)
        if token in self._special:
            self._utf8.reset()
            self.stopped = data.decode(errors="replace") in self._stop
            return self.flush() if self.stopped else ""
        if self._at_start:
            data, self._at_start = data.removeprefix(b" "), False
        text = self._utf8.decode(data)
        return self._up_to_stop(text) if self._stop else text

    def _up_to_stop(self, text: str) -> str:
        text = self._held + text
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        starts = range(max(0, len(text) - max(map(len, self._stop)) + 1), len(text))
        kept = next((i for i in starts if any(each.startswith(text[i:]) for each in self._stop)), len(text))
        self._held = text[kept:]
        return text[:kept]


class TokenLabels:
    """Token ids to labels that can be read alone: a part of a character is shown as its bytes.

    Labels are cached, because a heatmap needs the same few candidates again and again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._bytes_of = TokenBytes(tokenizer)
        self._labels: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        label = self._labels.get(token)
        if label is None:
            label = self._labels[token] = self._label(self._bytes_of(token))
        return label

    def _label(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.hex(" ").upper()


def _byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


_BYTE_OF = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}


class StopStrings:
    """Finds the first of several strings in a growing text, also across chunks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]):
        self._decoder = IncrementalDecoder(tokenizer, stop)

    def cut(self, tokens: Sequence[int]) -> int | None:
        """How many of these tokens to keep, up to the one that completes a stop string; None if none does."""
        for count, token in enumerate(tokens, start=1):
            self._decoder.push([token])
            if self._decoder.stopped:
                return count
        return None
