"""The correlator in decoding: each head's candidates given the tokens chosen before them (ours, not the
paper's).

`dynamo.model.correlator` says what it is. Behind the final norm its parts fold, so a pass needs no logits but
the heads' own: with u the inner state after the tokens chosen before, the logit of candidate c rises by
E_c B u. A_h h_n is taken once a pass; embedding rows are gathered only of tokens that a joint's branches
reach.

A conditional is a distribution over the k candidates that the head has without it. The share of the head's
softmax that these hold scales it: otherwise what the candidates leave out would make the rest look certain.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dynamo import kernels
from dynamo.cooccurrence.trie import side_by_side
from dynamo.kernels.layouts import in_16_bits, in_32_bits
from dynamo.model.heads import TokenHead
from dynamo.model.packing import is_half
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.options import SamplingOptions

Copy = tuple[NDArray, int, tuple[NDArray, ...], NDArray]

FEW_ROWS = 6  # of inner states: for more, torch's products are faster than the loop's
LENGTHS = 8  # the loop's rows are multiples of this


class Correlators:
    """The correlators of a model's extra heads. copied: with copies of theirs in 16 bits where these hold
    them, as what they read of memory takes longer than their sums."""

    def __init__(self, model: PreTrainedModel, copied: bool = False):
        self._heads: list[TokenHead] = list(model.token_heads)
        self._embed = model.get_input_embeddings()
        self._unembed = model.get_output_embeddings()
        self._copies = [self._copy(head) for head in range(1, 1 + len(self._heads))] if copied else []

    @classmethod
    def from_model(cls, model: PreTrainedModel, copied: bool = False) -> Correlators | None:
        """None for a model without any."""
        return cls(model, copied) if getattr(model.config, "correlator_rank", 0) else None

    def _copy_of(self, head: int) -> Copy | None:
        return self._copies[head - 1] if self._copies else None

    def _copy(self, head: int) -> Copy | None:
        """What `kernels.correlated.after_chunks` reads of a head; None where it cannot."""
        correlator, ends = self._heads[head - 1].correlator, (self._embed.weight, self.output_embedding(head))
        matrices = [*(each.weight for each in correlator.from_tokens), correlator.to_hidden]
        if correlator.from_hidden is not None:
            matrices.append(correlator.from_hidden.weight)
        if not all(each.is_cpu and each.dtype == torch.float32 for each in (*ends, *matrices)):
            return None
        if any(size % LENGTHS for size in correlator.to_hidden.shape):
            return None
        if all(map(is_half, matrices)):  # less is read
            flat = [in_16_bits(each.detach(), 1.0) for each in matrices]
        else:
            flat = [in_32_bits(each.detach()) for each in matrices]
        seen = len(correlator.from_tokens)
        own = flat[seen + 1] if len(flat) > seen + 1 else flat[0][:0]
        arrays = side_by_side([each.numpy() for each in (own, torch.stack(flat[:seen]), flat[seen])])
        return ends[0].detach().numpy(), correlator.rank, arrays, ends[1].detach().numpy()

    def warm_up(self) -> None:
        """Compile or load the loops that conditionals need, before a step is timed."""
        options, (vocab, hidden) = SamplingOptions(top_k=2), self.output_embedding(1).shape
        candidates = top_candidates(torch.zeros(2, vocab), options)
        like = self.output_embedding(1)
        logits, states = like.new_zeros(1, vocab), like.new_zeros(1, hidden)
        self.attach(candidates, logits, states, options).given.factors(np.zeros((1, 1), np.int64))

    @torch.inference_mode()
    def attach(
        self, candidates: Candidates, logits: Tensor, states: Tensor, options: SamplingOptions
    ) -> Candidates:
        """Candidates (n, k) with their conditionals. Of heads 2 .. n at the pass's position: logits (n - 1,
        tokens), from which the candidates are, and hidden states behind the final norm (n - 1, hidden)."""
        temperature = options.temperature or 1.0
        logits = logits.float() if logits.itemsize < 4 else logits
        # The likeliest token's share of all tokens over its share of the candidates.
        loops = kernels.loops() if logits.is_cpu and logits.dtype == torch.float32 else None
        if loops is not None:
            likeliest = loops.likeliest(logits.contiguous().numpy(), float(temperature))
        else:
            likeliest = torch.softmax(logits / temperature, dim=1).amax(dim=1).cpu().numpy()
        shares = np.minimum(likeliest / candidates.f[1:, 0], 1.0)
        return candidates._replace(given=Conditionals(self, candidates, shares, states.clone(), temperature))

    def state_part(self, head: int, state: Tensor) -> Tensor:
        """What the head's own state (hidden,) adds to its inner state: (rank,)."""
        correlator = self._heads[head - 1].correlator
        return correlator.h_part(state.to(correlator.to_hidden))

    def token_part(self, head: int, place: int, tokens: NDArray[np.int64]) -> Tensor:
        """What tokens (n,) chosen at a place add to it: (n, rank)."""
        rows = self._embed(torch.from_numpy(tokens).to(self._embed.weight.device))
        correlator = self._heads[head - 1].correlator
        return correlator.e_part(place, rows.to(correlator.to_hidden))

    def output_embedding(self, head: int) -> Tensor:
        """E, (vocab, hidden)."""
        return (self._heads[head - 1].output_embedding or self._unembed).weight

    def after_chunks(
        self,
        state: Tensor,
        chunks: NDArray[np.int64],
        ids: NDArray[np.int64],
        log_f: NDArray[np.float64],
        temperature: float,
    ) -> NDArray[np.float64] | None:
        """Of candidates ids (k,) after few chunks of tokens (n, j), in one loop: (n, k); None without one."""
        copy = self._copy_of(chunks.shape[1])
        if copy is None or kernels.loops() is None or len(chunks) > FEW_ROWS:
            return None
        given = np.ascontiguousarray(chunks), *copy, ids, log_f, float(temperature)
        return kernels.run("after_chunks", state.numpy(), *given)

    def conditionals(
        self, head: int, inner: Tensor, ids: NDArray[np.int64], log_f: NDArray[np.float64], temperature: float
    ) -> NDArray[np.float64]:
        """Of candidates ids (k,), with log_f (k,) as the head has them, in inner states (n, rank): (n, k)."""
        back, output = self._heads[head - 1].correlator.to_hidden, self.output_embedding(head)
        rows = output.index_select(0, torch.from_numpy(ids).to(output.device)).to(back)  # E_c, (k, hidden)
        u = torch.nn.functional.silu(inner)
        # Whichever is less work: few inner states go to the hidden size, many wait for the candidates.
        rise = (u @ back.T) @ rows.T if len(u) < len(rows) else u @ (rows @ back).T
        logits = log_f + rise.double().cpu().numpy() / temperature
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)


