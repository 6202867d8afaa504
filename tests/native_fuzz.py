"""Calls the native library's entry points with broken arguments: python native_fuzz.py SEED CALLS.

Prints what it is about to do before each call, so that a crash says which one it was.
"""

import ctypes
import random
import sys

import torch
from native_cases import DIFFERENTIABLE, Case, tensors

from moeworks.ops.backends.native import _ACTIVATIONS
from moeworks.ops.native.library import Library, described, library
from moeworks.ops.native.structs import (
    EXPERT_GRADS,
    EXPERT_INPUTS,
    EXPERT_RESULTS,
    ExpertsGradStruct,
    ExpertsStruct,
    TensorStruct,
)

BIG = (2**31 - 1, 2**31, 2**33, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))


class Call:
    """Arguments of both entry points that are right, until `spoil` changes them."""

    def __init__(self, rng: random.Random) -> None:
        shared = rng.choice([0, 0, 3])
        self.case = case = Case(
            T=rng.choice([0, 1, 2, 9]),
            D=rng.choice([1, 5, 17]),
            F=rng.choice([1, 4, 19]),
            E=rng.choice([1, 3, 4]),
            K=rng.choice([1, 2]),
            routes_without_expert=1,
            activation=rng.choice(_ACTIVATIONS),
            biases=rng.random() < 0.5,
            weights_on=rng.choice(["output", "input"]),
            kept_share=rng.choice([None, 0.5]),
            shared_F=shared,
            token_gate=shared > 0 and rng.random() < 0.5,
            seed=rng.randrange(1000),
        )
        dtype = rng.choice([torch.float32, torch.bfloat16])
        inputs = tensors(case, dtype)
        self.inputs = {n: inputs["ids" if n == "expert_ids" else n] for n in EXPERT_INPUTS}
        rows, keep = case.T * case.K, rng.random() < 0.5
        self.results = {
            "y": torch.zeros_like(inputs["x"]),
            "order": torch.zeros(rows, dtype=torch.int32),
            "offsets": torch.zeros(case.E + 1, dtype=torch.int64),
            "hidden": torch.zeros(rows, inputs["up"].shape[1], dtype=dtype) if keep else None,
            "shared_hidden": torch.zeros(case.T, inputs["shared_up"].shape[0], dtype=dtype)
            if keep and shared
            else None,
        }
        wants = {n: inputs[n] is not None and rng.random() < 0.8 for n in DIFFERENTIABLE}
        self.grads = {n: torch.zeros_like(inputs[n]) if wants[n] else None for n in EXPERT_GRADS}
        self.grads = {"y": inputs["grad"], **self.grads}
        self.args = ExpertsStruct(
            *(described(t) for t in self.inputs.values()),
            case.E + case.routes_without_expert,
            _ACTIVATIONS.index(case.activation),
            case.weights_on == "input",
            *(described(t) for t in self.results.values()),
        )
        self.grad_args = ExpertsGradStruct(*(described(t) for t in self.grads.values()))
        self.threads = rng.choice([1, 2, 3])

    def run(self, lib: Library) -> tuple[int, int]:
        forward = lib._lib.mw_experts_forward(ctypes.byref(self.args), self.threads)
        backward = lib._lib.mw_experts_backward(
            ctypes.byref(self.args), ctypes.byref(self.grad_args), self.threads
        )
        return forward, backward


def spoil_descriptor(rng: random.Random, call: Call) -> tuple[str, bool]:
    """Change one property of one tensor; returns what, and whether that must be refused by the forward."""
    every = {n: getattr(call.args, n) for n in (*EXPERT_INPUTS, *EXPERT_RESULTS)}
    tensors_of = {**call.inputs, **call.results}
    name = rng.choice(
        [n for n in every if tensors_of[n] is not None and tensors_of[n].numel() > 0] or ["offsets"]
    )
    struct, tensor = every[name], tensors_of[name]
    kind = rng.choice(["null", "misaligned", "ndim", "dtype", "shape", "stride"])
    dim = rng.randrange(tensor.dim())
    if kind == "null":
        struct.data = None
        optional = ("kept", "up_bias", "down_bias", "shared_up", "shared_weights", "hidden", "shared_hidden")
        return f"{name}: NULL", name not in optional
    if kind == "misaligned":
        struct.data = (struct.data or 64) + rng.choice([1, 3])
        return f"{name}: misaligned", tensor.dtype != torch.bool
    if kind == "ndim":
        struct.ndim = rng.choice([-1, 0, 4, 5, 2**31 - 1, -(2**31)])
        return f"{name}: {struct.ndim} dimensions", True
    if kind == "dtype":
        struct.dtype = rng.choice([d for d in (-1, 0, 1, 2, 3, 4, 5, 2**31 - 1) if d != struct.dtype])
        # Another type for x makes the others wrong, where there is one that is checked against it.
        return f"{name}: dtype {struct.dtype}", True
    if kind == "shape":
        struct.shape[dim] = rng.choice([struct.shape[dim] + 1, struct.shape[dim] - 1, *BIG])
        return f"{name}: shape {list(struct.shape)}", True
    struct.stride[dim] = rng.choice([struct.stride[dim] + 1, 0, *BIG])
    return f"{name}: stride {list(struct.stride)}", struct.shape[dim] != 1


