"""Cross-entropy of a linear head, without the logits of all tokens at once.

Logits [T, V] of a batch are most of a small model's memory. Here they exist for a chunk of tokens at a time,
and where gradients are wanted the forward pass computes them along (Wijmans et al. 2024, arXiv 2411.09009,
section 4, does it in one kernel), so that nothing is computed twice.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.ops.native.cross_entropy import cross_entropy_
from moeworks.ops.native.use import serving

CHUNK_CPU = 2**21
"""Logits that exist at a time: few enough for the processor's last cache."""
CHUNK_GPU = 2**27
CHUNK_ROWS = 256
"""But at least as many tokens: each chunk reads the head, and reads and writes its gradient."""


def linear_cross_entropy(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, scale_T: Tensor) -> Tensor:
    """sum_t scale_t * cross-entropy_t of logits hidden @ head^T, a scalar in float32 (float64 for float64).

    Args:
        hidden_TD: in the dtype of the product; logits are rounded to it, as a linear layer's.
        head_VD: converted to that dtype; its gradient is summed over chunks in float32.
        targets_T: int64, all within the vocabulary.
        scale_T: weight of each token's loss, 0 for padding; carries no gradient.

    The gradients exist when this returns: it is for a loss that is differentiated once.
    """
    return linear_cross_entropies(hidden_TD, head_VD, targets_T, scale_T)[0]


def linear_cross_entropies(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, scale_T: Tensor
) -> tuple[Tensor, Tensor]:
    """linear_cross_entropy, and [T] the scaled losses that it is the sum of, without gradient."""
    scale_T = scale_T.to(_loss_dtype(hidden_TD))
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad):
        return _LinearCrossEntropy.apply(hidden_TD, head_VD, targets_T, scale_T)
    losses_T = token_cross_entropies(hidden_TD, head_VD, targets_T) * scale_T
    return losses_T.sum(), losses_T


@torch.no_grad()
def token_cross_entropies(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """[T], each token's cross-entropy in float32 (float64 for float64), without gradients."""
    dtype = _loss_dtype(hidden_TD)
    losses_T = hidden_TD.new_empty(targets_T.shape, dtype=dtype)
    ones_T = torch.ones_like(losses_T)
    for _, _, _ in _chunks(hidden_TD, head_VD.to(hidden_TD.dtype), targets_T, ones_T, losses_T, False):
        pass
    return losses_T


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, scale_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        want_hidden, want_head, *_ = ctx.needs_input_grad
        head = head_VD.to(hidden_TD.dtype)
        losses_T = torch.empty_like(scale_T)
        grad_TD = torch.empty_like(hidden_TD) if want_hidden else None
        grad_VD = torch.zeros_like(head_VD, dtype=scale_T.dtype) if want_head else None
        for rows, hidden, grad in _chunks(hidden_TD, head, targets_T, scale_T, losses_T, True):
            grad = grad.to(hidden.dtype)
            if grad_TD is not None:
                torch.mm(grad, head, out=grad_TD[rows])
            if grad_VD is None:
                continue
            if grad_VD.dtype == hidden.dtype:
                grad_VD.addmm_(grad.t(), hidden)
            else:
                grad_VD += torch.mm(grad.t(), hidden)
        if grad_VD is not None:
            grad_VD = grad_VD.to(head_VD.dtype)
        ctx.save_for_backward(grad_TD, grad_VD)
        ctx.mark_non_differentiable(losses_T)
        return losses_T.sum(), losses_T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad, _ = grad_outputs
        grads = (None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors)
        return *grads, None, None


def _chunks(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, scale_T: Tensor, losses_T: Tensor, gradient: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Fill `losses_T`, chunk by chunk; yields rows, their hidden states and the gradient of their logits.

    A gradient is valid until the next one. Autocast is off: the dtypes are those that the caller chose.
    """
    tokens, vocabulary = hidden_TD.shape[0], head_VD.shape[0]
    limit = CHUNK_GPU if hidden_TD.is_cuda else CHUNK_CPU
    step = max(CHUNK_ROWS, limit // vocabulary)
    buffer = hidden_TD.new_empty(min(step, tokens), vocabulary)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        for start in range(0, tokens, step):
            rows = slice(start, min(start + step, tokens))
            hidden = hidden_TD[rows]
            logits = torch.mm(hidden, head_VD.t(), out=buffer[: hidden.shape[0]]).to(losses_T.dtype)
            _losses_(logits, targets_T[rows], scale_T[rows], losses_T[rows], gradient)
            yield rows, hidden, logits


def _losses_(logits: Tensor, targets: Tensor, scale: Tensor, losses: Tensor, gradient: bool) -> None:
    """Write the scaled losses of a chunk and, with `gradient`, their gradient over the logits."""
    lib = serving(logits, scale, losses)
    if lib is not None:
        cross_entropy_(lib, logits, targets.contiguous(), scale, losses, gradient)
        return
    log_probs = F.log_softmax(logits, dim=1)
    torch.mul(-log_probs.gather(1, targets[:, None]).squeeze(1), scale, out=losses)
    if gradient:
        torch.mul(log_probs.exp_(), scale[:, None], out=logits)
        logits.scatter_add_(1, targets[:, None], -scale[:, None])


def _loss_dtype(hidden_TD: Tensor) -> torch.dtype:
    return torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
