"""Inputs of the experts, for tests of the native library: of any shape, with every option."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from moeworks.ops.backends import Backend, run_experts
from moeworks.ops.experts import ExpertWeights, SharedWeights
from moeworks.ops.native.library import Library, library
from moeworks.ops.routing import Routing

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native library: {library()}" if isinstance(library(), str) else ""
)

GATED = ("swiglu", "geglu")
DIFFERENTIABLE = (
    "x", "weights", "up", "down", "up_bias", "down_bias", "shared_up", "shared_down", "shared_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What to compute; `seed` chooses the values."""

    T: int = 37
    D: int = 24
    F: int = 20
    E: int = 5
    K: int = 2
    routes_without_expert: int = 0
    activation: str = "swiglu"
    biases: bool = False
    weights_on: str = "output"
    kept_share: float | None = None
    """None: nothing was dropped."""
    favourite: int | None = None
    """The route that every token takes first."""
    shared_F: int = 0
    token_gate: bool = False
    recompute: bool = False
    seed: int = 0


def tensors(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """The inputs by the names of DIFFERENTIABLE, "ids", "kept", and "grad", that of the output."""
    random = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random) * std).to(dtype)

    T, D, F, E = case.T, case.D, case.F, case.E
    U, shared_U = (size * (2 if case.activation in GATED else 1) for size in (F, case.shared_F))
    shared = case.shared_F > 0
    routes = E + case.routes_without_expert
    order = torch.rand(T, routes, generator=random)
    if case.favourite is not None:
        order[:, case.favourite] = 2.0
    kept = None if case.kept_share is None else torch.rand(T, case.K, generator=random) < case.kept_share
    return {
        "x": normal(T, D),
        "weights": torch.rand(T, case.K, generator=random) + 0.1,
        "up": normal(E, U, D, std=D**-0.5),
        "down": normal(E, D, F, std=F**-0.5),
        "up_bias": normal(E, U, std=0.3) if case.biases else None,
        "down_bias": normal(E, D, std=0.3) if case.biases else None,
        "shared_up": normal(shared_U, D, std=D**-0.5) if shared else None,
        "shared_down": normal(D, case.shared_F, std=max(case.shared_F, 1) ** -0.5) if shared else None,
        "shared_weights": torch.rand(T, generator=random) + 0.1 if shared and case.token_gate else None,
        "ids": order.topk(case.K, dim=1).indices,
        "kept": kept,
        "grad": normal(T, D),
    }


def converted(inputs: dict[str, Tensor | None], convert: Callable[[Tensor], Tensor]) -> dict:
    """The inputs with every floating-point tensor converted."""
    return {k: convert(t) if t is not None and t.is_floating_point() else t for k, t in inputs.items()}


def step(
    case: Case, inputs: dict[str, Tensor | None], backend: Backend, wanted: tuple[str, ...] = DIFFERENTIABLE
) -> dict[str, Tensor]:
    """The output, "y", and the gradients of the inputs that are `wanted` and there."""
    leaves = {
        name: t.detach().requires_grad_(name in wanted) if t is not None and name in DIFFERENTIABLE else t
        for name, t in inputs.items()
    }
    y = forward(case, leaves, backend)
    result = {"y": y.detach()}
    differentiated = [n for n in wanted if leaves[n] is not None]
    if differentiated:
        grads = torch.autograd.grad(
            y, [leaves[n] for n in differentiated], inputs["grad"], materialize_grads=True
        )
        result |= dict(zip(differentiated, grads, strict=True))
    return result


def forward(case: Case, inputs: dict[str, Tensor | None], backend: Backend) -> Tensor:
    """y [T, D]."""
    shared = None
    if inputs["shared_up"] is not None:
        shared = SharedWeights(inputs["shared_up"], inputs["shared_down"], inputs["shared_weights"])
    experts = ExpertWeights(
        *(inputs[name] for name in ("up", "down", "up_bias", "down_bias")),
        activation=case.activation,
        weights_on=case.weights_on,
        num_without_weights=case.routes_without_expert,
        recompute=case.recompute,
    )
    scores = torch.zeros(case.T, case.E + case.routes_without_expert)
    routing = Routing(inputs["ids"], inputs["weights"], scores, scores, kept_TK=inputs["kept"])
    return run_experts(inputs["x"], routing, experts, backend, shared)


def reference(case: Case, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The same by the plain loop in float64."""
    return step(case, converted(inputs, Tensor.double), "reference")


def magnitudes(case: Case, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Sums of the magnitudes of the terms: what rounding errors are relative to where terms cancel.

    With no negative number in it the same computation has terms of at least half that size and none of them
    cancel: silu, gelu and relu grow with their argument, and slopes lie between -0.13 and 1.13.
    """
    return reference(case, converted(inputs, torch.abs))


def assert_close(
    got: dict[str, Tensor], want: dict[str, Tensor], scale: dict[str, Tensor], bar: float = 1e-6
) -> None:
    """The norm of each error is at most `bar` of the norm in `scale`."""
    assert got.keys() == want.keys()
    errors = {}
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        error, norm = (got[name].double() - value).norm().item(), scale[name].norm().item()
        assert norm > 0 or error == 0, name
        errors[name] = error / norm if norm > 0 else 0.0
    assert max(errors.values(), default=0.0) <= bar, errors


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """The same bits."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def instruction_sets() -> list[str]:
    """Those of this build and processor."""
    lib = library()
    if not isinstance(lib, Library):
        return []
    before, found = lib.isa, []
    for name in ("avx512", "avx2", "neon", "portable"):
        try:
            lib.use_isa(name)
        except ValueError:
            continue
        found.append(name)
    lib.use_isa(before)
    return found


@contextmanager
def computing(isa: str | None = None, threads: int | None = None, own: bool = False) -> Generator[Library]:
    """The library, for a while with another instruction set, number of threads, or threads of its own."""
    lib = library()
    assert isinstance(lib, Library)
    before = lib.isa, torch.get_num_threads()
    try:
        lib.use_isa(isa or before[0])
        torch.set_num_threads(threads or before[1])
        lib.use_own_threads(own)
        yield lib
    finally:
        lib.use_isa(before[0])
        torch.set_num_threads(before[1])
        lib.use_own_threads(False)


def variants(case: Case, **options: object) -> Case:
    """The case with some fields replaced."""
    assert options.keys() <= {f.name for f in fields(Case)}
    return replace(case, **options)
