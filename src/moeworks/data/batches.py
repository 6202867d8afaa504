"""Input of one training or evaluation step: one record of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens and, for each, the token that follows."""

    tokens_BL: Tensor
    """int64: token ids of the inputs."""
    targets_BL: Tensor
    """int64, the token after each input token; to be ignored where valid_BL is False."""
    document_ids_BL: Tensor
    """int64; two tokens of a row belong to one document exactly if these are equal."""
    domain_ids_BL: Tensor
    """int64, index into PreparedCorpus.domains of the document that the input token belongs to."""
    valid_BL: Tensor
    """bool: False where a row is padding."""
    token_types_BL: Tensor | None = None
    """int64, the type of each input token, for models whose experts are in pools; None: unknown."""
    padded: bool = True
    """False promises that valid_BL is True everywhere, and spares what padding needs."""

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def typed(self, types: Sequence[int]) -> "Batch":
        """The batch with each token's type, from the types of the domains; unchanged if there are none."""
        if not types:
            return self
        table = torch.tensor(types, device=self.domain_ids_BL.device)
        return replace(self, token_types_BL=table[self.domain_ids_BL])
