"""Configs of the layers: which of them hold a MoE, and their norms."""

from dataclasses import dataclass
from typing import Literal

from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class LayerPatternConfig:
    """Which layers hold a MoE; the others hold a dense block."""

    first_dense: int = 0
    """Number of dense layers at the beginning (first_k_dense_replace of DeepSeek)."""
    every: int = 1
    """Distance n of MoE layers: of the layers after the dense ones every n-th, the n-th first
    (decoder_sparse_step of Qwen)."""
    explicit: tuple[int, ...] | None = None
    """Indices of the MoE layers, in the place of the two fields above. An empty list makes a dense model."""
    shortcut: bool = False
    """Whether a MoE layer has a dense block as well. The MoE reads the input of that block, and its output
    joins the stream after the next layer, so that experts may compute beside it (LongCat-Flash, section
    2.2)."""

    def moe_layers(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the MoE layers of a model with `num_layers` layers, ascending."""
        if self.explicit is not None:
            return tuple(sorted(self.explicit))
        rest = range(self.first_dense, num_layers)
        return tuple(i for n, i in enumerate(rest, 1) if n % self.every == 0)

    def check_shortcut(self, num_layers: int, placement: str) -> None:
        """Raise ConfigError where a model of this depth and these norms cannot have the shortcut."""
        if not self.shortcut:
            return
        last = num_layers - 1
        check(
            last not in self.moe_layers(num_layers),
            "model.pattern.shortcut",
            True,
            f"the MoE of layer {last}, the last one, would have no later layer to join the stream after",
        )
        check(
            placement == "pre",
            "model.pattern.shortcut",
            True,
            f"needs norm.placement = 'pre', which is {placement!r}",
        )

    def __post_init__(self) -> None:
        check(self.first_dense >= 0, "pattern.first_dense", self.first_dense, "must not be negative")
        check(self.every >= 1, "pattern.every", self.every, "must be at least 1")
        chosen = self.explicit or ()
        check(len(set(chosen)) == len(chosen), "pattern.explicit", chosen, "must name each layer once")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """The norms of the residual stream, and of queries and keys."""

    kind: Literal["rms", "layer"] = "rms"
    """Kind of norm: RMSNorm or LayerNorm."""
    bias: bool = False
    """Whether LayerNorm has a bias."""
    zero_centred: bool = False
    """Whether RMSNorm multiplies by 1 + weight (Qwen3-Next)."""
    placement: Literal["pre", "post", "sandwich"] = "pre"
    """Place of the norms: x + f(norm(x)), x + norm(f(x)) (FlexOlmo), or x + norm(f(norm(x))) (Grok-1)."""
    final_eps: float | None = None
    """Epsilon of the norm before the output projection; None is norm_eps."""

    def __post_init__(self) -> None:
        check(not self.bias or self.kind == "layer", "norm.bias", self.bias, "needs norm.kind = 'layer'")
        check(
            not self.zero_centred or self.kind == "rms",
            "norm.zero_centred",
            self.zero_centred,
            "needs norm.kind = 'rms'",
        )
        check(
            self.final_eps is None or self.final_eps > 0,
            "norm.final_eps",
            self.final_eps,
            "must be positive, or None",
        )
