"""The C interface: whatever it is given, an error and never a crash."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_cases import Case, computing, needs_native, tensors

from moeworks.errors import ConfigError
from moeworks.ops.native.library import described, library
from moeworks.ops.native.structs import EXPERT_INPUTS, EXPERT_RESULTS, ExpertsStruct

pytestmark = needs_native

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(2))
def test_broken_arguments_are_errors(seed):
    # In a process of its own: there a crash is a failure with a message.
    done = subprocess.run(
        [sys.executable, "native_fuzz.py", str(seed), "1500"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    last = "\n".join(done.stdout.splitlines()[-2:])
    assert done.returncode == 0, f"status {done.returncode} after\n{last}\n{done.stderr}"
    assert int(last.split()[-1]) > 500  # it is not that everything was taken


def arguments(case: Case, **changed: torch.Tensor | None) -> ExpertsStruct:
    inputs = tensors(case) | changed
    results = {
        "y": torch.empty(case.T, case.D),
        "order": torch.empty(case.T * case.K, dtype=torch.int32),
        "offsets": torch.empty(case.E + 1, dtype=torch.int64),
    }
    every = [inputs["ids" if n == "expert_ids" else n] for n in EXPERT_INPUTS]
    args = ExpertsStruct(
        *map(described, every), case.E, 0, 0, *(described(results.get(name)) for name in EXPERT_RESULTS)
    )
    args.memory = (every, results)
    return args


def message(args: ExpertsStruct, threads: int = 1) -> str:
    with computing() as lib, pytest.raises(ConfigError) as raised:
        lib.call("mw_experts_forward", ctypes.byref(args), threads)
    return str(raised.value).removeprefix("native mw_experts_forward: ")


CASE = Case(T=6, D=8, F=4, E=3)
LIMIT = (2**31 - 1) // 8  # of a dimension, and of assignments


def test_messages_name_the_tensor_and_the_rule():
    args = arguments(CASE)
    args.up.stride[1] = 9
    assert message(args) == "up: is not contiguous"
    args = arguments(CASE)
    args.down.data += 2
    assert message(args) == "down: is not aligned to its elements"
    args = arguments(CASE)
    args.weights.shape[1] = 3
    assert message(args) == "weights: has shape [6, 3], needs [6, 2]"
    args = arguments(CASE)
    args.x.dtype = 2
    assert message(args) == "x: is int64, needs float32 or bfloat16"
    args = arguments(CASE)
    args.offsets.data = None
    assert message(args) == "offsets: is missing"
    assert "threads" in message(arguments(CASE), 0)


def widened(name: str, dim: int, size: int) -> ExpertsStruct:
    """Arguments whose descriptor claims a dimension of that size; nobody may touch the memory."""
    args = arguments(CASE)
    getattr(args, name).shape[dim] = size
    return args


@pytest.mark.parametrize(
    ("name", "dim"), [("x", 0), ("x", 1), ("expert_ids", 1), ("up", 0), ("up", 1), ("down", 2)]
)
def test_a_dimension_that_an_int_could_not_count_is_refused(name, dim):
    for size in (LIMIT + 1, 2**31, 2**32 + 3, 2**63 - 1):
        assert message(widened(name, dim, size)) == f"{name}: dimension {dim} is out of range"
    # At the limit the size itself is fine: something else, that now does not fit, is at fault.
    assert "out of range" not in message(widened(name, dim, LIMIT))


def test_more_assignments_than_int32_counts_are_refused():
    args = arguments(CASE)
    args.x.shape[0], args.expert_ids.shape[1] = 2**20, 2**8
    assert message(args) == "expert_ids: more assignments than int32 can count"


def test_numbers_of_elements_that_overflow_are_refused():
    args = arguments(CASE)
    args.up.shape[0], args.up.shape[1], args.up.shape[2] = LIMIT, 2 * (LIMIT // 4), LIMIT
    args.x.shape[1], args.down.shape[2] = LIMIT, LIMIT // 4
    args.num_routes = LIMIT
    # x itself would be contiguous; up is the first that has more elements than bytes can be addressed.
    args.x.stride[0] = LIMIT
    assert message(args) == "up: too many elements"


def test_an_error_leaves_the_library_in_order():
    lib = library()
    bad = tensors(CASE)["ids"].clone()
    bad[0, 0] = 99
    assert message(arguments(CASE, ids=bad)) == "expert_ids: 99 lies outside 0 .. 2"
    lib.call("mw_experts_forward", ctypes.byref(arguments(CASE)), 1)
