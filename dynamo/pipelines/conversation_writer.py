"""Many conversations side by side: a chat model says the user's turns and its own answers.

After the template's user marker a chat model writes a question, after the assistant's marker it answers it.
Each conversation has a row of a key/value cache made in advance; a row whose conversation ends begins the
next one, on top of the template's first part, which is read only once. Every conversation has its own random
stream, known by its number.

The model is any causal LM of transformers; its layers and its template are its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache

from dynamo.common.options import check_types, option
from dynamo.data.text import chat_template, encode_plain
from dynamo.decoding.engine import end_of_text_ids
from dynamo.kernels import loops

MOST_EXCHANGES = 3
ROLES = ("user", "assistant") * MOST_EXCHANGES
LOOP_WINDOW = 128  # tokens of a turn that are looked at for a loop, every half of it
NUCLEUS = 2048  # tokens that top-p looks at; what lies below never made up 5 % of a chat model's mass


@dataclass(frozen=True)
class ConverseOptions:
    """How conversations are sampled, and which are kept."""

    rows: int = option(128, "conversations written at once")
    temperature: float = option(0.7, "of the answers")
    top_k: int = option(50, "tokens an answer is sampled from")
    user_temperature: float = option(1.0, "of the user's turns")
    user_top_p: float = option(0.95, "probability mass a user's turn is sampled from")
    more_turns: float = option(0.33, "share of conversations with a second or third turn")
    longest_turn: int = option(256, "most tokens of a user's turn")
    longest_answer: int = option(640, "most tokens of an answer")
    longest: int = option(1152, "most tokens of a conversation, template included")
    shortest_answer: int = option(8, "fewest tokens of an answer that is kept")
    seed: int = option(0, "same seed, same conversations, up to rounding")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("rows", "top_k", "longest_turn", "longest_answer", "shortest_answer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("temperature", "user_temperature"):
            if not 0 < getattr(self, name) <= 10:
                raise ValueError(f"{name}: expected more than 0, up to 10, got {getattr(self, name)}")
        for name, least in (("user_top_p", 0.01), ("more_turns", 0.0)):
            if not least <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected {least} to 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")


@dataclass
class Conversation:
    """One row's conversation: what was said, what the template still makes it say, who is speaking."""

    number: int
    draws: np.random.Generator
    exchanges: int  # how many it is to have
    forced: list[int]  # ids to be fed before anything is sampled
    turns: list[tuple[str, list[int]]] = field(default_factory=lambda: [("user", [])])
    length: int = 0  # tokens in the cache

    @property
    def speaker(self) -> str:
        return self.turns[-1][0]


def stored_dtype(states: torch.Tensor) -> torch.dtype:
    """Of the cache, for states of this kind: a kind that the compiled loop reads, where there is one."""
    found = loops() if states.device.type == "cpu" and states.dtype == torch.bfloat16 else None
    return torch.float16 if found is not None and found.widens_halves() else states.dtype


