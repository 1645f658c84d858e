"""Losses of the extra heads alone, on stored states of a frozen base (`dynamo.training.stem_states`).

Head n at position t predicts the token at t + n. It learns the token that stands there, mixed with the
base's own distribution there, which is what its first head says n - 1 positions later, given the tokens in
between (self-distillation); once as a marginal, and once more given those tokens where the head has a
correlator. Only answer tokens count, and of these a random share at each step: a head's layer needs keys and
values everywhere, but its MLP and the output embedding, most of the cost, only where there is a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo.model import DynamoForCausalLM, TokenHead, architecture_of
from dynamo.model.loss import OVERLAP_TOP, SoftLabels, drawn_from, summed_nats
from dynamo.training.stem_states import StateBatch

MEASURED_ROWS = 128  # positions whose logits exist at once


@dataclass(frozen=True)
class HeadLosses:
    """loss: what is minimised. head_losses and correlator_losses: (heads - 1,), means over positions for
    heads 2 and up; the latter include their part of the overlap term, and are None without a correlator."""

    loss: Tensor
    head_losses: Tensor
    correlator_losses: Tensor | None


def head_losses(
    model: DynamoForCausalLM,
    batch: StateBatch,
    soft_share: float,
    position_share: float = 1.0,
    random: np.random.Generator | None = None,
    overlap_weight: float = 0.0,
) -> HeadLosses:
    """Losses of one step. soft_share: the base's distribution's part of a loss, the label's is the rest;
    position_share: of each head's targets, drawn by `random`; overlap_weight: of the share of drafts that the
    base would reject, beside the nats of what heads say given the tokens before, or alone where there is no
    correlator."""
    nats, given = [], []
    for head in walk(model, batch, position_share, random):
        soft = SoftLabels(
            batch.top_ids[head.answers],
            batch.top_log_q[head.answers],
            batch.log_rest[head.answers],
            soft_share,
        )
        drafted = soft._replace(overlap=overlap_weight)  # drafts are drawn given the tokens before
        count = max(1, len(head.targets))
        alone = soft if head.given_states is not None else drafted
        for losses, states, labels in ((nats, head.states, alone), (given, head.given_states, drafted)):
            if states is not None:
                losses.append(summed_nats(states, head.weight, head.targets, soft=labels) / count)
    marginals = torch.stack(nats)
    corrected = torch.stack(given) if given else None
    return HeadLosses(
        loss=marginals.sum() + (0.0 if corrected is None else corrected.sum()),
        head_losses=marginals.detach(),
        correlator_losses=None if corrected is None else corrected.detach(),
    )


@dataclass(frozen=True)
class HeadStates:
    """One head where it has a loss: states, given_states (positions, hidden) after the norm, the latter
    corrected for the tokens before the target (None without a correlator); weight (vocab, hidden); targets,
    answers (positions,): the tokens' ids, and their rows among the batch's answer tokens."""

    states: Tensor
    given_states: Tensor | None
    weight: Tensor
    targets: Tensor
    answers: Tensor


def walk(
    model: DynamoForCausalLM,
    batch: StateBatch,
    position_share: float = 1.0,
    random: np.random.Generator | None = None,
) -> Iterator[HeadStates]:
    """Every extra head over a batch, at all positions whose target is an answer token, or a share of them."""
    architecture = architecture_of(model)
    inside = np.concatenate([np.arange(length) for length in batch.lengths])
    is_answer = batch.is_answer.cpu().numpy()
    row_of = np.cumsum(is_answer) - 1
    angles = _angles(model, batch.states, max(batch.lengths))
    cos, sin = (
        each[torch.from_numpy(inside).to(each.device)] for each in angles
    )  # (tokens, 1, 1, rotary_dim)
    for number, head in enumerate(model.token_heads, start=1):
        distance = number + 1
        targets = np.flatnonzero(is_answer & (inside >= distance))
        if position_share < 1 and len(targets):
            count = max(1, round(position_share * len(targets)))
            targets = np.sort(random.choice(targets, count, replace=False))
        answers, at, places = (
            torch.from_numpy(each).to(batch.states.device)
            for each in (row_of[targets], targets, targets - distance)
        )
        states = _run_layers(model, head, batch, cos, sin, places)
        states = (head.final_layer_norm or architecture.final_norm(model.backbone))(states)
        given = None
        if head.correlator is not None:
            embed = model.get_input_embeddings()
            given = head.correlator(states, [embed(batch.ids[places + i]) for i in range(1, distance)])
        weight = (head.output_embedding or model.get_output_embeddings()).weight
        yield HeadStates(states, given, weight, batch.ids[at], answers)


def _angles(model: DynamoForCausalLM, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions, (length, 1, 1, rotary_dim) each."""
    positions = torch.arange(length, device=like.device).unsqueeze(0)
    cos, sin = model.backbone.base_model.rotary_emb(like, position_ids=positions)
    return cos[0, :, None, None], sin[0, :, None, None]


