"""Conversion of a mask of chosen experts into the slots of a Routing."""

from torch import Tensor

from moeworks.ops.scoring import stable_top_k


def pack_slots(chosen_TE: Tensor, ranking_TE: Tensor, slots: int) -> Tensor:
    """int64 [T, slots]: the experts where bool `chosen` is True, best first; E in slots that stay empty.

    A token with more experts than slots keeps its best.
    """
    experts = chosen_TE.shape[1]
    ids_TK = stable_top_k(ranking_TE.masked_fill(~chosen_TE, float("-inf")), slots)
    return ids_TK.masked_fill(~chosen_TE.gather(1, ids_TK), experts)