class RowsCache(Cache):
    """Keys and values of rows of different lengths, (rows, kv_heads, capacity, head_dim) a layer, of
    `stored_dtype`; new: those of a layer's new positions, (rows, kv_heads, 1, head_dim) each, which attention
    puts there."""

    def __init__(self, prefix: DynamicCache, rows: int, capacity: int):
        super().__init__(layers=[])
        device = prefix.layers[0].keys.device
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.new: tuple[torch.Tensor, ...] = ()
        self._stored = []
        for layer in prefix.layers:
            pair = []
            for states in (layer.keys, layer.values):  # (1, kv_heads, prefix, head_dim)
                size = rows, states.shape[1], capacity, states.shape[3]
                stored = states.new_zeros(size, dtype=stored_dtype(states))
                stored[:, :, : states.shape[2]] = states
                pair.append(stored)
            self._stored.append(tuple(pair))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that is kept of the layer; one new position a row, (rows, kv_heads, 1, head_dim)."""
        stored = self._stored[layer_idx]
        self.new = tuple(each.to(stored[0].dtype) for each in (key_states, value_states))
        return stored

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.lengths.max())


def rows_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor, scaling: float, rows_cache: RowsCache, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of one new position a row, each over its own length and itself: query (rows, heads, 1, dim),
    key and value (rows, kv_heads, capacity, dim), which get the new ones -> (rows, 1, heads, dim).

    Where no loop is compiled, the query heads of a group stand where positions would, so that keys and values
    are not repeated."""
    rows, heads, _one, dim = query.shape
    if query.device.type == "cpu" and key.dtype != torch.bfloat16 and loops() is not None:
        from dynamo.kernels.rows import attend_rows

        mixed = torch.empty(rows, heads, dim)
        stored = (
            (each.view(torch.uint16) if each.dtype == torch.float16 else each).numpy()
            for each in (key, value, *rows_cache.new)
        )
        asked = query[:, :, 0].float().numpy()
        attend_rows(asked, *stored, rows_cache.lengths.numpy(), np.float32(scaling), mixed.numpy())
        return mixed[:, None].to(query.dtype), None
    every = torch.arange(rows, device=key.device)
    for each, new in zip((key, value), rows_cache.new, strict=True):
        each[every, :, rows_cache.lengths] = new[:, :, 0]
    kv_heads, longest = key.shape[1], attention_mask.shape[-1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    mask = attention_mask.expand(rows, kv_heads, heads // kv_heads, longest)
    key, value = key[:, :, :longest], value[:, :, :longest]
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, 1, heads, dim), None


AttentionInterface.register("dynamo_rows", rows_attention)


def leads(tokenizer: Any) -> list[list[int]]:
    """What the chat template writes before the first turn of a conversation, the second, .. as ids.

    Raises ValueError for a tokenizer whose template does not hold such conversations.
    """
    try:
        template = chat_template(tokenizer)
        return [
            template.lead(ROLES[:said], ask=True) if role == "assistant" else template.lead(ROLES[: said + 1])
            for said, role in enumerate(ROLES)
        ]
    except ValueError as error:
        raise ValueError(f"model: converse needs a chat model ({error})") from None


class ConversationWriter:
    """Writes conversations side by side; `finished` yields each as it ends, with what ended it."""

    def __init__(
        self, model: Any, tokenizer: Any, options: ConverseOptions, questions: Sequence[str] | None = None
    ):
        self._model, self._options = model, options
        self._leads = leads(tokenizer)
        # What follows a turn begins with the token that ends it, if there is one.
        self._ends = end_of_text_ids(model, tokenizer) | {self._leads[1][0], self._leads[2][0]}
        self._questions = None if questions is None else encode_plain(tokenizer, list(questions))
        least = len(self._leads[0]) + options.longest_turn + options.longest_answer
        most = model.config.max_position_embeddings
        if not least < options.longest <= most:
            raise ValueError(
                f"longest: expected more than {least} (template, longest_turn and longest_answer) up to "
                f"{most} (the model's positions), got {options.longest}"
            )

    def finished(self, numbers: Iterable[int]) -> Iterator[tuple[Conversation, str]]:
        """Each conversation of `numbers` as it ends: "ended", "cut" where a length was reached, or "looped"
        where a turn came to say the same again and again."""
        numbers = iter(numbers)
        rows = [self._start(number) for number in itertools.islice(numbers, self._options.rows)]
        if not rows:
            return
        cache, first = self._prepare(len(rows))
        feed = [self._next(row, first) for row in rows]
        active = list(range(len(rows)))
        while active:
            logits = self._pass(cache, feed)
            picked = self._sample(logits, rows)
            for index in list(active):
                row = rows[index]
                row.length += 1
                ended = None
                if row.forced:
                    feed[index] = row.forced.pop(0)
                else:
                    feed[index], ended = self._say(row, picked[index])
                if ended:
                    yield row, ended
                    number = next(numbers, None)
                    if number is None:
                        active.remove(index)
                        row.length = 0
                        continue
                    rows[index] = row = self._start(number)
                    feed[index] = self._next(row, first)
                cache.lengths[index] = rows[index].length

    def _start(self, number: int) -> Conversation:
        draws = np.random.default_rng([self._options.seed, number])
        exchanges = 1
        if self._questions is None and draws.random() < self._options.more_turns:
            exchanges = int(draws.integers(2, MOST_EXCHANGES + 1))
        row = Conversation(number, draws, exchanges, [], length=len(self._leads[0]))
        if self._questions is not None:
            ids = self._questions[number]
            row.turns = [("user", ids), ("assistant", [])]
            row.forced = [*ids, *self._leads[1]]
        return row

    def _prepare(self, rows: int) -> tuple[RowsCache, torch.Tensor]:
        """The rows' cache with the template's first part in it, and the logits after that, (vocab,)."""
        ids = torch.tensor([self._leads[0]], device=self._model.device)
        prefix = DynamicCache()
        self._model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            first = self._model(input_ids=ids, past_key_values=prefix, use_cache=True).logits[0, -1].float()
        self._model.set_attn_implementation("dynamo_rows")
        cache = RowsCache(prefix, rows, self._options.longest)
        cache.lengths[:] = len(self._leads[0])
        return cache, first

    def _next(self, row: Conversation, first: torch.Tensor) -> int:
        """The first token that a conversation feeds."""
        if row.forced:
            return row.forced.pop(0)
        token = self._sample(first[None], [row])[0]
        row.turns[-1][1].append(token)
        return token

    @torch.inference_mode()
    def _pass(self, cache: RowsCache, feed: list[int]) -> torch.Tensor:
        """Logits after one more token in every row, (rows, vocab)."""
        positions = cache.lengths[:, None]  # (rows, 1)
        places = torch.arange(cache.get_seq_length() + 1, device=positions.device)
        mask = torch.zeros(len(positions), len(places), dtype=self._model.dtype, device=positions.device)
        mask.masked_fill_(places > positions, float("-inf"))
        return self._model(
            input_ids=torch.tensor(feed, device=positions.device)[:, None],
            position_ids=positions,
            attention_mask=mask[:, None, None],
            past_key_values=cache,
            use_cache=True,
            rows_cache=cache,
        ).logits[:, -1].float()  # fmt: skip

    def _sample(self, logits: torch.Tensor, rows: Sequence[Conversation]) -> list[int]:
        """A token for every row that is not made to say one, as its speaker is sampled; 0 for others."""
        picked = [0] * len(rows)
        speaking = [index for index, row in enumerate(rows) if not row.forced]
        for user in (False, True):
            chosen = [index for index in speaking if (rows[index].speaker == "user") == user]
            if chosen:
                draws = [rows[index].draws.random() for index in chosen]
                uniforms = torch.tensor(draws, dtype=torch.float64, device=logits.device)
                tokens = self._draw(logits[chosen], uniforms, user)
                for index, token in zip(chosen, tokens.tolist(), strict=True):
                    picked[index] = token
        return picked

    def _draw(self, logits: torch.Tensor, uniforms: torch.Tensor, user: bool) -> torch.Tensor:
        """Inverse CDF over top-k (answers) or top-p (the user), (rows, vocab) and (rows,) -> (rows,)."""
        options = self._options
        logits = logits / (options.user_temperature if user else options.temperature)
        values, tokens = logits.topk(min(NUCLEUS if user else options.top_k, logits.shape[-1]))
        if user:
            mass = (values - logits.logsumexp(-1, keepdim=True)).exp()
            mass = mass * (mass.cumsum(-1) - mass < options.user_top_p)
        else:
            mass = values.softmax(-1)
        cumulative = mass.cumsum(-1).double()
        place = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None])
        return tokens.gather(1, place.clamp(max=tokens.shape[1] - 1))[:, 0]

    def _say(self, row: Conversation, token: int) -> tuple[int, str | None]:
        """Take a sampled token in: the token to feed, and what ended the conversation, if something did."""
        options, speaker = self._options, row.speaker
        said = row.turns[-1][1]
        if token in self._ends:
            if speaker == "assistant" and len(row.turns) >= 2 * row.exchanges:
                return token, "ended"
            part = self._leads[len(row.turns)]
            row.turns.append(("assistant" if speaker == "user" else "user", []))
            row.forced = list(part)
            if row.length + len(part) + options.longest_turn >= options.longest:
                row.turns.pop()
                return token, "ended" if speaker == "assistant" else "cut"
            return row.forced.pop(0), None
        said.append(token)
        most = options.longest_turn if speaker == "user" else options.longest_answer
        if len(said) >= most or row.length + 1 >= options.longest:
            return token, "cut"
        if len(said) % (LOOP_WINDOW // 2) == 0 and is_loop(said[-LOOP_WINDOW:]):
            return token, "looped"
        return token, None


def is_loop(ids: Sequence[int]) -> bool:
    """Whether fewer than half of a text's runs of four tokens are distinct; short texts are none."""
    runs = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return len(runs) >= 24 and len(set(runs)) < len(runs) / 2
