"""Balance losses and bias updates of a training run."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Coefficients of the balance losses; several can be on at once and 0 costs nothing.

    Every *balance* loss is 1.0 at perfect balance, per layer, and averaged over layers. None of them enters
    the reported cross-entropy. All but switch are those of the whole optimizer step, however it is cut into
    micro-batches and ranks; with accumulation, losses of sums (global_batch, device, communication, entropy,
    importance, load) therefore cost a second forward pass that finds the sums.
    """

    switch_coef: float = 0.0
    """Switch / GShard loss over each micro-batch (Fedus et al. 2021, eq. 4)."""
    global_batch_coef: float = 0.01
    """Switch loss over all ranks and accumulation steps (Qiu et al. 2025)."""
    sequence_coef: float = 0.0
    """Sequence-wise loss (DeepSeek-V3, section 2.1.2); a packed document is a sequence of its own."""
    device_coef: float = 0.0
    """Device-level loss (DeepSeek-V2, section 2.2.3); needs num_devices."""
    communication_coef: float = 0.0
    """Communication-level loss (DeepSeek-V2, section 2.2.3); needs num_devices."""
    entropy_coef: float = 0.0
    """2 - H(q) / log E for the mean router probability q."""
    importance_coef: float = 0.0
    """1 + CV^2 of the summed router probabilities (Shazeer et al. 2017, eq. 6)."""
    load_coef: float = 0.0
    """1 + CV^2 of the smooth load (Shazeer et al. 2017, appendix A); needs router.noisy_top_k."""
    z_coef: float = 0.0
    """Router z-loss, mean squared logsumexp of the logits (ST-MoE eq. 5); its best value is 0."""
    num_devices: int = 1
    """Devices that hold equal, consecutive shares of the experts, for the two device losses."""
    bias_rule: Literal["none", "sign", "proportional", "quantile"] = "none"
    """Rule that moves expert_bias in every step: by the sign or size of the surplus (loss-free balancing,
    Wang et al. 2024), or to the dual prices of the balanced assignment (quantile balancing)."""
    bias_rate: float = 1e-3
    """Size u of one step of the bias; with quantile the share of the way that a step goes, e.g. 0.1."""
    bias_recentre: bool = False
    """Whether the mean of expert_bias is kept at 0."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name.endswith("_coef"):
                check(
                    0 <= value < math.inf, f"balance.{entry.name}", value, "must be finite and not negative"
                )
        check(self.num_devices >= 1, "balance.num_devices", self.num_devices, "must be at least 1")
        check(self.bias_rate > 0, "balance.bias_rate", self.bias_rate, "must be positive")
        check(
            self.bias_rule != "quantile" or self.bias_rate <= 1,
            "balance.bias_rate",
            self.bias_rate,
            "must not exceed 1 with bias_rule = 'quantile': it is a share",
        )
        for name in ("device_coef", "communication_coef"):
            check(
                getattr(self, name) == 0 or self.num_devices > 1,
                f"balance.{name}",
                getattr(self, name),
                "needs balance.num_devices > 1",
            )
