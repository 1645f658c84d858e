"""Cross-entropy of an output embedding without the logits of a whole batch.

Logits of every head at every position over a vocabulary of 50,000 are what fills a GPU in training. They are
made here for a piece of the positions at a time; the piece's gradients are taken at once, while its logits
are there, so nothing of the vocabulary's size is kept and nothing is computed twice. The numbers are those of
`cross_entropy` on the whole logits, up to the order of summation. Beside the target a position may have soft
labels, a teacher's distribution over a few tokens with all others as one class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED_LABEL = -100
PIECE_LOGITS = 2**26  # 256 MB of float32
CACHED_LOGITS = 2**18  # of a piece that a CPU turns into gradients at once, as its cache holds so many
OVERLAP_TOP, OVERLAP_TEMPERATURE = 50, 0.7  # the sampler's defaults
LEAST_REST = 1e-6  # of a distribution outside the teacher's tokens, as far as float32 sums can tell


class SoftLabels(NamedTuple):
    """A teacher's distribution at each position, q: of its k likeliest tokens, and of all others together.

    ids (positions, k) int64; log_q (positions, k); log_rest (positions,), -inf where nothing is left; share:
    how much of the loss is theirs, the targets' is the rest. overlap: weight of a further term, the share of
    the teacher's draws that would be rejected as drafts: 1 - sum of min(q, p), both at the sampler's
    `OVERLAP_TEMPERATURE`, q over its `OVERLAP_TOP` likeliest.
    """

    ids: Tensor
    log_q: Tensor
    log_rest: Tensor
    share: float
    overlap: float = 0.0

    def piece(self, rows: slice) -> SoftLabels:
        return SoftLabels(self.ids[rows], self.log_q[rows], self.log_rest[rows], self.share, self.overlap)


def summed_nats(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    piece_logits: int = PIECE_LOGITS,
    soft: SoftLabels | None = None,
) -> Tensor:
    """Sum of -log softmax(hidden_states @ weight.T)[target], in float32; targets of -100 are left out.

    hidden_states: (positions, hidden); weight: (vocab, hidden); targets: (positions,); piece_logits: most
    logits that exist at once, though always those of one position. With soft labels each position's term is
    (1 - share) times that, plus share times the cross-entropy -sum q log p over the teacher's tokens and the
    class of all others, and the overlap's term where it has a weight.
    """
    rows = max(1, piece_logits // len(weight))
    return _SummedNats.apply(hidden_states, weight, targets, rows, soft, torch.is_grad_enabled())


def summed_nats_by(
    project: Callable[[Tensor], Tensor],
    hidden_states: Tensor,
    targets: Tensor,
    vocabulary: int,
) -> Tensor:
    """The same where logits are more than one product: `project` makes them, (rows, hidden) -> (rows, vocab).

    As what it does with gradients is not known here, each piece's logits are made again on the way back.
    """

    def nats(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(project(states).float(), wanted, ignore_index=IGNORED_LABEL, reduction="sum")

    rows = max(1, PIECE_LOGITS // vocabulary)
    pieces = zip(hidden_states.split(rows), targets.split(rows), strict=True)
    return torch.stack([checkpoint(nats, *piece, use_reentrant=False) for piece in pieces]).sum()


class _SummedNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        soft: SoftLabels | None,
        training: bool,
    ):
        wants_states, wants_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        wants_gradient = wants_states or wants_weight
        states_gradient = torch.empty_like(hidden_states) if wants_states else None
        # Summed over pieces, so never in half precision.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = hidden_states.new_zeros((), dtype=torch.float32)
        cast_weight = weight.to(_product_dtype(weight))
        for start in range(0, len(hidden_states), rows):
            piece = slice(start, start + rows)
            states = hidden_states[piece]
            logits = F.linear(states, cast_weight)
            labels = None if soft is None else soft.piece(piece)
            nats, gradient = _taken(logits, targets[piece], labels, wants_gradient)
            total += nats
            if wants_states:
                states_gradient[piece] = gradient @ cast_weight
            if wants_weight:
                weight_gradient += gradient.T @ states.to(gradient.dtype)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(states_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        states, weight = ctx.saved_tensors
        states = None if states is None else states * upstream
        weight = None if weight is None else (weight * upstream).to(ctx.weight_dtype)
        return states, weight, None, None, None, None


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Of products with it: autocast's, where there is one."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _taken(
    logits: Tensor, targets: Tensor, soft: SoftLabels | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """A piece's loss and, where it is wanted, its gradient by the logits, in their place."""
    total = logits.new_zeros((), dtype=torch.float32)
    rows = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), rows):
        few = slice(start, start + rows)
        labels, wanted = None if soft is None else soft.piece(few), targets[few]
        log_p = logits[few].float().log_softmax(-1)
        nats = F.nll_loss(log_p, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
        if labels is None:
            total += nats
        else:
            total += (1 - labels.share) * nats + labels.share * _soft_nats(log_p, wanted, labels)
        missed = None
        if labels is not None and labels.overlap:
            rejected, missed = _rejected(log_p, wanted, labels, wants_gradient)
            total += labels.overlap * rejected
        if wants_gradient:
            gradient = _logits_gradient(log_p, wanted, labels)
            logits[few] = gradient if missed is None else gradient.add_(missed, alpha=labels.overlap)
    return total, logits


def _rest(log_p: Tensor, soft: SoftLabels) -> Tensor:
    """What the model gives to all tokens but the teacher's: (positions,)."""
    return (1 - log_p.gather(1, soft.ids).exp().sum(1)).clamp(min=LEAST_REST)


def _soft_nats(log_p: Tensor, targets: Tensor, soft: SoftLabels) -> Tensor:
    q, q_rest = soft.log_q.float().exp(), soft.log_rest.float().exp()
    nats = -(q * log_p.gather(1, soft.ids)).sum(1) - q_rest * _rest(log_p, soft).log()
    return nats[targets != IGNORED_LABEL].sum()


def drawn_from(log_p: Tensor) -> Tensor:
    """Probabilities of tokens as they are sampled, the others left out: (positions, k) -> the same."""
    return (log_p.float() / OVERLAP_TEMPERATURE).softmax(-1)


def _rejected(
    log_p: Tensor, targets: Tensor, soft: SoftLabels, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum over positions of 1 - sum of min(q, p), and its gradient by logits, (positions, vocab): p_j / T
    times what p has below q, less p_j / T for every token that is below."""
    ids, q = soft.ids[:, :OVERLAP_TOP], drawn_from(soft.log_q[:, :OVERLAP_TOP])
    p = drawn_from(log_p)
    at = p.gather(1, ids)
    valid = (targets != IGNORED_LABEL)[:, None]
    below = at * ((at < q) & valid)
    rejected = ((1 - torch.minimum(at, q).sum(1)) * valid[:, 0]).sum()
    if not wants_gradient:
        return rejected, None
    gradient = p.mul_(below.sum(1, keepdim=True)).scatter_add_(1, ids, -below)
    return rejected, gradient.div_(OVERLAP_TEMPERATURE)


def _logits_gradient(log_p: Tensor, targets: Tensor, soft: SoftLabels | None) -> Tensor:
    """Softmax minus labels, (positions, vocab), nothing where the target is left out; uses up `log_p`.

    The class of all others is shared out as the model shares it: to token j outside the teacher's k it gives
    q_rest p_j / (1 - sum of the k).
    """
    valid = targets != IGNORED_LABEL
    hard = 1.0
    if soft is not None:
        hard = 1 - soft.share
        q, q_rest = soft.log_q.float().exp(), soft.log_rest.float().exp()
        taken = soft.share * q_rest / _rest(log_p, soft)  # of every p_j outside
        top = log_p.gather(1, soft.ids).exp() * taken[:, None] - soft.share * q
    gradient = log_p.exp_()
    if soft is not None:
        gradient.mul_((1 - taken)[:, None]).scatter_add_(1, soft.ids, top)
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets.clamp(min=0)] -= hard
    return gradient.mul_(valid[:, None])
