"""What lanes remember: keys and values of every layer and head, and attention over them.

A `KVCache` is one lane's memory, a `BatchKVCache` that of several lanes in one tensor; neither is ever
shared. A step says where one pass's new positions stand and what each of them sees: `OneLane` attends over
what is filled and nothing else; so do `Lanes` in the compiled loop (`dynamo.kernels`), and in torch's
operators over the longest of their rows, where shorter ones are masked.

Slots are the model's layers and its heads' layers, in the order of their `layer_idx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo import kernels

FEW_QUERIES = 8
LOOP_NUMBERS = 2**20  # of keys: for more, several threads of torch may be faster than our one

Rotary = tuple[Tensor, Tensor]  # cosines and sines of every position, (positions, 1, 1, rotary_dim)


@dataclass(eq=False)  # a state is its memory, not what it holds
class KVCache:
    """One lane's keys and values: cache (2, slots, heads, capacity, head_dim), filled up to `length`."""

    cache: Tensor
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.cache.shape[3]

    def rewind(self, positions: int) -> None:
        """Forget the last positions, in every slot."""
        assert 0 <= positions <= self.length, f"{positions} positions of {self.length} to be forgotten"
        self.length -= positions


class BatchKVCache:
    """Several lanes in one tensor, cache (2, slots, rows, heads, capacity, head_dim), made of zeros: what a
    short row has not filled is masked, but must be numbers. `lanes[i]` is row i, and may be used alone.
    """

    def __init__(self, cache: Tensor):
        self.cache = cache
        self.lanes = [KVCache(cache[:, :, row]) for row in range(cache.shape[2])]

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """A lane leaves; the last one takes its row."""
        moved = self.lanes.pop()
        if row < len(self.lanes):
            kept = self.lanes[row]
            kept.cache[..., : moved.length, :] = moved.cache[..., : moved.length, :]
            kept.length = moved.length


class OneLane:
    """New positions of one lane, from `start` on; each sees itself and all before it, and the last `queries`
    are wanted. loop: that of `attend_packed`, None where torch attends; it reads `turns` and `memory`.
    """

    def __init__(
        self, state: KVCache, new: int, queries: int, rotary: Rotary, causal: Callable[[int, int], Tensor]
    ):
        start, stop = state.length, state.length + new
        assert new > 0 and stop <= state.capacity, f"positions {start} to {stop} of {state.capacity}"
        assert 1 <= queries <= new, f"{queries} queries, {new} new positions"
        self.cos, self.sin = (each[start:stop] for each in rotary)  # (new, 1, 1, rotary_dim)
        self.queries = queries
        self._cache = cache = state.cache
        self.start, self._stop, self._causal = start, stop, causal
        self.loop = _loop(cache, new, stop)
        if self.loop is not None:
            self.turns = [each.flatten(1).numpy() for each in (self.cos, self.sin)]
            self.memory = cache.numpy()

    @cached_property
    def _new(self) -> Tensor:
        return self._cache[:, :, :, self.start : self._stop]

    @cached_property
    def _filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (slots, heads, stop, head_dim) each."""
        return self._cache[:, :, :, : self._stop].unbind(0)

    @cached_property
    def _mask(self) -> Tensor | None:
        new = self._stop - self.start
        return None if new == 1 else self._causal(new, self._stop)  # (new, stop)

    def wanted(self, states: Tensor) -> Tensor:
        """(.., new, width) -> (.., queries, width)"""
        return states[..., -self.queries :, :]

    def attend_packed(
        self, projected: list[Tensor], heads: int, slot: int, scaling: float, whole: bool
    ) -> Sequence[Tensor]:
        """`attend` for n slots from a packed projection's rows each (`_unpacked`)."""
        if self.loop is None:
            return self.attend(*_unpacked(projected, heads, self.cos, self.sin), slot, scaling, whole)
        queries = self._stop - self.start if whole else self.queries
        keys, values = self.memory
        return [
            torch.from_numpy(
                self.loop(
                    rows.numpy(),
                    *self.turns,
                    keys[slot + i],
                    values[slot + i],
                    self.start,
                    scaling,
                    queries,
                )
            )
            for i, rows in enumerate(projected)
        ]

    def attend(self, q: Tensor, kv: Tensor, slot: int, scaling: float, whole: bool) -> Tensor:
        """Write keys and values of `n` slots from `slot` on, then attend: q (n, new, heads, head_dim),
        kv (n, new, 2, heads, head_dim) -> (n, new, hidden), or (n, queries, hidden) unless `whole`.
        """
        n = len(q)
        self._new[:, slot : slot + n] = kv.permute(2, 0, 3, 1, 4)
        mask, (keys, values) = self._mask, self._filled
        if not whole:
            q = q[:, -self.queries :]
            mask = None if self.queries == 1 or mask is None else mask[-self.queries :]
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[slot : slot + n],
            values[slot : slot + n],
            attn_mask=mask,
            scale=scaling,
        )  # (n, heads, queries, head_dim)
        return attended.transpose(1, 2).flatten(2)


