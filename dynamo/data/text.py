"""Text in, text out: the chat template, streaming decode, stop strings.

One template serves training and chat. A turn is its role's marker, the text, and the end-of-turn token;
nothing else is added, so every token of a conversation belongs to a known turn and the loss mask of
finetuning is read off spans recorded while the ids are built, not searched for in strings afterwards. Text
is encoded apart from the markers: a message that spells "<|end|>" is seven characters of text, not the end
of a turn.

This module knows tokenizers. It does not know models.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("user", "assistant")
END_OF_TURN = "<|end|>"
END_OF_TEXT = "<|endoftext|>"
MARKERS = {role: f"<|{role}|>" for role in ROLES}
SPECIAL_TOKENS = (END_OF_TEXT, *MARKERS.values(), END_OF_TURN)

# The same template for `apply_chat_template`, which other tools call. Unlike `encode_chat` it lets a message
# spell markers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Span(NamedTuple):
    """The ids of one turn's text and end-of-turn token: [start, stop), without its marker."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class EncodedChat:
    ids: list[int]
    spans: list[Span]


def encode_turns(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> EncodedChat:
    """Ids of whole turns (`role`, `content`) and the span of each.

    Raises ValueError on an unknown role or a tokenizer without the template's markers.
    """
    return encode_many(tokenizer, [turns])[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Ids of a chat message if the tokenizer has the template, else of plain text to be completed.

    Raises ValueError for an empty prompt.
    """
    if not prompt.strip():
        raise ValueError("prompt: it is empty; write at least one word")
    if has_chat_template(tokenizer):
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    return encode_plain(tokenizer, [prompt])[0]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's vocabulary: tables and models of one fingerprint belong together."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def encode_many(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]]
) -> list[EncodedChat]:
    """`encode_turns` for many conversations in one call of the tokenizer, which is much faster."""
    marker_ids, end_id = template_ids(tokenizer)
    texts = [turn["content"] for turns in conversations for turn in turns]
    encoded = iter(encode_plain(tokenizer, texts))
    chats = []
    for turns in conversations:
        ids: list[int] = []
        spans = []
        for turn in turns:
            if turn["role"] not in marker_ids:
                raise ValueError(f"role: expected one of {', '.join(ROLES)}, got {turn['role']!r}")
            ids.append(marker_ids[turn["role"]])
            start = len(ids)
            ids += [*next(encoded), end_id]
            spans.append(Span(turn["role"], start, len(ids)))
        chats.append(EncodedChat(ids, spans))
    return chats


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of a conversation to be answered: its turns, then the assistant's marker."""
    return [*encode_turns(tokenizer, messages).ids, template_ids(tokenizer)[0]["assistant"]]


def template_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], int]:
    """Ids of the role markers and of the end-of-turn token."""
    known = tokenizer.get_added_vocab()
    missing = [token for token in (*MARKERS.values(), END_OF_TURN) if token not in known]
    if missing:
        raise ValueError(
            f"tokenizer: has no chat markers ({', '.join(missing)}); "
            "add them with dynamo.data.text.add_chat_template(tokenizer), or use plain completion"
        )
    return {role: known[marker] for role, marker in MARKERS.items()}, known[END_OF_TURN]


def add_chat_template(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a raw tokenizer (such as Pythia's) markers and template; returns the number of added tokens."""
    added = tokenizer.add_special_tokens({"additional_special_tokens": [*MARKERS.values(), END_OF_TURN]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return added


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return END_OF_TURN in tokenizer.get_added_vocab()


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing counts as a marker, whatever it spells."""
    if not texts:
        return []
    return tokenizer([_valid(each) for each in texts], add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]


def _valid(content: str) -> str:
    """The text itself; lone surrogates, which have no UTF-8, become question marks."""
    return content.encode("utf-8", errors="replace").decode()


class IncrementalDecoder:
    """Token ids to pieces of text, one per id, for byte-level tokenizers.

    A character that spans several tokens belongs to the piece of its last token. Special tokens have the
    piece "". Broken bytes become replacement characters. (`tokenizers.decoders.DecodeStream` shows nothing
    while tokens begin and end within characters, and cannot flush an unfinished one.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(int(token)) for token in ids]

    def flush(self) -> str:
        """An unfinished character, as a replacement character; "" if there is none."""
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text

    def _piece(self, token: int) -> str:
        if token in self._special:
            return self.flush()
        return self._bytes.decode(token_bytes(self._tokenizer, token))


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes of one id of a byte-level tokenizer; those of an added token are its text."""
    symbols = tokenizer.convert_ids_to_tokens(token)
    if symbols is None:
        return b""  # padding of the model's vocabulary
    if all(symbol in _BYTE_OF for symbol in symbols):
        return bytes(_BYTE_OF[symbol] for symbol in symbols)
    return symbols.encode()


class TokenLabels:
    """Token ids to labels that can be read alone: a part of a character is shown as its bytes.

    Labels are cached, because a heatmap needs the same few candidates again and again.
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
        if isinstance(stop, str) or any(not text for text in stop):
            raise ValueError(f"stop: expected a list of strings of one character or more, got {stop!r}")
        self._stop = tuple(stop)
        self._decoder = IncrementalDecoder(tokenizer)
        self._tail = ""
        self._keep = max((len(text) for text in stop), default=1) - 1

    def cut(self, tokens: Sequence[int]) -> int | None:
        """How many of these tokens to keep, up to the one that completes a stop string; None if none does."""
        for count, piece in enumerate(self._decoder.push(tokens), start=1):
            text = self._tail + piece
            if any(stop in text for stop in self._stop):
                return count
            self._tail = text[-self._keep :] if self._keep else ""
        return None
