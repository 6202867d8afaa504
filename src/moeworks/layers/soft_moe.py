"""The Soft MoE layer: every expert works on mixtures of all tokens of a sequence."""

import math

import torch
from torch import Tensor, nn

from moeworks.config.count_soft import count_slots, soft_choice
from moeworks.config.model import MoEConfig
from moeworks.errors import check
from moeworks.layers.experts import Experts
from moeworks.layers.init import init_matrix_
from moeworks.layers.router import at_least_float32
from moeworks.ops.backends import Backend
from moeworks.ops.fixed import even_routing
from moeworks.ops.routing import RoutingContext
from moeworks.ops.soft import Rows, SoftRouting, rows_of, soft_weights


class SoftMoE(nn.Module):
    """Soft MoE (Puigcerver et al. 2023), for encoders: fully differentiable, with equal loads.

    >>> from moeworks.config import SoftChoice
    >>> config = MoEConfig(d_model=8, d_expert=16, num_experts=4, choice=SoftChoice(slots_per_expert=2))
    >>> y, routing = SoftMoE(config)(torch.randn(2, 5, 8))
    >>> y.shape, routing.dispatch_TEC.shape
    (torch.Size([2, 5, 8]), torch.Size([10, 4, 2]))

    A slot is a mixture of the tokens of a sequence, an expert works on its slots, and a token is a mixture of
    all slots' results. There is nothing to balance, and nothing that could be left out for one token: it
    is no layer for a decoder. The experts are those of MoE, on the same backends.
    """

    def __init__(self, config: MoEConfig, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.experts = Experts(config, backend)
        self.slots = nn.Parameter(
            torch.empty(config.num_experts, soft_choice(config).slots_per_expert, config.d_model)
        )
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slots start random, only their direction matters; the scale starts at 1, as published."""
        init_matrix_(self.slots)
        nn.init.ones_(self.scale)

    def forward(
        self, x: Tensor, *, valid: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, SoftRouting]:
        """Mix the tokens of each sequence.

        Args:
            x: [..., L, D], or [L, D] for one sequence.
            valid: bool [..., L], False for padding: it has no part in any slot, and its result is 0.
            sequence_ids: int64 [..., L], the sequence (packed document) of each token. None: each [L, D]
                slice of x is a sequence.

        Returns:
            y like x, and how its T tokens were mixed, in row-major order.

        Raises ConfigError for shapes that do not fit.
        """
        check(x.dim() >= 2, "x", tuple(x.shape), "must have the shape [..., L, D]")
        for name, values in (("valid", valid), ("sequence_ids", sequence_ids)):
            found = None if values is None else tuple(values.shape)
            want = tuple(x.shape[:-1])
            check(found in (None, want), name, found, f"must have the leading dimensions of x, {want}")
        if sequence_ids is None:
            # The number of sequences is explicit: with no tokens, -1 would be ambiguous.
            x_BLD = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
            valid_BL = None if valid is None else valid.reshape(x_BLD.shape[:2])
            y_BLD, dispatch_BLS, combine_BLS = self._mix(x_BLD, valid_BL)
            y, weights = y_BLD.view(x.shape), (dispatch_BLS.flatten(0, 1), combine_BLS.flatten(0, 1))
            rows, length = x_BLD.shape[:2]
            sequences_T = torch.arange(rows, device=x.device).repeat_interleave(length)
        else:
            rows_map = rows_of(sequence_ids.reshape(-1))
            y, *weights = self._mix_packed(x, valid, rows_map)
            sequences_T, rows = rows_map.sequences_T, rows_map.shape[0]
        dispatch_TEC, combine_TEC = (w.unflatten(-1, self.slots.shape[:2]) for w in weights)
        valid_T = None if valid is None else valid.reshape(-1)
        return y, SoftRouting(dispatch_TEC, combine_TEC, sequences_T, rows, valid_T)

    def looks_ahead(self) -> str | None:
        """Why a token's output depends on later tokens."""
        return self.config.choice.looks_ahead(training=self.training)

    def explain_backend(self, x: Tensor) -> str:
        """Which expert backend would serve this input, and why."""
        return self.experts.explain_backend(x.reshape(-1, x.shape[-1]))

    def _mix_packed(self, x: Tensor, valid: Tensor | None, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """`_mix` for sequences of several lengths, as rows that are padded to the longest."""
        x_TD = x.reshape(-1, x.shape[-1])
        there_T = torch.ones(x_TD.shape[:1], dtype=torch.bool, device=x.device)
        there_T = there_T if valid is None else valid.reshape(-1)
        y_BLD, dispatch_BLS, combine_BLS = self._mix(rows.fill(x_TD), rows.fill(there_T))
        return rows.read(y_BLD).view(x.shape), rows.read(dispatch_BLS), rows.read(combine_BLS)

    def _mix(self, x_BLD: Tensor, valid_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """y [B, L, D], and dispatch and combine weights [B, L, S]."""
        if valid_BL is not None:
            # Padding may hold infinity, and 0 times infinity is NaN.
            x_BLD = x_BLD.masked_fill(~valid_BL.unsqueeze(-1), 0.0)
        with torch.autocast(x_BLD.device.type, enabled=False):
            exact_BLD = at_least_float32(x_BLD)
            slots_SD = self.slots.flatten(0, 1).to(exact_BLD.dtype)
            weights = soft_weights(exact_BLD, slots_SD, self.scale.to(exact_BLD.dtype), valid_BL)
        dispatch_BLS, combine_BLS = weights
        slots_BSD = dispatch_BLS.to(x_BLD.dtype).transpose(1, 2) @ x_BLD
        y_BSD = self._run_experts(slots_BSD)
        return combine_BLS.to(y_BSD.dtype) @ y_BSD, dispatch_BLS, combine_BLS

    def _run_experts(self, slots_BSD: Tensor) -> Tensor:
        """Outputs of all slots: the sparse backends run them as tokens with one expert each, in order."""
        experts, each = self.slots.shape[:2]
        rows, _, width = slots_BSD.shape
        assert slots_BSD.shape[1] == count_slots(self.config)
        x_TD = slots_BSD.view(rows, experts, each, width).transpose(0, 1).reshape(-1, width)
        ids_T = torch.arange(experts, device=x_TD.device).repeat_interleave(rows * each)
        routing = even_routing(
            ids_T.unsqueeze(1), experts, 1.0, RoutingContext(), at_least_float32(x_TD.detach())
        )
        y_TD = self.experts(x_TD, routing)
        return y_TD.view(experts, rows, each, width).transpose(0, 1).reshape(slots_BSD.shape)
