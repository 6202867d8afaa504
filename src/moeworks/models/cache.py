"""The key/value cache of a decoder."""

import torch
from torch import Tensor

from moeworks.config.model import GQAConfig, ModelConfig
from moeworks.errors import check


class LayerKVCache:
    """Keys and values of one layer, in place, up to a fixed length."""

    def __init__(
        self, shape_BGSP: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._k = torch.empty(shape_BGSP, dtype=dtype, device=device)
        self._v = torch.empty_like(self._k)
        self.length = 0

    def append(self, k_BGLP: Tensor, v_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return views of all so far."""
        end = self.length + k_BGLP.shape[2]
        check(end <= self._k.shape[2], "cache length", end, f"exceeds its size, {self._k.shape[2]} positions")
        self._k[:, :, self.length : end] = k_BGLP
        self._v[:, :, self.length : end] = v_BGLP
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]


class KVCache:
    """One LayerKVCache per layer of `config`, for `batch` sequences of up to `max_len` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        assert isinstance(config.attention, GQAConfig)
        shape = (batch, config.attention.num_kv_heads, max_len, config.head_dim)
        self.layers = [LayerKVCache(shape, dtype, torch.device(device)) for _ in range(config.num_layers)]

    @property
    def length(self) -> int:
        """Positions held."""
        return self.layers[0].length
