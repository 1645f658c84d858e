"""Passes of fixed shape, which CUDA can replay as one graph: few new positions of one text on a GPU.

A small model on a GPU waits for its operators to be launched, some ten a layer. A captured graph launches
all at once, but repeats exactly what was captured: the same shapes, the same memory. So here nothing of a
pass but its number of new positions, its queries and how far it looks back comes from Python: the positions
come from a tensor, and with them the rotary angles, the places in the cache and the mask. How far it looks
back goes in steps (`span_of`), so that a text needs few graphs; what lies behind its end is masked.

Elsewhere than on CUDA the same pass runs as it stands, which is how it is tested. No GPU was there to see it
on; `tools/gpu_check.py` compares it with the ordinary pass where there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo.decoding.attention import Rotary, unseen
from dynamo.decoding.cache import KVCache
from dynamo.decoding.decoder import Decoder

logger = logging.getLogger(__name__)
MOST_NEW = 4  # tokens of a chunk, or a token and its drafts
LEAST_SPAN = 256  # positions; each further step is twice as long
WARM_UPS = 2  # passes before one is captured, as libraries prepare themselves in the first


def span_of(positions: int, capacity: int) -> int:
    """The least step that holds so many positions."""
    span = LEAST_SPAN
    while span < positions:
        span *= 2
    return min(span, capacity)


class StaticStep:
    """`AttentionStep` of one text's `new` positions from the tensor `start` (1,) on, over `span` of a cache
    (2, slots, kv_heads, capacity, head_dim) that holds numbers everywhere."""

    def __init__(self, cache: Tensor, start: Tensor, new: int, queries: int, span: int, rotary: Rotary):
        self._cache, self._queries, self._span = cache, queries, span
        self._positions = start + torch.arange(new, device=start.device)  # (new,)
        self.cos, self.sin = (each.index_select(0, self._positions) for each in rotary)
        self._mask = unseen(start, new, span, cache.dtype)[0]  # (new, span)

    def select_queries(self, states: Tensor) -> Tensor:
        """States (.., new, width) where outputs are wanted: (.., queries, width)."""
        return states[..., -self._queries :, :]

    def attend(self, q: Tensor, kv: Tensor, slot: int, scaling: float, all_positions: bool) -> Tensor:
        """As `AttentionStep.attend`."""
        n, new, heads, head_dim = q.shape
        slots = self._cache[:, slot : slot + n]  # (2, n, kv_heads, capacity, head_dim)
        slots.index_copy_(3, self._positions, kv.permute(2, 0, 3, 1, 4))
        keys, values = slots[..., : self._span, :].unbind(0)
        mask = self._mask
        if not all_positions:
            q, mask, new = q[:, -self._queries :], mask[-self._queries :], self._queries
        # A group's queries are rows of one head, so that its keys are read once and not repeated.
        group = heads // keys.shape[1]
        rows = q.reshape(n, new, -1, group * head_dim).transpose(1, 2)  # (n, kv_heads, new, group * head_dim)
        rows = rows.reshape(n, -1, new * group, head_dim)
        mask = mask.repeat_interleave(group, dim=0)  # (new * group, span)
        attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
        attended = attended.reshape(n, -1, new, group * head_dim).transpose(1, 2)
        return attended.reshape(n, new, heads * head_dim)


class StaticPass:
    """One shape of pass over one cache's memory, captured where that is on CUDA."""

    def __init__(self, decoder: StaticDecoder, cache: Tensor, new: int, queries: int, heads: int, span: int):
        self._decoder, self._shape = decoder, (new, queries, heads, span)
        self._cache = cache
        self._inputs = torch.zeros(1 + new, dtype=torch.long, device=cache.device)  # start, tokens
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, start: int, tokens: Sequence[int]) -> Tensor:
        """Hidden states behind the final norm, (heads, queries, hidden)."""
        self._inputs.copy_(torch.tensor([start, *tokens]))  # one small copy
        if self._cache.device.type != "cuda":
            return self._run()
        if self._graph is None:
            self._capture()
        self._graph.replay()
        return self._states.clone()  # graphs share their memory

    def _run(self) -> Tensor:
        new, queries, heads, span = self._shape
        start, tokens = self._inputs[:1], self._inputs[1:]
        step = StaticStep(self._cache, start, new, queries, span, self._decoder.rotary)
        return self._decoder.static_states(tokens, step, heads)

    def _capture(self) -> None:
        # It writes the same keys and values each time, so running it more than once does no harm.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._decoder.memory_pool(), capture_error_mode="thread_local"):
            self._states = self._run()
        self._graph = graph


class StaticDecoder(Decoder):
    """`Decoder` whose passes over few new positions of one text have fixed shapes."""

    def __init__(self, model: torch.nn.Module):
        super().__init__(model, packed=False)
        self._one_at_a_time = threading.Lock()  # what graphs share is one pass's at a time
        self._memory_pool: tuple[int, int] | None = None
        self.gave_up = False

    @property
    def rotary(self) -> Rotary:
        return self._rotary

    def memory_pool(self) -> tuple[int, int]:
        """CUDA's handle of the memory that all graphs share."""
        if self._memory_pool is None:
            self._memory_pool = torch.cuda.graph_pool_handle()
        return self._memory_pool

    @torch.inference_mode()
    def new_cache(self, capacity: int) -> KVCache:
        # Zeros: what is not filled is masked, but must be numbers.
        return KVCache(torch.zeros(self._cache_shape(capacity), dtype=self._dtype, device=self.device))

    @torch.inference_mode()
    def read(
        self, state: KVCache, tokens: Sequence[int], heads: int | None = None, queries: int = 1
    ) -> Tensor:
        new, heads = len(tokens), self.heads if heads is None else heads
        stop = state.length + new
        if new > MOST_NEW or stop > state.capacity or self.gave_up:
            return super().read(state, tokens, heads, queries)
        shape = (new, queries, heads, span_of(stop, state.capacity))
        with self._one_at_a_time:
            made = state.passes.get(shape)
            if made is None:
                made = state.passes[shape] = StaticPass(self, state.cache, *shape)
            try:
                states = made(state.length, tokens)
            except RuntimeError as error:  # in capturing: a module that waits for the device, for one
                logger.warning("passes cannot be captured as CUDA graphs, and run without: %s", error)
                self.gave_up = True
        if self.gave_up:
            return super().read(state, tokens, heads, queries)
        state.length = stop
        return states

    def static_states(self, tokens: Tensor, step: StaticStep, heads: int) -> Tensor:
        return self._normed(self._module_pass(self._embed(tokens), heads, step))
