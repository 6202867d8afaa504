"""The native backend in the ways that autograd, torch.compile and programs use it."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from native_cases import (
    DIFFERENTIABLE,
    Case,
    assert_close,
    assert_equal,
    computing,
    forward,
    magnitudes,
    needs_native,
    reference,
    step,
    tensors,
    variants,
)
from random_layers import gradients, make_config, random_moe
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from moeworks.errors import ConfigError
from moeworks.ops.backends import choose_backend, native
from moeworks.ops.backends.native import _backward, _forward
from moeworks.ops.experts import ExpertWeights
from moeworks.ops.native.structs import EXPERT_INPUTS
from moeworks.ops.native.use import serving

pytestmark = needs_native

TESTS = Path(__file__).parents[2]

FULL = Case(
    T=29,
    D=12,
    F=10,
    E=4,
    K=3,
    routes_without_expert=1,
    biases=True,
    kept_share=0.8,
    shared_F=6,
    token_gate=True,
)  # fmt: skip
CASES = {
    "full": FULL,
    "plain": Case(T=29, D=12, F=10),
    "on_input": variants(FULL, weights_on="input", activation="relu2", shared_F=0, token_gate=False),
    "recompute": variants(FULL, recompute=True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_one_gradient_alone_is_what_it_is_among_all(name):
    for case in (FULL, CASES["recompute"], variants(FULL, weights_on="input")):
        inputs = tensors(case)
        want = step(case, inputs, "native")
        assert_equal(step(case, inputs, "native", (name,)), {"y": want["y"], name: want[name]})
        others = tuple(n for n in DIFFERENTIABLE if n != name)
        assert_equal(step(case, inputs, "native", others), {k: want[k] for k in want if k != name})


def test_without_gradients_no_graph_and_the_same_output():
    inputs = tensors(FULL)
    want = step(FULL, inputs, "native")["y"]
    assert torch.equal(step(FULL, inputs, "native", ())["y"], want)
    leaves = {k: t.clone().requires_grad_() if k in DIFFERENTIABLE else t for k, t in inputs.items()}
    with torch.no_grad():
        y = forward(FULL, leaves, "native")
    assert not y.requires_grad and torch.equal(y, want)
    with torch.inference_mode():
        assert torch.equal(forward(FULL, leaves, "native"), want)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values, every other element of a larger tensor, dimensions in another order in memory."""
    order = list(reversed(range(t.dim())))
    wide = torch.empty(*(2 * t.shape[i] for i in order), dtype=t.dtype)
    view = wide.permute(order)[tuple(slice(None, None, 2) for _ in order)]
    view.copy_(t)
    assert t.numel() <= 1 or not view.is_contiguous()
    return view


@every_case
def test_inputs_and_gradients_of_any_strides(case):
    inputs = tensors(case)
    want = step(case, inputs, "native")
    got = step(case, {k: None if t is None else strided(t) for k, t in inputs.items()}, "native")
    assert_equal(got, want)


def test_expanded_inputs_and_gradients():
    case = FULL
    inputs = tensors(case)
    rows = {"x": (1, case.D), "weights": (case.T, 1), "up_bias": (1, 2 * case.F), "shared_weights": (1,)}
    for name, shape in rows.items():
        start = inputs[name][tuple(slice(0, n) for n in shape)]
        inputs[name] = start.expand(inputs[name].shape)
    inputs["grad"] = torch.ones(()).expand(case.T, case.D)
    assert_close(step(case, inputs, "native"), reference(case, inputs), magnitudes(case, inputs))


@every_case
def test_a_graph_may_be_used_twice(case):
    inputs = tensors(case)
    want = step(case, inputs, "native")
    leaves = {k: t.clone().requires_grad_() if t is not None and k in want else t for k, t in inputs.items()}
    y = forward(case, leaves, "native")
    names = [n for n in want if n != "y"]
    for _ in range(2):
        got = torch.autograd.grad(y, [leaves[n] for n in names], inputs["grad"], retain_graph=True)
        assert_equal(dict(zip(names, got, strict=True)), {n: want[n] for n in names})


def test_results_outlive_what_they_came_from():
    inputs = tensors(FULL)
    want = step(FULL, inputs, "native")
    got = {k: t.clone() for k, t in want.items()}
    kept = [step(FULL, tensors(variants(FULL, seed=seed)), "native") for seed in range(5)]
    gc.collect()
    assert_equal(want, got)
    assert len({tuple(result["y"].flatten().tolist()) for result in kept}) == 5


def test_changing_a_saved_input_in_place_is_an_error():
    inputs = tensors(FULL)
    up = inputs["up"].clone().requires_grad_()
    y = forward(FULL, inputs | {"up": up}, "native")
    with torch.no_grad():
        up.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(case, reentrant):
    inputs = tensors(case)
    want = step(case, inputs, "native")
    leaves = {k: t.clone().requires_grad_() if t is not None and k in want else t for k, t in inputs.items()}
    y = checkpoint(lambda x: forward(case, leaves | {"x": x}, "native"), leaves["x"], use_reentrant=reentrant)
    y.backward(inputs["grad"])
    assert_equal({"y": y.detach()} | {n: leaves[n].grad for n in want if n != "y"}, want)


def test_a_double_backward_is_refused():
    inputs = tensors(FULL)
    x = inputs["x"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        forward(FULL, inputs | {"x": x}, "native").square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def operator_inputs(case: Case) -> list:
    """The arguments of the forward operator, before keep_hidden."""
    inputs = tensors(case)
    names = {"expert_ids": "ids"}
    values = [inputs[names.get(field, field)] for field in EXPERT_INPUTS]
    values = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in values]
    return [*values, case.E + case.routes_without_expert, case.activation, case.weights_on == "input"]