class Conditionals:
    """p(x_n | x_1 .. x_n-1) of one pass's candidates. shares (n - 1,): of each further head's softmax, what
    its candidates hold."""

    def __init__(
        self,
        correlators: Correlators,
        candidates: Candidates,
        shares: NDArray[np.float64],
        states: Tensor,
        temperature: float,
    ):
        self.shares = shares
        self._correlators, self._states, self._temperature = correlators, states, temperature
        self._inner: dict[int, Tensor] = {}  # of each head, its own state's part
        self._ids = candidates.ids
        self._known: dict[tuple[int, ...], NDArray[np.float64]] = {}  # rows by the tokens before
        with np.errstate(divide="ignore"):
            self._log_f = np.log(candidates.f)

    def factors(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the candidates after tokens (n, j), j from 1 on: (n, k), rows that sum to the head's share.

        What one order asked for is not computed again for the next.
        """
        asked = [tuple(row) for row in tokens.tolist()]
        new = [row for row in dict.fromkeys(asked) if row not in self._known]
        if new:
            self._known.update(zip(new, self._rows(np.array(new)), strict=True))
        return np.array([self._known[row] for row in asked]).reshape(-1, self._ids.shape[1])

    @torch.inference_mode()
    def _rows(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        head, correlators = tokens.shape[1], self._correlators
        state, given = self._states[head - 1], (self._ids[head], self._log_f[head], self._temperature)
        p = correlators.after_chunks(state, tokens, *given)
        if p is None:
            p = correlators.conditionals(head, self._inner_states(tokens), *given)
        return p * self.shares[head - 1]

    def _inner_states(self, tokens: NDArray[np.int64]) -> Tensor:
        """After chunks of tokens (n, j): (n, rank)."""
        head, correlators = tokens.shape[1], self._correlators
        if head not in self._inner:
            self._inner[head] = correlators.state_part(head, self._states[head - 1])
        inner = self._inner[head]  # (rank,)
        for place, column in enumerate(tokens.T):
            different, inverse = np.unique(column, return_inverse=True)
            part = correlators.token_part(head, place, different)
            inner = inner + part[torch.from_numpy(inverse).to(part.device)]  # (n, rank)
        return inner

    def later(self, order: int) -> float:
        """The share that the candidates hold of all tokens from the third to the last of a chunk."""
        return math.prod(self.shares[1 : order - 1].tolist())
