"""Loading the library, choosing among its instruction sets, and its memory."""

import ctypes
import ctypes.util
import gc
import shutil
from pathlib import Path

import pytest
import torch
from native_cases import instruction_sets, needs_native

from moeworks.errors import ConfigError
from moeworks.ops.native import library as module
from moeworks.ops.native.library import Library, library
from moeworks.ops.native.structs import STRUCTS, ExpertsStruct


@pytest.fixture
def fresh():
    library.cache_clear()
    yield
    library.cache_clear()


def test_without_a_file_there_is_a_reason(monkeypatch, fresh):
    monkeypatch.setattr(module, "_find", lambda: None)
    assert library() == "moeworks was installed without its native library (no C++ compiler at that time)"
    assert module.unavailable() == library()


def test_a_file_that_is_no_library_is_a_reason(monkeypatch, tmp_path, fresh):
    path = tmp_path / "libmoeworks.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(module, "_find", lambda: path)
    assert library().startswith("the native library cannot be loaded: ")


@needs_native
def test_a_library_that_was_built_from_another_header_is_a_reason(monkeypatch, tmp_path, fresh):
    header = tmp_path / "moeworks.h"
    header.write_bytes(module._HEADER.read_bytes())
    monkeypatch.setattr(module, "_HEADER", header)
    assert isinstance(library(), Library)
    library.cache_clear()
    header.write_bytes(header.read_bytes().replace(b"int64_t num_routes", b"int32_t num_routes"))
    assert "was built from another version of its source: install moeworks again" in library()


@needs_native
def test_without_the_header_the_sizes_of_its_structures_decide(monkeypatch, tmp_path, fresh):
    monkeypatch.setattr(module, "_HEADER", tmp_path / "none")
    assert isinstance(library(), Library)
    library.cache_clear()
    wider = type(
        "wider", (ctypes.Structure,), {"_fields_": (*ExpertsStruct._fields_, ("more", ctypes.c_int64))}
    )
    monkeypatch.setitem(STRUCTS, "mw_experts", wider)
    assert "was built from another version of its source" in library()


@needs_native
def test_a_library_that_cannot_say_what_it_was_built_from_is_a_reason(monkeypatch, fresh):
    other = Path(ctypes.util.find_library("m"))
    monkeypatch.setattr(module, "_find", lambda: other)
    assert "was built from another version of its source" in library()


@needs_native
def test_a_file_beside_the_module_goes_first(monkeypatch, tmp_path):
    copy = tmp_path / module._FILE
    shutil.copy(library().path, copy)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "library.py"))
    assert module._find() == copy


@needs_native
def test_instruction_sets():
    lib = library()
    assert "portable" in instruction_sets() and lib.isa in instruction_sets()
    assert lib.isa == instruction_sets()[0]  # the best one
    with pytest.raises(ConfigError, match="no kernels called sse9 for this processor in this build"):
        lib.use_isa("sse9")
    assert lib.isa == instruction_sets()[0]


@needs_native
def test_freed_memory_is_reused_and_given_back_on_demand():
    lib = library()
    gc.collect()
    lib.release_cache()
    before = lib.cached_bytes
    first = lib.empty((1000, 300), torch.float32)
    address = first.data_ptr()
    assert first.shape == (1000, 300) and address % 64 == 0
    view = first[10:20]
    del first
    gc.collect()
    assert lib.cached_bytes == before  # the view keeps it
    view.fill_(1.0)
    del view
    gc.collect()
    assert lib.cached_bytes >= before + 1_200_000
    assert lib.empty((300, 1000), torch.float32).data_ptr() == address
    gc.collect()
    lib.release_cache()
    assert lib.cached_bytes == 0


@needs_native
def test_an_empty_tensor_needs_no_memory():
    assert library().empty((0, 5), torch.bfloat16).shape == (0, 5)


@needs_native
def test_memory_that_is_not_there_is_a_memory_error_and_raises_no_peak():
    lib = library()
    gc.collect()
    lib.release_cache()
    with pytest.raises(MemoryError, match="out of memory"):
        lib.empty((2**60,), torch.bfloat16)
    kept = [lib.empty((2**24,), torch.float32) for _ in range(2)]
    peak = sum(t.nbytes for t in kept)
    del kept
    gc.collect()
    a, b = lib.empty((3 * 2**23,), torch.float32), lib.empty((2**22,), torch.float32)
    # Used and unused together stay near what was used at once: an eighth and 16 MiB more.
    assert lib.cached_bytes + a.nbytes + b.nbytes <= peak * 9 / 8 + 2**24 + 2**13