@every_case
def test_opcheck_of_the_forward(case):
    torch.library.opcheck(_forward, (*operator_inputs(case), not case.recompute))


@every_case
def test_opcheck_of_the_backward(case):
    arguments = operator_inputs(case)
    inputs = [t.detach() for t in arguments[: len(EXPERT_INPUTS)] if t is not None]
    with torch.no_grad():
        y, *results = _forward(*arguments, not case.recompute)
        present = [t is not None for t in arguments[: len(EXPERT_INPUTS)]]
        for wanted in ([True] * 9, [True, False, False] * 3):
            torch.library.opcheck(
                _backward, (torch.randn_like(y), inputs, results, *arguments[-3:], present, wanted)
            )


def test_operators_take_no_tokens():
    arguments = operator_inputs(variants(FULL, T=0))
    y, *_ = _forward(*arguments, True)
    leaves = [t for t in arguments[: len(EXPERT_INPUTS)] if t is not None and t.requires_grad]
    grads = torch.autograd.grad(y.sum(), leaves)
    assert y.shape == (0, FULL.D) and not any(g.any() for g in grads)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("options", "compiler"),
    [
        ({}, "aot_eager"),
        (
            dict(num_shared_experts=1, shared_token_gate=True, expert_linear_bias=True, capacity_factor=0.8),
            "inductor" if any(map(shutil.which, ("c++", "g++", "clang++"))) else "aot_eager",
        ),
    ],
)
def test_compiles_as_one_graph(options, compiler):
    torch._dynamo.reset()
    moe = random_moe(make_config(d_model=16, d_expert=8, **options), backend="native", dtype=torch.float32)
    compiled = torch.compile(moe, fullgraph=True, backend=compiler, dynamic=True)
    for tokens in (24, 13):
        x = torch.randn(tokens, 16, requires_grad=True)
        results = []
        for run in (moe, compiled):
            y, _ = run(x)
            results.append({"y": y} | gradients(y.square().mean(), moe, x))
        want = {name: t.double() for name, t in results[0].items()}
        # The router around the operator is compiled to other float32 sums.
        assert_close(results[1], want, want, 1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_threads_of_the_program_may_compute_at_the_same_time(own):
    cases = [variants(FULL, T=200, seed=seed) for seed in range(4)]
    want = [step(case, tensors(case), "native") for case in cases]
    got = {}

    def work(i: int) -> None:
        got[i] = [step(cases[i], tensors(cases[i]), "native") for _ in range(5)]

    with computing(threads=2, own=own):
        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for i, expected in enumerate(want):
        for result in got[i]:
            assert_equal(result, expected)


# Only forward: in a child of a process that ran torch on several threads, torch's own OpenMP hangs.
FORK = """
import os, torch
from native_cases import Case, computing, step, tensors
case = Case(T=700, E=3, biases=True)
inputs = tensors(case)
with computing(threads=3, own=True):
    want = step(case, inputs, "native", ())["y"].numpy().tobytes()
    def again(): return step(case, inputs, "native", ())["y"].numpy().tobytes() == want
    child = os.fork()
    if child == 0:
        equal = again()
        grandchild = os.fork()
        equal = again() and equal
        os._exit(0 if equal and (grandchild == 0 or os.waitpid(grandchild, 0)[1] == 0) else 1)
    assert again() and os.waitpid(child, 0)[1] == 0
print("all equal")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_computes_on_own_threads():
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all equal\n"), done.stderr


def test_autocast_computes_in_bfloat16():
    moe = random_moe(make_config(num_shared_experts=1), backend="native", dtype=torch.float32)
    x = torch.randn(9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = moe(x)
        assert moe.explain_backend(x) == "native: it was asked for"
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), moe(x)[0], rtol=0.03, atol=0.03)


def test_tensors_whose_memory_is_elsewhere_are_refused():
    experts = ExpertWeights(torch.zeros(2, 8, 8), torch.zeros(2, 8, 4), None, None, "swiglu", "output")
    x = torch.zeros(3, 8)
    assert native.refusal(x, experts) is None
    for inputs in (
        (TwoTensor(x, x), experts),
        (x, replace(experts, down_proj=nn.Parameter(TwoTensor(experts.down_proj, experts.down_proj)))),
    ):
        assert "reads the memory of plain tensors, and there is a TwoTensor" in native.refusal(*inputs)
        assert choose_backend(*inputs)[0] == "sorted"
    assert serving(x, x) is not None and serving(x, TwoTensor(x, x)) is None


def test_weights_in_another_precision_than_float32_or_the_tokens_are_refused():
    experts = ExpertWeights(
        *(torch.zeros(2, 8, n).bfloat16() for n in (8, 4)), None, None, "swiglu", "output"
    )
    assert "takes weights in torch.float32, as the input" in native.refusal(torch.zeros(3, 8), experts)


def test_refusals_say_why():
    case = Case()
    inputs = tensors(case, torch.float64)
    with pytest.raises(ConfigError, match=r"backend = 'native': it computes float32 and bfloat16"):
        forward(case, inputs, "native")


def test_mixed_dtypes_are_an_error_that_names_the_tensor():
    inputs = tensors(Case())
    inputs["down"] = inputs["down"].bfloat16()
    with pytest.raises(ConfigError, match="down: is bfloat16, needs float32"):
        forward(Case(), inputs, "native")


def test_ids_outside_the_routes_are_an_error():
    inputs = tensors(Case())
    for bad in (-1, Case().E, 2**40):
        inputs["ids"][5, 1] = bad
        with pytest.raises(ConfigError, match=rf"expert_ids: {bad} lies outside 0 .. 4"):
            forward(Case(), inputs, "native")
