"""Cross-entropy of an output embedding without the logits of a whole batch.

Logits of every head at every position over a vocabulary of 50,000 are what fills a GPU in training. They are
made here for a piece of the positions at a time; the piece's gradients are taken at once, while its logits
are there, so nothing of the vocabulary's size is kept and nothing is computed twice. The numbers are those of
`cross_entropy` on the whole logits, up to the order of summation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
PIECE_LOGITS = 2**26  # 256 MB of float32


def summed_nats(
    hidden_states: Tensor, weight: Tensor, targets: Tensor, piece_logits: int = PIECE_LOGITS
) -> Tensor:
    """Sum of -log softmax(hidden_states @ weight.T)[target], in float32; targets of -100 are left out.

    hidden_states: (positions, hidden); weight: (vocab, hidden); targets: (positions,); piece_logits: most
    logits that exist at once, though always those of one position.
    """
    rows = max(1, piece_logits // len(weight))
    return _SummedNats.apply(hidden_states, weight, targets, rows, torch.is_grad_enabled())


class _SummedNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states: Tensor, weight: Tensor, targets: Tensor, rows: int, training: bool):
        wants_states, wants_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        states_gradient = torch.empty_like(hidden_states) if wants_states else None
        # Summed over pieces, so never in half precision.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = hidden_states.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden_states), rows):
            piece = slice(start, start + rows)
            states, wanted = hidden_states[piece], targets[piece]
            logits = F.linear(states, weight)  # in autocast's precision where there is one
            log_p = logits.float().log_softmax(-1)
            total += F.nll_loss(log_p, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
            if wants_states or wants_weight:
                gradient = _logits_gradient(log_p, wanted).to(logits.dtype)
                if wants_states:
                    states_gradient[piece] = gradient @ weight.to(logits.dtype)
                if wants_weight:
                    weight_gradient += gradient.T @ states.to(logits.dtype)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(states_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        states, weight = ctx.saved_tensors
        states = None if states is None else states * upstream
        weight = None if weight is None else (weight * upstream).to(ctx.weight_dtype)
        return states, weight, None, None, None


def _logits_gradient(log_p: Tensor, targets: Tensor) -> Tensor:
    """Softmax minus one-hot, (positions, vocab), nothing where the target is left out; uses up `log_p`."""
    valid = targets != IGNORED_LABEL
    gradient = log_p.exp_()
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets.clamp(min=0)] -= 1.0
    return gradient.mul_(valid[:, None])