def _run_layers(
    model: DynamoForCausalLM, head: TokenHead, batch: StateBatch, cos: Tensor, sin: Tensor, places: Tensor
) -> Tensor:
    """A head's layers over all tokens; the last one's output only at `places`, (places, hidden)."""
    states, everywhere = batch.states, torch.arange(len(batch.states), device=batch.states.device)
    for layer in head.layers[:-1]:
        states = _layer(model, layer, states, cos, sin, batch.lengths, everywhere)
    if not len(head.layers):
        return states[places]
    return _layer(model, head.layers[-1], states, cos, sin, batch.lengths, places)


def _layer(
    model: DynamoForCausalLM,
    layer: nn.Module,
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Sequence[int],
    places: Tensor,
) -> Tensor:
    """One layer, (tokens, hidden) -> (places, hidden); a conversation attends to nothing but itself."""
    architecture = architecture_of(model)
    q, kv = architecture.project(layer, states, cos, sin)
    ends = torch.tensor(lengths).cumsum(0)
    counts = torch.searchsorted(places.cpu(), ends).diff(prepend=torch.zeros(1, dtype=torch.long))
    attended = []
    own = zip(q[places].split(counts.tolist()), places.split(counts.tolist()), strict=True)
    for (queries, at), keys, end in zip(own, kv.split(list(lengths)), ends.tolist(), strict=True):
        if len(queries):
            start = end - len(keys)
            mask = torch.arange(start, end, device=at.device) <= at[:, None]  # (queries, keys)
            k, v = keys.permute(1, 2, 0, 3)[:, None]  # (1, kv_heads, keys, head_dim) each
            out = F.scaled_dot_product_attention(
                queries.transpose(0, 1)[None], k, v, mask, scale=architecture.scaling(layer), enable_gqa=True
            )
            attended.append(out[0].transpose(0, 1).flatten(1))
    joined = torch.cat(attended) if attended else q.new_zeros(0, q.shape[1] * q.shape[2])
    return architecture.finish(layer, joined, states[places])


@dataclass
class HeadMeasures:
    """Held-out figures of one head, marginal or given the tokens before: nats of the true token at
    temperature 1 and over the whole vocabulary; top1: how often it is the likeliest; overlap: with the
    base's own distribution, both as they are sampled (50 tokens, temperature .7), which is how often exact
    mode would keep a draft."""

    positions: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def add(self, states: Tensor, head: HeadStates, batch: StateBatch) -> None:
        pieces = (
            each.split(MEASURED_ROWS)
            for each in (states, head.targets, batch.top_ids[head.answers], batch.top_log_q[head.answers])
        )
        for piece, targets, ids, log_q in zip(*pieces, strict=True):
            logits = F.linear(piece, head.weight).float()
            self.positions += len(targets)
            self.sums += (
                F.cross_entropy(logits, targets, reduction="sum").item(),
                (logits.argmax(-1) == targets).sum().item(),
                overlap(logits, ids, log_q).sum().item(),
            )

    def summary(self) -> dict[str, float]:
        return dict(
            zip(("nats", "top1", "overlap"), (self.sums / max(1, self.positions)).tolist(), strict=True)
        )


def overlap(logits: Tensor, teacher_ids: Tensor, teacher_log_q: Tensor) -> Tensor:
    """Sum over tokens of the smaller probability of the two as they are sampled: (positions,)."""
    top, ids = logits.topk(min(OVERLAP_TOP, logits.shape[1]))
    p, q = drawn_from(top), drawn_from(teacher_log_q[:, :OVERLAP_TOP])
    same = ids[:, :, None] == teacher_ids[:, None, :OVERLAP_TOP]
    return (torch.minimum(p[:, :, None], q[:, None]) * same).sum((1, 2))


@torch.no_grad()
def measure_heads(model: DynamoForCausalLM, batches: Iterator[StateBatch]) -> dict[str, Any]:
    """Held-out figures over whole batches, as JSON: `first_nats` of head 1, and of heads 2 .. `HeadMeasures`
    as `heads`, given the tokens before as `correlator` (left out without one), and `positions`."""
    marginal, given = ([HeadMeasures() for _ in model.token_heads] for _ in range(2))
    first, answers = 0.0, 0
    for batch in batches:
        first, answers = first + batch.first_nats.double().sum().item(), answers + len(batch.first_nats)
        for number, head in enumerate(walk(model, batch)):
            marginal[number].add(head.states, head, batch)
            if head.given_states is not None:
                given[number].add(head.given_states, head, batch)
    found = {"first_nats": first / max(1, answers), "positions": [each.positions for each in marginal]}
    found["heads"] = [each.summary() for each in marginal]
    if model.config.correlator_rank:
        found["correlator"] = [each.summary() for each in given]
    return found