def _loop(cache: Tensor, new: int, filled: int) -> Callable | None:
    """The compiled loop where it is the faster way, None elsewhere; cache (.., heads, capacity, head_dim)."""
    few = new <= FEW_QUERIES and filled * cache.shape[-3] * cache.shape[-1] <= LOOP_NUMBERS
    fits = few and cache.device.type == "cpu" and cache.dtype == torch.float32
    return getattr(kernels.loops(), "attend", None) if fits else None


def turn(qk: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary embedding of queries and keys (.., new, 2, heads, head_dim) or (.., new, heads, 2, head_dim), in
    place; cos, sin (new, 1, 1, rotary_dim).
    """
    turned = qk[..., : cos.shape[-1]]
    first, second = turned.chunk(2, dim=-1)
    turned.copy_(turned * cos + torch.cat((-second, first), dim=-1) * sin)


def _unpacked(projected: Sequence[Tensor], heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turned queries, and turned keys with values, from n packed projections' rows.

    projected: n of (new, 3 hidden): queries, keys, values, each by head -> (n, new, heads, head_dim),
    (n, new, 2, heads, head_dim).
    """
    rows = projected[0].unsqueeze(0) if len(projected) == 1 else torch.stack(projected)
    qkv = rows.unflatten(-1, (3, heads, -1))
    turn(qkv[:, :, :2], cos, sin)
    return qkv[:, :, 0], qkv[:, :, 1:]


def warm_up() -> None:
    """Have the loop of `OneLane.attend_packed` compiled, if there is one, before a pass needs it."""
    if kernels.loops() is not None:
        with kernels.tried():
            turns = torch.zeros(1, 1, 1, 2)
            lane = OneLane(KVCache(torch.zeros(2, 1, 1, 1, 2)), 1, 1, (turns, turns), lambda new, stop: turns)
            lane.attend_packed([torch.zeros(1, 6)], 1, 0, 1.0, whole=True)


class Lanes:
    """New positions of several lanes, those of a lane side by side: `counts[i]` of lane i, the last
    `queries[i]` of them wanted.
    """

    def __init__(self, state: BatchKVCache, counts: Sequence[int], queries: Sequence[int], rotary: Rotary):
        assert len(counts) == len(queries) == len(state.lanes)
        starts = [lane.length for lane in state.lanes]
        self._filled = max(start + count for start, count in zip(starts, counts, strict=True))
        assert self._filled <= state.cache.shape[4], f"{self._filled} positions of {state.cache.shape[4]}"
        self._cache, device = state.cache, state.cache.device
        self._rows, self._widest = len(counts), max(counts)
        self._lanes = list(zip(starts, counts, queries, strict=True))
        positions = [at for start, count, _ in self._lanes for at in range(start, start + count)]
        self._positions = torch.tensor(positions, device=device)
        self.cos, self.sin = (each[self._positions] for each in rotary)  # (new, 1, 1, rotary_dim)
        wanted = [
            at
            for end, asked in zip(accumulate(counts), queries, strict=True)
            for at in range(end - asked, end)
        ]
        self._wanted = torch.tensor(wanted, device=device)
        self.loop = _loop(state.cache, self._widest, self._filled)
        if self.loop is not None:
            self.turns = [each.flatten(1).numpy() for each in (self.cos, self.sin)]
            self.memory = state.cache.numpy()

    @cached_property
    def _row(self) -> Tensor:
        """Whose each new position is."""
        rows = [row for row, (_, count, _) in enumerate(self._lanes) for _ in range(count)]
        return torch.tensor(rows, device=self._cache.device)

    @cached_property
    def _place(self) -> Tensor | None:
        """Where each new position stands in a grid of rows x widest; None where the grid has no holes."""
        if len(self._positions) == self._rows * self._widest:
            return None
        counts = [count for _, count, _ in self._lanes]
        places = [row * self._widest + i for row, count in enumerate(counts) for i in range(count)]
        return torch.tensor(places, device=self._cache.device)

    @cached_property
    def _mask(self) -> Tensor:
        """What each does not see, (rows, 1, widest, filled) of 0 and -inf."""
        cache = self._cache
        starts = torch.tensor([start for start, *_ in self._lanes], device=cache.device)
        places = starts[:, None] + torch.arange(self._widest, device=cache.device)
        seen = torch.arange(self._filled, device=cache.device) <= places[..., None]
        unseen = torch.zeros(seen.shape, dtype=cache.dtype, device=cache.device)
        return unseen.masked_fill_(~seen, float("-inf")).unsqueeze(1)

    def wanted(self, states: Tensor) -> Tensor:
        """(.., new, width) -> (.., all queries, width)"""
        return states[..., self._wanted, :]

    def attend_packed(
        self, projected: list[Tensor], heads: int, slot: int, scaling: float, whole: bool
    ) -> Sequence[Tensor]:
        """As `OneLane.attend_packed`, lane by lane."""
        if self.loop is None:
            return self.attend(*_unpacked(projected, heads, self.cos, self.sin), slot, scaling, whole)
        attended = []
        for at, rows in enumerate((each.numpy() for each in projected), start=slot):
            keys, values = self.memory[:, at]  # (rows, heads, capacity, head_dim)
            parts, end = [], 0
            for lane, (start, count, queries) in enumerate(self._lanes):
                here = slice(end, end + count)
                end += count
                cos, sin = (each[here] for each in self.turns)
                asked = count if whole else queries
                parts.append(self.loop(rows[here], cos, sin, keys[lane], values[lane], start, scaling, asked))
            attended.append(torch.from_numpy(np.concatenate(parts)))
        return attended

    def attend(self, q: Tensor, kv: Tensor, slot: int, scaling: float, whole: bool) -> Tensor:
        """As `OneLane.attend`."""
        n, rows, widest = len(q), self._rows, self._widest
        slots = self._cache[:, slot : slot + n]
        slots[:, :, self._row, :, self._positions] = kv.permute(1, 2, 0, 3, 4)
        if self._place is not None:
            grid = q.new_zeros(n, rows * widest, *q.shape[2:])
            grid[:, self._place] = q
            q = grid
        q = q.view(n, rows, widest, *q.shape[2:]).transpose(2, 3)
        keys, values = slots[:, :, :rows, :, : self._filled].unbind(0)  # (n, rows, heads, filled, head_dim)
        attended = torch.stack(
            [
                F.scaled_dot_product_attention(q[i], keys[i], values[i], attn_mask=self._mask, scale=scaling)
                for i in range(n)
            ]
        )  # (n, rows, heads, widest, head_dim)
        attended = attended.transpose(2, 3).reshape(n, rows * widest, -1)
        if self._place is not None:
            attended = attended[:, self._place]
        return attended if whole else self.wanted(attended)
