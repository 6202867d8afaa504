"""What the model is fed: one record of tensors."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens and, for each, the token that follows."""

    tokens_BL: Tensor
    """int64 inputs."""
    targets_BL: Tensor
    """int64, the next token of each; to be ignored where valid_BL is False."""
    document_ids_BL: Tensor
    """int64; two tokens of a row belong to one document exactly if these are equal."""
    domain_ids_BL: Tensor
    """int64, index into PreparedCorpus.domains of the document that the input token belongs to."""
    valid_BL: Tensor
    """bool, False where the row is padding."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})