def spoil_number(rng: random.Random, call: Call) -> tuple[str, bool]:
    kind = rng.choice(["num_routes", "activation", "threads"])
    if kind == "num_routes":
        call.args.num_routes = rng.choice([-1, 0, call.case.E - 1, -(2**63)])
    elif kind == "activation":
        call.args.activation = rng.choice([-1, 5, 99, 2**31 - 1, -(2**31)])
    else:
        call.threads = rng.choice([-1, 0, 4097, 2**31 - 1, -(2**31)])
        return f"threads {call.threads}", True
    return f"{kind} {getattr(call.args, kind)}", True


def spoil_ids(rng: random.Random, call: Call) -> tuple[str, bool]:
    ids = call.inputs["expert_ids"].view(-1)
    if ids.numel() == 0:
        return "no ids", False
    bad = rng.choice([-1, call.args.num_routes, 2**31, 2**40, 2**63 - 1, -(2**63)])
    ids[rng.randrange(ids.numel())] = bad
    return f"id {bad}", True


def spoil_bools(rng: random.Random, call: Call) -> tuple[str, bool]:
    kept = call.inputs["kept"]
    if kept is not None:
        kept.view(torch.uint8).random_(0, 256)
    return "kept: bytes that are neither 0 nor 1", False


def spoil_gradient(rng: random.Random, call: Call) -> tuple[str, bool]:
    """As spoil_descriptor, of a gradient: the forward pass does not see it."""
    names = [n for n, t in call.grads.items() if t is not None and t.numel() > 0]
    if not names:
        return "no gradients", False
    name = rng.choice(names)
    struct: TensorStruct = getattr(call.grad_args, name)
    kind = rng.choice(["misaligned", "ndim", "dtype", "shape", "stride"])
    if kind == "misaligned":
        struct.data += 1
    elif kind == "ndim":
        struct.ndim = rng.choice([-1, 0, 4, 5, 2**31 - 1])
    elif kind == "dtype":
        struct.dtype = rng.choice([d for d in (-1, 0, 1, 2, 3, 5) if d != struct.dtype])
    elif kind == "shape":
        struct.shape[0] = rng.choice([struct.shape[0] + 1, *BIG])
    elif struct.shape[0] != 1:
        struct.stride[0] = rng.choice([struct.stride[0] + 1, 0, *BIG])
    return f"grad.{name}: {kind}", False


SPOILERS = (spoil_descriptor, spoil_descriptor, spoil_number, spoil_ids, spoil_bools, spoil_gradient)


def spoil_between(rng: random.Random, call: Call) -> str:
    """What the forward pass wrote for the backward one, changed."""
    name = rng.choice(["order", "offsets"])
    tensor = call.results[name]
    if tensor.numel() == 0:
        return "nothing between"
    kind = rng.choice(["one", "all", "shuffled"])
    limits = [0, 1, -1, call.case.T * call.case.K, 2**31 - 1, -(2**31)]
    if kind == "one":
        tensor[rng.randrange(tensor.numel())] = rng.choice(limits)
    elif kind == "all":
        tensor.copy_(torch.tensor([rng.choice(limits) for _ in range(tensor.numel())]))
    else:
        tensor.copy_(tensor[torch.randperm(tensor.numel())])
    return f"{name} changed: {kind}"


def report(lib: Library, status: int) -> None:
    assert status in (0, -1), status
    if status == -1:
        assert lib._lib.mw_last_error(), "an error without a message"


def main() -> None:
    rng = random.Random(int(sys.argv[1]))
    lib = library()
    assert isinstance(lib, Library), lib
    lib.use_own_threads(True)
    refused = 0
    for number in range(int(sys.argv[2])):
        call = Call(rng)
        assert number % 50 or call.run(lib) == (0, 0), (call.case, lib._lib.mw_last_error())
        if rng.random() < 0.25:
            assert lib._lib.mw_experts_forward(ctypes.byref(call.args), call.threads) == 0
            print(number, call.case, spoil_between(rng, call), flush=True)
            status = lib._lib.mw_experts_backward(
                ctypes.byref(call.args), ctypes.byref(call.grad_args), call.threads
            )
            report(lib, status)
            refused += status
            continue
        spoiled = [rng.choice(SPOILERS)(rng, call) for _ in range(rng.choice([1, 1, 2]))]
        print(number, call.case, spoiled, flush=True)
        forward, backward = call.run(lib)
        report(lib, forward)
        report(lib, backward)
        refused += forward
        if len(spoiled) == 1 and spoiled[0][1]:
            assert forward == backward == -1 or (forward == -1 and spoiled[0][0].startswith(("id", "y:"))), (
                "not refused",
                forward,
                backward,
            )
    for arguments in ((None, 1), (None, None, 1)):
        name = "mw_experts_forward" if len(arguments) == 2 else "mw_experts_backward"
        assert getattr(lib._lib, name)(*arguments) == -1
    print("refused", -refused)


if __name__ == "__main__":
    main()
