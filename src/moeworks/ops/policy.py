"""Policy gradient for routers, as functions of Routing (Clark et al. 2022, section 3).

The action of a token is its ordered list of experts, drawn one after the other without replacement
(Plackett-Luce); its reward is minus the cross-entropy of the token's own prediction.
"""

import torch
from torch import Tensor

from moeworks.ops.routing import Routing


def policy_losses(routing: Routing, token_losses_T: Tensor, baseline_T: Tensor) -> dict[str, Tensor]:
    """Sums over the valid tokens, so that micro-batches and ranks add up to the whole step.

    policy: -(r_t - b_t) log pi(experts of t), the advantage without gradient: its gradient is the
        score-function estimate of that of the expected loss (REINFORCE, Williams 1992);
    baseline: (r_t - b_t)^2, with gradient to the baseline alone;
    entropy: -H(pi_t) of the first draw.

    Args:
        token_losses_T: cross-entropies, without gradient; the reward r is minus them.
        baseline_T: b, the rewards that were expected.
    """
    logits_TE = routing.router_logits_TE
    reward_T = -token_losses_T.to(baseline_T.dtype)
    log_pi_TE = logits_TE.log_softmax(dim=1)
    surprise_T = reward_T - baseline_T
    terms = {
        "policy": -surprise_T.detach() * log_probability(logits_TE, routing.expert_ids_TK),
        "baseline": surprise_T.square(),
        "entropy": (log_pi_TE.exp() * log_pi_TE).sum(dim=1),
    }
    if routing.valid_T is None:
        return {name: values_T.sum() for name, values_T in terms.items()}
    return {name: (values_T * routing.valid_T).sum() for name, values_T in terms.items()}


def log_probability(logits_TE: Tensor, expert_ids_TK: Tensor) -> Tensor:
    """[T]: of drawing these experts in this order without replacement from softmax(logits)."""
    total_T = logits_TE.new_zeros(logits_TE.shape[0])
    remaining_TE = logits_TE
    for ids_T1 in expert_ids_TK.split(1, dim=1):
        total_T = total_T + remaining_TE.log_softmax(dim=1).gather(1, ids_T1).squeeze(1)
        # The lowest finite number instead of -inf: 0 * -inf would make the gradient NaN.
        remaining_TE = remaining_TE.scatter(1, ids_T1, torch.finfo(logits_TE.dtype).min)
    return total_T
