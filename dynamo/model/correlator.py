"""A head's prediction given the tokens chosen before it in the same chunk (ours: not in the paper).

The heads predict x_1 .. x_n of one position independently of each other, and the paper's mask mends their
product by counts over a corpus, which know nothing of the text so far. Here head n's hidden state, behind the
final norm, is corrected by a small MLP that sees the chosen tokens too:

    h_n' = h_n + B silu(A_h h_n + A_1 e(x_1) + .. + A_{n-1} e(x_{n-1}))

e(x) is the base's input embedding of x scaled to unit variance, to which no gradient flows. B is zero at
first, so an untrained correlator changes nothing. p(x_n | x_1 .. x_{n-1}) is the softmax of h_n' by the
output embedding E that the head uses anyway. The kind "markov" is the simplest variant: only the last token
is seen, B silu(A_{n-1} e(x_{n-1})), a low-rank table of transitions that is the same for every text.

Training evaluates `forward` with the true tokens. Decoding need not: behind the norm the parts fold, and the
logit of candidate c after the tokens x_1 .. x_{n-1} is

    E_c h_n + (E_c B) . silu(A_h h_n + A_1 e(x_1) + .. + A_{n-1} e(x_{n-1}))

with the head's own logit E_c h_n, which is there already; `h_part`, A_h h_n, once a pass; `e_part`,
A_j e(x_j), once for each token of place j that is looked at; and E_c B once a pass for the k candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from dynamo.model.config import DynamoConfig


class Correlator(nn.Module):
    """Corrects the head that has `before` tokens between its context and its own: head 2 has one."""

    def __init__(self, config: DynamoConfig, before: int):
        super().__init__()
        hidden, self.rank = config.hidden_size, config.correlator_rank
        mlp = config.correlator_kind == "mlp"
        self.first_place = 0 if mlp else before - 1  # of the tokens that are seen
        self.from_hidden = nn.Linear(hidden, self.rank, bias=False) if mlp else None  # A_h
        self.from_tokens = nn.ModuleList(  # A_1 ..
            nn.Linear(hidden, self.rank, bias=False) for _ in range(self.first_place, before)
        )
        # B. Not a linear layer's: transformers initialises only modules that own a parameter.
        self.to_hidden = nn.Parameter(torch.zeros(hidden, self.rank))

    def forward(self, hidden_states: Tensor, embedded: Sequence[Tensor]) -> Tensor:
        """hidden_states (.., hidden) after the final norm; embedded: `before` tensors (.., hidden), the input
        embeddings of x_1 .. x_{n-1} -> (.., hidden), for the head's output embedding."""
        inner = self.h_part(hidden_states)
        for place, rows in enumerate(embedded):
            inner = inner + self.e_part(place, rows)
        return hidden_states + F.linear(F.silu(inner), self.to_hidden)

    def h_part(self, hidden_states: Tensor) -> Tensor:
        """What the head's own state adds before silu: (.., hidden) -> (.., rank)."""
        if self.from_hidden is None:
            return hidden_states.new_zeros(*hidden_states.shape[:-1], self.rank)
        return self.from_hidden(hidden_states)

    def e_part(self, place: int, embedded: Tensor) -> Tensor:
        """What token x_{place + 1} adds before silu, from its input embedding: (.., hidden) -> (.., rank)."""
        if place < self.first_place:
            return embedded.new_zeros(*embedded.shape[:-1], self.rank)
        return self.from_tokens[place - self.first_place](unit_variance(embedded.detach()))


def unit_variance(embedded: Tensor) -> Tensor:
    """Every embedding (.., hidden) divided by its own root mean square."""
    return F.rms_norm(embedded, embedded.shape[-1:])
