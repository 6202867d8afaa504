"""The C interface of the step around the experts: one broken property of any argument is an error."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from native_cases import computing, needs_native
from torch import Tensor

from moeworks.ops.native.library import Library, described
from moeworks.ops.native.structs import AdamWItemStruct, TensorStruct

pytestmark = needs_native

T, E, K, P, L = 4, 6, 2, 8, 3
BIG = (2**31 - 1, 2**31, 2**33, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))
Call = Callable[[Library, list], int]


def _refs(structs: list) -> list:
    return [ctypes.byref(s) for s in structs]


def _adamw(lib: Library, structs: list) -> int:
    item = AdamWItemStruct(*structs, 0.1, 0.9, 0.95, 1e-8, 0.0, 1.0)
    return lib._lib.mw_adamw(ctypes.byref(item), ctypes.c_int64(1), ctypes.c_double(1.0), 2)


CALLS: dict[str, tuple[list[Tensor], Call]] = {
    "top_k": (
        [torch.randn(T, E), torch.zeros(T, K, dtype=torch.int64)],
        lambda lib, s: lib._lib.mw_top_k(*_refs(s), 2),
    ),
    "cross_entropy": (
        [torch.randn(T, E), torch.zeros(T, dtype=torch.int64), torch.ones(T), torch.zeros(T)],
        lambda lib, s: lib._lib.mw_cross_entropy(*_refs(s), 1, 2),
    ),
    "rms_norm": (
        [torch.randn(T, P), torch.ones(P), torch.zeros(T, P), torch.zeros(T)],
        lambda lib, s: lib._lib.mw_rms_norm(*_refs(s[:2]), ctypes.c_double(1e-6), *_refs(s[2:]), 2),
    ),
    "rms_norm_backward": (
        [
            torch.randn(T, P),
            torch.randn(T, P),
            torch.ones(P),
            torch.ones(T),
            torch.zeros(T, P),
            torch.ones(P),
        ],
        lambda lib, s: lib._lib.mw_rms_norm_backward(*_refs(s), 2),
    ),
    "rope": (
        [torch.randn(T, P), torch.randn(2, L, P // 2), torch.zeros(T, P)],
        lambda lib, s: lib._lib.mw_rope(*_refs(s[:2]), ctypes.c_int64(1), 0, *_refs(s[2:]), 2),
    ),
    "adamw": ([torch.ones(9), torch.ones(9), torch.ones(9), torch.ones(9)], _adamw),
}
OPTIONAL = {("rms_norm", 1), ("rms_norm_backward", 2), ("rms_norm_backward", 5)}


def _spoiled(struct: TensorStruct, tensor: Tensor) -> list[tuple[str, Callable[[TensorStruct], None]]]:
    """Everything that can be wrong about a description by itself."""

    def setting(name: str, value: int, index: int | None = None) -> Callable[[TensorStruct], None]:
        def apply(s: TensorStruct) -> None:
            if index is None:
                setattr(s, name, value)
            else:
                getattr(s, name)[index] = value

        return apply

    ways = [(f"dtype {code}", setting("dtype", code)) for code in (*range(-1, 8), 99) if code != struct.dtype]
    ways += [
        (f"ndim {n}", setting("ndim", n)) for n in (-1, 0, 1, 2, 3, 4, 5, 2**31 - 1) if n != tensor.dim()
    ]
    for index in range(tensor.dim()):
        ways += [(f"shape[{index}] {n}", setting("shape", n, index)) for n in (*BIG, tensor.shape[index] + 1)]
        ways += [(f"stride[{index}] {n}", setting("stride", n, index)) for n in (*BIG, 0, 7)]
    ways.append(("misaligned", setting("data", tensor.data_ptr() + 1)))
    return ways


@pytest.mark.parametrize("name", CALLS)
def test_one_broken_property_is_refused(name: str) -> None:
    tensors, call = CALLS[name]
    with computing() as lib:
        assert call(lib, [described(t) for t in tensors]) == 0
        for number, tensor in enumerate(tensors):
            for what, spoil in _spoiled(described(tensor), tensor):
                # float64 is a dtype that values may have; their strides count elements, so it only reads
                # further where a test cannot know: the description must be true about the dtype.
                if name == "top_k" and number == 0 and what == "dtype 5":
                    continue
                structs = [described(t) for t in tensors]
                spoil(structs[number])
                assert call(lib, structs) == -1, f"argument {number}: {what}"
                assert lib._lib.mw_last_error()


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_tensor_is_refused_unless_it_may_be_missing(name: str) -> None:
    tensors, call = CALLS[name]
    with computing() as lib:
        for number in range(len(tensors)):
            structs = [described(None if i == number else t) for i, t in enumerate(tensors)]
            assert call(lib, structs) == (0 if (name, number) in OPTIONAL else -1)


@pytest.mark.parametrize("threads", [0, -1, 4097])
def test_threads_out_of_range_are_refused(threads: int) -> None:
    values, ids = (described(t) for t in CALLS["top_k"][0])
    with computing() as lib:
        assert lib._lib.mw_top_k(ctypes.byref(values), ctypes.byref(ids), threads) == -1
        assert lib._lib.mw_top_k(None, ctypes.byref(ids), 1) == -1


def test_an_odd_sum_of_squares() -> None:
    total = ctypes.c_double(7.0)
    with computing() as lib:
        assert lib._lib.mw_sum_of_squares(None, ctypes.c_int64(0), ctypes.byref(total), 1) == 0
        assert total.value == 0.0
        assert lib._lib.mw_sum_of_squares(None, ctypes.c_int64(1), ctypes.byref(total), 1) == -1
        assert lib._lib.mw_sum_of_squares(None, ctypes.c_int64(-1), ctypes.byref(total), 1) == -1
