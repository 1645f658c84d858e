"""One text in the making: what it holds so far, what the next pass must read, what its logits lead to.

The baseline, DynaMo and exact mode are one lane each way: what differs is how tokens are chosen. A lane knows
no model and no clock; whoever runs it feeds `pending` to a decoder, hands the logits of the last `queries`
positions to `advance`, which may not look at all of them, and takes back the last `rejected` positions fed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynamo.common.laps import lap
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data.text import StopStrings
from dynamo.sampling.anchored import choose_anchored
from dynamo.sampling.candidates import Candidates, top_candidates
from dynamo.sampling.correlated import Correlators
from dynamo.sampling.exact import Draft, Verdict, propose, recorded_joint, verify
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import Joint, StepRecord
from dynamo.sampling.sampler import Context, choose


class ByPosition(Protocol):
    """A pass's logits, as an array (queries, heads, vocab)."""

    def __getitem__(self, asked: Any, /) -> Tensor: ...


class TokenSequence:
    """State of one stream. `pending` is empty once the text has ended; `rejected` belongs to the last pass.

    limit: most tokens to emit; special_ids: never penalised; end_ids: each ends the text; correlators: of the
    model, where the options ask for them; drafted: ids of the tokens that exact mode drafts, any by default.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        limit: int,
        seed: int,
        table: CooccurrenceTable | None,
        vocab_size: int,
        special_ids: frozenset[int] = frozenset(),
        end_ids: frozenset[int] = frozenset(),
        stops: StopStrings | None = None,
        correlators: Correlators | None = None,
        drafted: NDArray[np.int64] | None = None,
    ):
        self.pending: list[int] = list(prompt)
        self.rejected = 0
        self.prompt_length, self.emitted, self.limit = len(prompt), 0, limit
        self._options, self._table, self._drafted = options, table, drafted
        self._end_ids, self._stops, self._correlators = end_ids, stops, correlators
        self._uniform = random.Random(seed).random
        self._context = Context(vocab_size, tuple(special_ids))
        self._context.add(self.pending)
        self._drafts: tuple[Draft, ...] = ()

    @property
    def queries(self) -> int:
        """Of how many last positions the next pass must give logits: drafts are verified, each at its own."""
        return 1 + len(self._drafts)

    @property
    def cached(self) -> int:
        """How many positions the lane's cache must hold before the next pass."""
        return self.prompt_length + self.emitted - (len(self.pending) - len(self._drafts))

    def advance(self, logits: ByPosition, seconds: Callable[[], float], states: Tensor) -> StepRecord:
        """Choose the next tokens from each position's logits (heads, vocab); `seconds` is asked after that.

        states: hidden states behind the final norm, (heads, queries, hidden), for a correlator.
        """
        record = (self._verified if self._options.exact else self._chosen)(logits, seconds, states)
        self.emitted += len(record.tokens)
        return record

    def _chosen(self, logits: ByPosition, seconds: Callable[[], float], states: Tensor) -> StepRecord:
        last = logits[0]  # the one position
        candidates = self._given(top_candidates(last, self._options), last[1:], states[:, 0])
        lap("top-k")
        step = candidates, self._context, self._table, self._options
        anchored = self._options.draw == "anchored"
        decision = choose_anchored(*step, self._uniform) if anchored else choose(*step, self._uniform())
        lap("draw")
        tokens, going_on = self._cut(decision.tokens)
        self.pending = list(tokens)
        self._context.add(self.pending)
        if not going_on:
            self.pending = []
        return StepRecord(
            tokens=tokens,
            order=decision.order,
            seconds=seconds(),
            prefill=self.emitted == 0,
            probabilities=decision.probabilities[: len(tokens)],
            backoffs=decision.backoffs,
            kept_mass=decision.kept_mass,
            joint=decision.joint,
            anchored=anchored,
        )

    def _given(self, candidates: Candidates, logits: Tensor, states: Tensor) -> Candidates:
        """Candidates with the correlator's conditionals, where the options ask for it; logits of the further
        heads, states (heads, hidden)."""
        if self._correlators is None or self._options.highest_order == 1:
            return candidates
        heads = len(candidates.ids)
        return self._correlators.attach(candidates, logits[: heads - 1], states[1:heads], self._options)

    def _verified(self, logits: ByPosition, seconds: Callable[[], float], states: Tensor) -> StepRecord:
        drafts, options = self._drafts, self._options
        # The first head's at all positions at once; where the further heads' are of all tokens too, those
        # of one: reading the output embedding is what takes the time, and few drafts are kept.
        first = logits if self._drafted is None else logits[:, 0]
        verdict = verify(first, drafts, self._context, options, self._uniform, self._end_ids)
        lap("draw")
        tokens, going_on = self._cut(verdict.tokens)
        self.rejected = len(drafts) - verdict.accepted
        self._drafts, self.pending, joint = (), [], None
        if going_on:
            joint = self._propose(logits, verdict, tokens, states[:, verdict.accepted])
            self.pending = [tokens[-1], *(draft.token for draft in self._drafts)]
            lap("joint and mask")
        return StepRecord(
            tokens=tokens,
            order=len(verdict.tokens),
            seconds=seconds(),
            prefill=self.emitted == 0,
            probabilities=verdict.probabilities[: len(tokens)],
            joint=joint,
            drafted=tuple(self.pending[1:]),
            rejected=tuple(draft.token for draft in drafts[verdict.accepted :]),
            refused=verdict.refused,
            exact=True,
        )

    def _propose(
        self, logits: ByPosition, verdict: Verdict, tokens: tuple[int, ...], states: Tensor
    ) -> Joint | None:
        """Draft what may follow `tokens`; the joint that the drafts are from. states (heads, hidden)."""
        # A pass makes one token more final than it reads drafts, and there is no use for more than the limit.
        left = self.limit - self.emitted - len(tokens) - 1
        most = min(len(states) - 1, self._options.highest_order - 1, left)
        if most < 1:
            return None
        at, heads, drafted = verdict.accepted, slice(1, 1 + most), self._drafted
        further = logits[at][heads] if drafted is None else logits[at, heads, drafted]
        rest = top_candidates(further, self._options)
        if drafted is not None:
            rest = rest._replace(ids=drafted[rest.ids])
        lap("top-k")
        first = verdict.last
        candidates = Candidates(np.vstack([first.ids, rest.ids]), np.vstack([first.f, rest.f]))
        candidates = self._given(candidates, further, states)
        self._drafts = propose(
            candidates,
            tokens[-1],
            self._table,
            self._context,
            self._options,
            self._uniform,
            most,
            self._end_ids,
        )
        return recorded_joint(candidates, max(2, 1 + len(self._drafts)), self._table, self._options)

    def _cut(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
        """The tokens up to an end or the limit inside the chunk, and whether the text goes on after them."""
        tokens = tokens[: self.limit - self.emitted]
        end = next((count for count, token in enumerate(tokens, start=1) if token in self._end_ids), None)
        kept = self._stops.cut(tokens[:end]) if self._stops is not None else None
        cut = end if kept is None else kept
        tokens = tokens[:cut]
        return tokens, cut is None and self.emitted + len(tokens) < self.limit
