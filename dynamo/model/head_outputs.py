"""What heads make of their hidden states: logits, and losses on the tokens that each has to predict."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo.model.config import DynamoConfig
from dynamo.model.forward_arguments import divisors, labels_by_head
from dynamo.model.loss import IGNORED_LABEL, summed_nats, summed_nats_by
from dynamo.model.optimiser import is_plain, scale_gradient, scaled_call


class HeadOutputs:
    """The part of `DynamoForCausalLM` that knows hidden states behind the final norm, and nothing before.

    The output embedding may be any module: a product with a weight takes the short way, others (an adapter
    around it, quantised weights) are called.
    """

    config: DynamoConfig
    token_heads: nn.ModuleList

    def losses(
        self,
        states: list[Tensor],
        labels: Tensor,
        embedded: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits: list[Tensor] | None = None,
        target_counts: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, `head_losses` and `correlator_losses` of a `DynamoOutput`.

        states: each head's, (batch, seq, hidden); logits: where they are there already; embedded: the input
        embeddings, which only correlators need; the rest as in `forward`.
        """
        own = labels_by_head(labels, len(states), position_ids)
        nats = [
            self.head_nats(n, state, own[n], None if logits is None else logits[n])
            for n, state in enumerate(states)
        ]
        counts = divisors(own, target_counts, num_items_in_batch)
        head_losses = torch.stack(nats) / counts
        losses = {"loss": head_losses.sum(), "head_losses": head_losses.detach()}
        if self.config.correlator_rank and self.token_heads:
            extra = list(enumerate(states))[1:]
            given = torch.stack([self.given_nats(n, state, embedded, own[n]) for n, state in extra])
            losses["correlator_losses"] = (given / counts[1:]).detach()
            losses["loss"] = losses["loss"] + (given / counts[1:]).sum()
        return losses

    def head_logits(self, head: int, hidden_states: Tensor) -> Tensor:
        """Logits (.., vocab) of head `head` (0 is the first) from its normed hidden states (.., hidden)."""
        own = self.token_heads[head - 1].output_embedding if head > 0 else None
        shared = self.get_output_embeddings()
        if head == 0 or own is not None or not torch.is_grad_enabled():
            return (own or shared)(hidden_states)
        if is_plain(shared):
            return F.linear(hidden_states, self._output_weight(head))
        return scaled_call(shared, hidden_states, self.config.head_gradient_scale)

    def _output_weight(self, head: int) -> Tensor | None:
        """What the logits are a product with; None if they are more than that (an adapter, quantised weights
        or a hook that brings them)."""
        own = self.token_heads[head - 1].output_embedding if head > 0 else None
        embeddings = own or self.get_output_embeddings()
        if not is_plain(embeddings):
            return None
        if hasattr(embeddings, "unshard"):  # a unit of its own to FSDP, and nobody calls its forward here
            embeddings.unshard()
        shared = head > 0 and own is None
        return scale_gradient(embeddings.weight, self.config.head_gradient_scale if shared else 1.0)

    def head_nats(
        self, head: int, hidden_states: Tensor, labels: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        """Summed nats of head `head` on the labels `head + 1` positions ahead; 0 if none is valid.

        Without `logits` these are made a piece at a time (`dynamo.model.loss`).
        """
        distance = head + 1
        targets = labels[:, distance:].reshape(-1)
        if logits is None:
            return self._summed_nats(head, hidden_states[:, :-distance].flatten(0, 1), targets)
        logits = logits[:, :-distance].reshape(-1, logits.shape[-1]).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")

    def _summed_nats(self, head: int, states: Tensor, targets: Tensor) -> Tensor:
        weight = self._output_weight(head)
        if weight is None:
            project = partial(self.head_logits, head)
            return summed_nats_by(project, states, targets, self.config.vocab_size)
        return summed_nats(states, weight, targets)

    def given_states(self, head: int, hidden_states: Tensor, embedded: Tensor) -> Tensor:
        """Head `head`'s normed hidden states, each corrected for the tokens of the text between its position
        and the head's own (`dynamo.model.correlator`).

        hidden_states, embedded (batch, seq, hidden), the latter the input embeddings -> (batch, seq - head,
        hidden), as later positions have too few tokens after them.
        """
        last = hidden_states.shape[1] - head
        following = [embedded[:, place : last + place] for place in range(1, head + 1)]
        return self.token_heads[head - 1].correlator(hidden_states[:, :last], following)

    def given_nats(self, head: int, hidden_states: Tensor, embedded: Tensor, labels: Tensor) -> Tensor:
        """`head_nats` given the tokens between a position and the head's target."""
        states = self.given_states(head, hidden_states, embedded)[:, :-1].flatten(0, 1)
        return self._summed_nats(head, states, labels[:, head + 1 :].reshape(-1))
