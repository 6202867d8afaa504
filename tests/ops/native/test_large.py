"""Tensors of more than 2^31 elements: every index behind them is 64 bits wide.

The memory is not there: one small file is mapped again and again, and only the last part of a tensor, where a
wrapped index would not reach, has memory of its own.
"""

import ctypes
import mmap
import os
import sys

import pytest
import torch
from native_cases import Case, assert_equal, computing, needs_native, step, tensors, variants

from moeworks.ops.native.library import described
from moeworks.ops.native.structs import (
    EXPERT_GRADS,
    EXPERT_INPUTS,
    EXPERT_RESULTS,
    ExpertsGradStruct,
    ExpertsStruct,
)

pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux", reason="maps memory in a way of Linux"),
]

PART = 1 << 26  # bytes that are mapped at once
BEYOND = 2**31


class Large:
    """A float32 tensor whose parts, all but the last two, share their memory."""

    def __init__(self, *shape: int) -> None:
        size = 4 * torch.Size(shape).numel()
        parts = -(-size // PART)
        self.libc = libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.length = parts * PART
        self.address = libc.mmap(None, self.length, 0, reserve, -1, 0)
        file = os.memfd_create("large")
        os.ftruncate(file, 3 * PART)
        for i in range(parts):
            place = max(i - parts + 3, 0) * PART
            fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
            at = libc.mmap(
                self.address + i * PART, PART, mmap.PROT_READ | mmap.PROT_WRITE, fixed, file, place
            )
            assert at == self.address + i * PART, os.strerror(ctypes.get_errno())
        os.close(file)
        buffer = (ctypes.c_char * size).from_address(self.address)
        self.tensor = torch.frombuffer(buffer, dtype=torch.float32).view(shape)
        assert self.tensor.numel() > BEYOND

    def close(self) -> None:
        self.libc.munmap(self.address, self.length)


@pytest.fixture
def large():
    made: list[Large] = []

    def make(*shape: int) -> torch.Tensor:
        made.append(Large(*shape))
        return made[-1].tensor

    yield make
    for item in made:
        item.close()


def call(case: Case, inputs: dict, results: dict, grads: dict | None = None) -> None:
    every = [inputs["ids" if n == "expert_ids" else n] for n in EXPERT_INPUTS]
    results = {
        "order": torch.empty(case.T * case.K, dtype=torch.int32),
        "offsets": torch.empty(case.E + 1, dtype=torch.int64),
        **results,
    }
    activation = ("swiglu", "geglu", "relu", "gelu", "relu2").index(case.activation)
    routes = case.E + case.routes_without_expert
    args = ExpertsStruct(
        *map(described, every), routes, activation, 0, *(described(results.get(n)) for n in EXPERT_RESULTS)
    )
    with computing(threads=2) as lib:
        lib.call("mw_experts_forward", ctypes.byref(args), 2)
        if grads is not None:
            grad_args = ExpertsGradStruct(
                described(inputs["grad"]), *(described(grads.get(n)) for n in EXPERT_GRADS)
            )
            lib.call("mw_experts_backward", ctypes.byref(args), ctypes.byref(grad_args), 2)


def test_weights_and_their_gradients(large):
    small = Case(T=5, D=1024, F=1024, E=2, K=2, activation="relu")
    inputs = tensors(small)
    want = step(small, inputs, "native")
    case = variants(small, E=BEYOND // 1024**2 + 2)
    up, grad_up = large(case.E, 1024, 1024), large(case.E, 1024, 1024)
    up[-3], up[-1] = inputs["up"]
    down = torch.as_strided(up, up.shape, up.stride())  # the same memory: they are only read
    inputs["down"] = inputs["up"].clone()
    want = step(small, inputs, "native")
    routes = torch.tensor([case.E - 3, case.E - 1])
    results, x_grad = {"y": torch.empty(5, 1024)}, torch.empty(5, 1024)
    grad_up[-3:] = 7.0
    call(
        case,
        inputs | {"ids": routes[inputs["ids"]], "up": up, "down": down},
        results,
        {"up": grad_up, "x": x_grad},
    )
    got = {"y": results["y"], "x": x_grad, "up": torch.stack([grad_up[-3], grad_up[-1]])}
    assert_equal(got, {name: want[name] for name in got})
    assert not grad_up[-2].any()


def test_tokens_and_their_gradients(large):
    small = Case(T=6, D=4096, F=5, E=1, K=1, activation="relu")
    inputs = tensors(small)
    want = step(small, inputs, "native", ("x",))
    case = variants(small, T=BEYOND // 4096 + 9, routes_without_expert=1)
    x, y = large(case.T, case.D), large(case.T, case.D)
    x[-6:] = inputs["x"]
    ids = torch.ones(case.T, 1, dtype=torch.int64)
    ids[-6:] = 0
    weights = torch.ones(case.T, 1)
    weights[-6:] = inputs["weights"]
    y[-9:] = 7.0
    call(case, inputs | {"x": x, "ids": ids, "weights": weights}, {"y": y})
    assert torch.equal(y[-6:], want["y"]) and not y[-9:-6].any()
    # y is now the gradient that comes in, and x, read before it is written, the one that goes out.
    y[-6:] = inputs["grad"]
    gradient = large(case.T, case.D)
    call(case, inputs | {"x": x, "ids": ids, "weights": weights, "grad": y}, {"y": gradient}, {"x": gradient})
    assert torch.equal(gradient[-6:], want["x"]) and not gradient[-9:-6].any()


def test_hidden_rows(large):
    small = Case(T=5, D=1, F=4096, E=1, K=1, activation="relu")
    inputs = tensors(small)
    want = step(small, inputs, "native", ())["y"]
    case = variants(small, T=BEYOND // 4096 + 3)
    hidden = large(case.T, case.F)
    x, weights = torch.zeros(case.T, 1), torch.ones(case.T, 1)
    x[-5:], weights[-5:] = inputs["x"], inputs["weights"]
    y = torch.empty(case.T, 1)
    ids = torch.zeros(case.T, 1, dtype=torch.int64)
    call(case, inputs | {"x": x, "ids": ids, "weights": weights}, {"y": y, "hidden": hidden})
    assert torch.equal(y[-5:], want) and not y[:-5].any()
    assert torch.equal(hidden[-5:], inputs["x"] * inputs["up"][0, :, 0])
