"""Attention of one pass's new positions over what the cache holds, for one text or for a batch.

An `AttentionStep` knows where the new positions stand and what each of them sees: itself and all before it
in its own text. One text attends over what is filled and nothing else; so does each row of a batch in the
compiled loop (`dynamo.kernels`), and in torch's operators over the longest of the rows, where shorter ones
are masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo import kernels
from dynamo.decoding.cache import BatchKVCache, KVCache
from dynamo.model.rotary import apply_rotary

FEW_QUERIES = 8
LOOP_NUMBERS = 2**20  # of keys: for more, several threads of torch may be faster than the loop's one
USUAL_CHUNK = 8  # chunks of up to so many tokens find their mask made
ALIGNED = 8  # numbers: CUDA's attention reads masks by 16 bytes, and fails where a row begins in between

Rotary = tuple[Tensor, Tensor]  # cosines and sines of every position, (positions, 1, 1, rotary_dim)


class CausalMasks:
    """Masks for one text, made once for each usual number of new positions and cut to length."""

    def __init__(self, max_length: int, dtype: torch.dtype, device: torch.device):
        self._max_length, self._dtype, self._device = max_length, dtype, device
        self._ends: dict[tuple[int, int], Tensor] = {}

    def __call__(self, new: int, stop: int) -> Tensor:
        """What the last `new` of `stop` positions do not see, as (new, stop) of 0 and -inf; each row begins
        at a multiple of `ALIGNED`.
        """
        usual, key = new <= USUAL_CHUNK, (new, stop % ALIGNED)
        end = self._ends.get(key) if usual else None
        if end is None:
            # As much wider than `stop` as the longest text may need, by whole pieces: a mask's left part is
            # all zeros, so the mask of a shorter text is the right end of a longer one's.
            width = stop + (_aligned(self._max_length - stop) if usual else 0)
            start = torch.tensor([width - new], device=self._device)
            end = unseen(start, new, _aligned(width), self._dtype)[0, :, :width]
            if usual:
                self._ends[key] = end
        return end[:, end.shape[1] - stop :]


def unseen(starts: Tensor, new: int, stop: int, dtype: torch.dtype) -> Tensor:
    """What `new` positions from each start on do not see of `stop`: (starts, new, stop) of 0 and -inf."""
    positions = starts[:, None] + torch.arange(new, device=starts.device)
    later = torch.arange(stop, device=starts.device) > positions[..., None]
    return torch.zeros(later.shape, dtype=dtype, device=starts.device).masked_fill_(later, float("-inf"))


def _aligned(numbers: int) -> int:
    """Rounded up to whole pieces of `ALIGNED`."""
    return -(-numbers // ALIGNED) * ALIGNED


class AttentionStep:
    """New positions of the texts in a cache, those of a text side by side.

    counts: how many each text has; queries: of how many of its last ones outputs are wanted. loop: the
    compiled loop of `attend_packed`, None where torch attends; it reads `rotary` and `memory`.
    """

    def __init__(
        self,
        cache: KVCache | BatchKVCache,
        counts: Sequence[int],
        queries: Sequence[int],
        rotary: Rotary,
        causal: Callable[[int, int], Tensor],
    ):
        self.alone = isinstance(cache, KVCache)
        self._starts = [cache.length] if self.alone else [row.length for row in cache.rows]
        self._counts, self._queries = counts, queries
        stops = [start + count for start, count in zip(self._starts, counts, strict=True)]
        self._widest, self._filled = max(counts), max(stops)
        capacity = cache.cache.shape[-2]
        assert min(counts) > 0 and self._filled <= capacity, f"positions to {self._filled} of {capacity}"
        assert all(1 <= asked <= count for asked, count in zip(queries, counts, strict=True)), queries
        self._cache, self._causal = cache.cache, causal
        # A slice for one text, so that nothing is gathered; (new, 1, 1, rotary_dim) each.
        positions = slice(self._starts[0], stops[0]) if self.alone else self._positions
        self.cos, self.sin = (each[positions] for each in rotary)
        self.loop = _loop(self._cache, self._widest, self._filled)
        if self.loop is not None:
            self.rotary = [each.flatten(1).numpy() for each in (self.cos, self.sin)]  # (new, rotary_dim)
            memory = self._cache.numpy()
            self.memory = memory[:, :, None] if self.alone else memory  # (2, slots, rows, heads, ..)

    @property
    def start(self) -> int:
        """Where the first text's new positions begin."""
        return self._starts[0]

    @property
    def queries(self) -> int:
        """Of the first text."""
        return self._queries[0]

    def select_queries(self, states: Tensor) -> Tensor:
        """States (.., new, width) where outputs are wanted: (.., all queries, width)."""
        return states[..., -self.queries :, :] if self.alone else states[..., self._query_places, :]

    def attend_packed(
        self, projected: Sequence[Tensor], slot: int, scaling: float, all_positions: bool
    ) -> Sequence[Tensor]:
        """`attend` for n slots from `slot` on, from a packed projection's rows each: queries, keys and
        values, each by head, (new, projected).
        """
        if self.loop is None:
            q, kv = self._unpacked(projected)
            return self.attend(q, kv, slot, scaling, all_positions)
        attended = []
        for at, rows in enumerate((each.numpy() for each in projected), start=slot):
            keys, values = self.memory[:, at]  # (rows, heads, capacity, head_dim)
            parts = [
                self.loop(rows[here], cos, sin, keys[row], values[row], start, scaling,
                          len(cos) if all_positions else queries)
                for row, (here, cos, sin, start, queries) in enumerate(self._loop_rows)
            ]  # fmt: skip
            attended.append(torch.from_numpy(parts[0] if self.alone else np.concatenate(parts)))
        return attended

    def attend(self, q: Tensor, kv: Tensor, slot: int, scaling: float, all_positions: bool) -> Tensor:
        """Write keys and values of n slots from `slot` on, then attend.

        q (n, new, heads, head_dim), kv (n, new, 2, kv_heads, head_dim) -> (n, new, heads * head_dim), or
        (n, queries, heads * head_dim) unless `all_positions`.
        """
        attend = self._attend_alone if self.alone else self._attend_batch
        return attend(q, kv, slot, scaling, all_positions)

    def _attend_alone(self, q: Tensor, kv: Tensor, slot: int, scaling: float, all_positions: bool) -> Tensor:
        n = len(q)
        self._new[:, slot : slot + n] = kv.permute(2, 0, 3, 1, 4)
        mask, (keys, values) = self._mask, self._seen
        if not all_positions:
            q = q[:, -self.queries :]
            # The last position sees all that is filled: no mask.
            mask = None if self.queries == 1 or mask is None else mask[-self.queries :]
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[slot : slot + n],
            values[slot : slot + n],
            attn_mask=mask,
            scale=scaling,
            enable_gqa=q.shape[2] != kv.shape[3],
        )  # (n, heads, queries, head_dim)
        return attended.transpose(1, 2).flatten(2)

    def _attend_batch(self, q: Tensor, kv: Tensor, slot: int, scaling: float, all_positions: bool) -> Tensor:
        n, rows, widest = len(q), len(self._counts), self._widest
        slots = self._cache[:, slot : slot + n]
        slots[:, :, self._row, :, self._positions] = kv.permute(1, 2, 0, 3, 4)
        if self._place is not None:
            grid = q.new_zeros(n, rows * widest, *q.shape[2:])
            grid[:, self._place] = q
            q = grid
        grouped = q.shape[2] != kv.shape[3]
        q = q.view(n, rows, widest, *q.shape[2:]).transpose(2, 3)  # (n, rows, heads, widest, head_dim)
        keys, values = slots[:, :, :rows, :, : self._filled].unbind(
            0
        )  # (n, rows, kv_heads, filled, head_dim)
        attended = torch.stack(
            [
                F.scaled_dot_product_attention(
                    q[i], keys[i], values[i], attn_mask=self._mask, scale=scaling, enable_gqa=grouped
                )
                for i in range(n)
            ]
        )
        attended = attended.transpose(2, 3).reshape(n, rows * widest, -1)
        if self._place is not None:
            attended = attended[:, self._place]
        return attended if all_positions else self.select_queries(attended)

    def _unpacked(self, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated queries (n, new, heads, head_dim), and rotated keys with values (n, new, 2, kv_heads,
        head_dim), from n packed projections' rows."""
        rows = projected[0].unsqueeze(0) if len(projected) == 1 else torch.stack(list(projected))
        kv_heads, head_dim = self._cache.shape[-3], self._cache.shape[-1]
        by_head = rows.unflatten(-1, (1, -1, head_dim))  # (n, new, 1, heads + 2 kv_heads, head_dim)
        heads = by_head.shape[-2] - 2 * kv_heads
        apply_rotary(by_head[..., : heads + kv_heads, :], self.cos, self.sin)
        by_head = by_head[:, :, 0]
        return by_head[:, :, :heads], by_head[:, :, heads:].unflatten(2, (2, kv_heads))

    # -- made where they are first needed, once a pass ----------------------------------------------------

    @cached_property
    def _loop_rows(self) -> list[tuple]:
        """By text: its rows of a projection, their cosines and sines, where they begin, its queries."""
        ends = list(accumulate(self._counts))
        slices = [slice(end - count, end) for end, count in zip(ends, self._counts, strict=True)]
        cos, sin = self.rotary
        return [
            (here, cos[here], sin[here], start, queries)
            for here, start, queries in zip(slices, self._starts, self._queries, strict=True)
        ]

    @cached_property
    def _new(self) -> Tensor:
        """One text's new places in the cache, (2, slots, kv_heads, new, head_dim)."""
        return self._cache[:, :, :, self.start : self._filled]

    @cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """One text's keys and values, (slots, kv_heads, filled, head_dim) each."""
        return self._cache[:, :, :, : self._filled].unbind(0)

    @cached_property
    def _mask(self) -> Tensor | None:
        """What new positions do not see: (new, filled); of a batch (rows, 1, widest, filled)."""
        if self.alone:
            return None if self._widest == 1 else self._causal(self._widest, self._filled)
        starts = torch.tensor(self._starts, device=self._cache.device)
        return unseen(starts, self._widest, self._filled, self._cache.dtype).unsqueeze(1)

    def _of_batch(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self._cache.device)

    @cached_property
    def _positions(self) -> Tensor:
        """Each new position's place in its own text."""
        pairs = zip(self._starts, self._counts, strict=True)
        return self._of_batch([at for start, count in pairs for at in range(start, start + count)])

    @cached_property
    def _row(self) -> Tensor:
        """Whose each new position is."""
        return self._of_batch([row for row, count in enumerate(self._counts) for _ in range(count)])

    @cached_property
    def _query_places(self) -> Tensor:
        """Which of the new positions are queries."""
        ends = zip(accumulate(self._counts), self._queries, strict=True)
        return self._of_batch([at for end, asked in ends for at in range(end - asked, end)])

    @cached_property
    def _place(self) -> Tensor | None:
        """Where each new position stands in a grid of rows x widest; None where the grid has no holes."""
        if min(self._counts) == self._widest:
            return None
        counts = enumerate(self._counts)
        return self._of_batch([row * self._widest + i for row, count in counts for i in range(count)])


def _loop(cache: Tensor, new: int, filled: int) -> Callable | None:
    """The compiled loop where it is the faster way, None elsewhere; cache (.., heads, capacity, head_dim)."""
    few = new <= FEW_QUERIES and filled * cache.shape[-3] * cache.shape[-1] <= LOOP_NUMBERS
    fits = few and cache.device.type == "cpu" and cache.dtype == torch.float32
    return getattr(kernels.loops(), "attend", None) if fits else None
