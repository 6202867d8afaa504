"""The gated delta rule as a layer (Qwen3-Next's linear attention, Kimi delta attention)."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeworks.config.mixers import GatedDeltaConfig
from moeworks.config.model import ModelConfig
from moeworks.layers.init import make_linear
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.norm import RMSNorm
from moeworks.ops.delta import DeltaInputs, causal_conv, gated_delta


@runtime_checkable
class RecurrentCache(Protocol):
    """State that a recurrence keeps of earlier positions."""

    conv: Tensor | None
    """[B, kernel - 1, C], the last inputs of the convolution; None before the first."""
    state: Tensor | None
    """[B, H, dk, dv]; None before the first token."""

    def advance(self, conv: Tensor, state: Tensor, length: int) -> None:
        """Store the state after `length` more tokens."""
        ...


class GatedDeltaNet(nn.Module):
    """Gated delta rule: convolved queries, keys and values, decays, a step size per head, a gated output."""

    row_wise = ("conv",)
    """Parameters whose rows are independent filters, not a matrix that maps one space to another."""

    def __init__(self, config: ModelConfig, mixer: GatedDeltaConfig) -> None:
        super().__init__()
        self.mixer = mixer
        channels, heads = 2 * mixer.key_width + mixer.value_width, mixer.num_value_heads
        self.qkv_proj = make_linear(config.d_model, channels)
        self.gate_latent_proj = self.decay_latent_proj = None
        if mixer.latent_rank is not None:
            self.gate_latent_proj = make_linear(config.d_model, mixer.latent_rank)
            self.decay_latent_proj = make_linear(config.d_model, mixer.latent_rank)
        source = mixer.latent_rank or config.d_model
        self.gate_proj = make_linear(source, mixer.value_width)
        self.beta_proj = make_linear(config.d_model, heads)
        self.decay_proj = make_linear(source, mixer.num_decays)
        self.conv = nn.Parameter(torch.empty(channels, mixer.conv_kernel))
        self.decay_bias = nn.Parameter(torch.empty(mixer.num_decays))
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(mixer.value_head_dim, eps=config.norm_eps)
        self.o_proj = make_linear(mixer.value_width, config.d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw rates from (0, 16), set biases to 1 (Qwen3-Next), and draw the convolution like nn.Conv1d."""
        bound = self.mixer.conv_kernel**-0.5
        nn.init.uniform_(self.conv, -bound, bound)
        nn.init.ones_(self.decay_bias)
        self.log_rate.uniform_(0.01, 16).log_()

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.o_proj.weight,)

    def forward(self, x_BLD: Tensor, inputs: MixerInputs, cache: RecurrentCache | None = None) -> Tensor:
        """y [B, L, D]."""
        mixer, length = self.mixer, x_BLD.shape[1]
        if inputs.padding_BL is not None:
            x_BLD = x_BLD.masked_fill(inputs.padding_BL.unsqueeze(-1), 0.0)
        segments_BS = _segments(inputs.document_ids_BS)
        mixed = self.qkv_proj(x_BLD)
        if cache is not None and cache.conv is not None:
            mixed = torch.cat([cache.conv.to(mixed.dtype), mixed], dim=1)
        near = None if segments_BS is None else segments_BS[:, -mixed.shape[1] :]
        convolved = F.silu(causal_conv(mixed, self.conv, near))[:, -length:]
        segments_BL = None if segments_BS is None else segments_BS[:, -length:]
        state = None if cache is None else _state_of_document(cache.state, segments_BS, length)
        out, state = gated_delta(self._inputs(convolved, x_BLD), state, segments_BL)
        if cache is not None:
            cache.advance(mixed[:, max(mixed.shape[1] - mixer.conv_kernel + 1, 0) :], state, length)
        source = x_BLD if self.gate_latent_proj is None else self.gate_latent_proj(x_BLD)
        gate = self.gate_proj(source).unflatten(-1, (mixer.num_value_heads, -1))
        gate = F.silu(gate) if mixer.gate_activation == "silu" else torch.sigmoid(gate)
        return self.o_proj((self.norm(out.transpose(1, 2)) * gate).flatten(2))

    def _inputs(self, convolved: Tensor, x_BLD: Tensor) -> DeltaInputs:
        mixer = self.mixer
        q, k, v = convolved.split([mixer.key_width, mixer.key_width, mixer.value_width], dim=-1)
        repeats = mixer.num_value_heads // mixer.num_key_heads
        q, k = (
            x.unflatten(-1, (mixer.num_key_heads, -1)).repeat_interleave(repeats, dim=2).transpose(1, 2)
            for x in (q, k)
        )
        v = v.unflatten(-1, (mixer.num_value_heads, -1)).transpose(1, 2)
        decay = self.decay_proj(x_BLD if self.decay_latent_proj is None else self.decay_latent_proj(x_BLD))
        wide = decay if decay.dtype == torch.float64 else decay.float()
        rate = self.log_rate.to(wide.dtype).exp()
        log_decay = F.softplus(wide + self.decay_bias.to(wide.dtype))
        if mixer.decay == "channel":
            log_decay, rate = log_decay.unflatten(-1, (mixer.num_value_heads, -1)), rate[:, None]
        log_decay = -rate * log_decay
        beta = torch.sigmoid(self.beta_proj(x_BLD))
        return DeltaInputs(q, k, v, log_decay.transpose(1, 2), beta.transpose(1, 2))


def _state_of_document(state: Tensor | None, segments_BS: Tensor | None, length: int) -> Tensor | None:
    """The state before the last `length` tokens, 0 in rows where these begin a document."""
    if state is None or segments_BS is None:
        return state
    goes_on_B = segments_BS[:, -length - 1] == segments_BS[:, -length]
    return state.masked_fill(~goes_on_B[:, None, None, None], 0.0)


def _segments(document_ids_BS: Tensor | None) -> Tensor | None:
    """int64 [B, S]: the number of boundaries before each token."""
    if document_ids_BS is None:
        return None
    new = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    return F.pad(new.long().cumsum(dim=1), (1, 0))
