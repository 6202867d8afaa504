"""Quantile balancing: the dual of the balanced assignment, solved by coordinate descent.

Megatron-LM (#5349) calls it quantile balancing. The problem is BASE's: the greatest sum of scores with K
experts a token and T K / E tokens an expert. Its duals are a price per token and one per expert; with the
experts' prices fixed the best price of a token is its (K+1)-th best score less prices, and with the tokens'
prices fixed that of an expert is the (T K / E + 1)-th greatest of its scores less tokens' prices.
"""

from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.ops.choices.expert_choice import cutoffs


def balancing_prices(ranking_TE: Tensor, prices_E: Tensor, top_k: int, valid_T: Tensor | None) -> Tensor:
    """float [E]: the experts' prices after one round of coordinate descent from `prices_E`.

    A token takes an expert whose score less its price is above the token's own; an expert's price is the
    margin of the best token beyond its share, so that just its share is above. Without valid tokens it is 0.
    """
    share = top_k / ranking_TE.shape[1]
    if top_k == ranking_TE.shape[1]:
        return prices_E * 0
    token_T1 = (ranking_TE - prices_E).topk(top_k + 1, dim=1).values[:, -1:]
    margin_TE = ranking_TE - token_T1
    return cutoffs(margin_TE, share, valid_T, after=1)


def bias_towards_prices(bias_E: Tensor, prices_E: Tensor, config: BalanceConfig) -> Tensor:
    """The bias after one optimizer step: bias_rate of the way to -prices, recentred if asked for.

    A constant added to all experts' prices changes no choice.
    """
    moved_E = bias_E + config.bias_rate * (-prices_E.to(bias_E.dtype) - bias_E)
    return moved_E - moved_E.mean() if config.bias_recentre else moved_E
