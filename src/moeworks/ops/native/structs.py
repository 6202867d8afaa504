"""The structures of native/moeworks.h, field by field; the loader compares their sizes with the library's."""

import ctypes

_MAX_DIMS = 4

EXPERT_INPUTS = (
    "x", "weights", "expert_ids", "kept", "up", "down", "up_bias", "down_bias",
    "shared_up", "shared_down", "shared_weights",
)  # fmt: skip
"""Tensors of mw_experts that the forward pass reads."""
EXPERT_RESULTS = ("y", "order", "offsets", "hidden", "shared_hidden")
"""Tensors of mw_experts that the forward pass writes."""
EXPERT_GRADS = (
    "x", "weights", "up", "down", "up_bias", "down_bias", "shared_up", "shared_down", "shared_weights",
)  # fmt: skip
"""Inputs that have a gradient in mw_experts_grad."""
ADAMW_TENSORS = ("param", "grad", "exp_avg", "exp_avg_sq")
ADAMW_NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay", "step")


class TensorStruct(ctypes.Structure):
    """mw_tensor: where a tensor lies, and what it is."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * _MAX_DIMS),
        ("stride", ctypes.c_int64 * _MAX_DIMS),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )

    @classmethod
    def of(cls, address: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: int) -> "TensorStruct":
        """The description of a tensor of at most four dimensions; strides count elements."""
        dims = ctypes.c_int64 * _MAX_DIMS
        return cls(address or None, dims(*shape), dims(*stride), len(shape), dtype)


class ExpertsStruct(ctypes.Structure):
    """mw_experts: inputs and results of the experts' forward pass."""

    _fields_ = (
        *((name, TensorStruct) for name in EXPERT_INPUTS),
        ("num_routes", ctypes.c_int64),
        ("activation", ctypes.c_int32),
        ("weigh_input", ctypes.c_int32),
        *((name, TensorStruct) for name in EXPERT_RESULTS),
    )


class ExpertsGradStruct(ctypes.Structure):
    """mw_experts_grad: gradients of the output and of the inputs."""

    _fields_ = tuple((name, TensorStruct) for name in ("y", *EXPERT_GRADS))


class AdamWItemStruct(ctypes.Structure):
    """mw_adamw_item: one tensor of an AdamW step."""

    _fields_ = (
        *((name, TensorStruct) for name in ADAMW_TENSORS),
        *((name, ctypes.c_double) for name in ADAMW_NUMBERS),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "mw_tensor": TensorStruct,
    "mw_experts": ExpertsStruct,
    "mw_experts_grad": ExpertsGradStruct,
    "mw_adamw_item": AdamWItemStruct,
}
"""Structures by their names in the header."""
