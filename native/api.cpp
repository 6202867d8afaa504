// The C interface: checks every argument, then calls the library and turns exceptions into messages.
#include <algorithm>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "experts.hpp"
#include "memory.hpp"
#include "moeworks.h"
#include "parallel.hpp"

namespace {

thread_local std::string last_error;

constexpr int64_t kMaxThreads = 4096;
// Widths and rows are int in the kernels; numbers of elements are int64 and may exceed it.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() / 8;

template <typename Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        last_error = "out of memory";
    } catch (const std::exception &error) {
        last_error = error.what();
    }
    return -1;
}

void require(bool condition, const std::string &message) {
    if (!condition) throw std::invalid_argument(message);
}

const char *name_of(int32_t dtype) {
    switch (dtype) {
        case MW_FLOAT32: return "float32";
        case MW_BFLOAT16: return "bfloat16";
        case MW_INT64: return "int64";
        case MW_BOOL: return "bool";
        case MW_INT32: return "int32";
        default: return "an unknown dtype";
    }
}

uintptr_t size_of(int32_t dtype) {
    switch (dtype) {
        case MW_FLOAT32:
        case MW_INT32: return 4;
        case MW_BFLOAT16: return 2;
        case MW_BOOL: return 1;
        default: return 8;
    }
}

std::string text(const int64_t *sizes, int count) {
    std::string out = "[";
    for (int i = 0; i < count; ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
    return out + "]";
}

// Shape, dtype, contiguity and alignment of one tensor; false when it is absent and may be.
bool check(const std::string &name, const mw_tensor &t, int32_t dtype, std::initializer_list<int64_t> shape,
           bool optional = false) {
    const int ndim = static_cast<int>(shape.size());
    int64_t count = 1;
    for (int64_t size : shape) {
        require(size >= 0 && (size == 0 || count <= std::numeric_limits<int64_t>::max() / 16 / size),
                name + ": too many elements");
        count *= size;
    }
    if (t.data == nullptr && optional) return false;
    require(t.data != nullptr || count == 0, name + ": is missing");
    require(t.ndim == ndim && std::equal(shape.begin(), shape.end(), t.shape),
            name + ": has shape " + text(t.shape, std::clamp(t.ndim, 0, 4)) + ", needs " +
                text(shape.begin(), ndim));
    require(t.dtype == dtype, name + ": is " + name_of(t.dtype) + ", needs " + name_of(dtype));
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; --i) {
        require(t.shape[i] == 1 || count == 0 || t.stride[i] == stride, name + ": is not contiguous");
        stride *= std::max<int64_t>(t.shape[i], 1);
    }
    require(reinterpret_cast<uintptr_t>(t.data) % size_of(dtype) == 0, name + ": is not aligned to its elements");
    return true;
}

int64_t sized(const std::string &name, const mw_tensor &t, int ndim, int dimension) {
    require(t.ndim == ndim, name + ": needs " + std::to_string(ndim) + " dimensions");
    require(t.shape[dimension] >= 0 && t.shape[dimension] <= kMaxSize,
            name + ": dimension " + std::to_string(dimension) + " is out of range");
    return t.shape[dimension];
}

struct Sizes {
    int64_t T, D, K, N, E, U, F, shared_U = 0, shared_F = 0;
    int32_t dtype;
    bool shared = false;
};

Sizes check_experts(const mw_experts &a, int32_t threads) {
    require(threads >= 1 && threads <= kMaxThreads, "threads: must lie between 1 and 4096");
    require(a.activation >= MW_SWIGLU && a.activation <= MW_RELU2, "activation: unknown");
    Sizes s;
    s.dtype = a.x.dtype;
    require(s.dtype == MW_FLOAT32 || s.dtype == MW_BFLOAT16, std::string("x: is ") + name_of(s.dtype) +
                                                                 ", needs float32 or bfloat16");
    s.T = sized("x", a.x, 2, 0);
    s.D = sized("x", a.x, 2, 1);
    s.K = sized("expert_ids", a.expert_ids, 2, 1);
    s.E = sized("up", a.up, 3, 0);
    s.U = sized("up", a.up, 3, 1);
    s.F = sized("down", a.down, 3, 2);
    s.N = s.T * s.K;
    require(s.N <= kMaxSize, "expert_ids: more assignments than int32 can count");
    require(s.D > 0 && s.F > 0 && s.E > 0 && s.K > 0, "x, expert_ids, up, down: D, K, E and F must be positive");
    const bool gated = a.activation == MW_SWIGLU || a.activation == MW_GEGLU;
    require(s.U == (gated ? 2 : 1) * s.F, "up: needs " + std::string(gated ? "2F" : "F") + " rows an expert");
    require(a.num_routes >= s.E, "num_routes: must not be below the number of experts");
    check("x", a.x, s.dtype, {s.T, s.D});
    check("weights", a.weights, MW_FLOAT32, {s.T, s.K});
    check("expert_ids", a.expert_ids, MW_INT64, {s.T, s.K});
    check("kept", a.kept, MW_BOOL, {s.T, s.K}, true);
    check("up", a.up, s.dtype, {s.E, s.U, s.D});
    check("down", a.down, s.dtype, {s.E, s.D, s.F});
    check("up_bias", a.up_bias, s.dtype, {s.E, s.U}, true);
    check("down_bias", a.down_bias, s.dtype, {s.E, s.D}, true);
    check("order", a.order, MW_INT32, {s.N});
    check("offsets", a.offsets, MW_INT64, {s.E + 1});
    check("hidden", a.hidden, s.dtype, {s.N, s.U}, true);
    s.shared = a.shared_up.data != nullptr;
    if (!s.shared) return s;
    s.shared_U = sized("shared_up", a.shared_up, 2, 0);
    s.shared_F = sized("shared_down", a.shared_down, 2, 1);
    require(s.shared_F > 0 && s.shared_U == (gated ? 2 : 1) * s.shared_F, "shared_up: wrong number of rows");
    check("shared_up", a.shared_up, s.dtype, {s.shared_U, s.D});
    check("shared_down", a.shared_down, s.dtype, {s.D, s.shared_F});
    check("shared_weights", a.shared_weights, MW_FLOAT32, {s.T}, true);
    check("shared_hidden", a.shared_hidden, s.dtype, {s.T, s.shared_U}, true);
    return s;
}

void check_grad(const mw_experts &a, const mw_experts_grad &g, const Sizes &s) {
    check("grad.y", g.y, s.dtype, {s.T, s.D});
    check("grad.x", g.x, s.dtype, {s.T, s.D}, true);
    check("grad.weights", g.weights, MW_FLOAT32, {s.T, s.K}, true);
    check("grad.up", g.up, s.dtype, {s.E, s.U, s.D}, true);
    check("grad.down", g.down, s.dtype, {s.E, s.D, s.F}, true);
    check("grad.up_bias", g.up_bias, s.dtype, {s.E, s.U}, true);
    check("grad.down_bias", g.down_bias, s.dtype, {s.E, s.D}, true);
    if (s.shared) {
        check("grad.shared_up", g.shared_up, s.dtype, {s.shared_U, s.D}, true);
        check("grad.shared_down", g.shared_down, s.dtype, {s.D, s.shared_F}, true);
        check("grad.shared_weights", g.shared_weights, MW_FLOAT32, {s.T}, true);
    }
    // The forward pass wrote these two; a caller may have changed them.
    const int64_t *offsets = static_cast<const int64_t *>(a.offsets.data);
    require(offsets[0] == 0 && offsets[s.E] <= s.N && std::is_sorted(offsets, offsets + s.E + 1),
            "offsets: must rise from 0 to at most T * K");
    const int32_t *order = static_cast<const int32_t *>(a.order.data);
    for (int64_t row = 0; row < offsets[s.E]; ++row)
        require(order[row] >= 0 && order[row] < s.N, "order: an entry is out of range");
}

}  // namespace

extern "C" {

int32_t mw_abi_version(void) { return MW_ABI_VERSION; }

const char *mw_last_error(void) { return last_error.c_str(); }

const char *mw_isa(void) { return mw::kernels().name; }

int mw_set_isa(const char *name) {
    return guarded([&] {
        require(name != nullptr && mw::use_kernels(name),
                std::string("no kernels called ") + (name ? name : "NULL") + " for this processor in this build");
    });
}

void mw_use_openmp(void *gomp_parallel) { mw::use_openmp(gomp_parallel); }

void *mw_allocate(int64_t bytes) {
    void *buffer = nullptr;
    guarded([&] {
        require(bytes >= 0, "bytes: must not be negative");
        buffer = mw::allocate(static_cast<size_t>(bytes));
    });
    return buffer;
}

void mw_free(void *buffer) { mw::release(buffer); }

int64_t mw_cached_bytes(void) { return mw::cached_bytes(); }

void mw_release_cache(void) { mw::release_cache(); }

int mw_experts_forward(const mw_experts *args, int32_t threads) {
    return guarded([&] {
        require(args != nullptr, "args: is missing");
        const Sizes s = check_experts(*args, threads);
        check("y", args->y, s.dtype, {s.T, s.D});
        const int64_t bad = mw::sort_assignments(*args);
        if (bad >= 0)
            throw std::invalid_argument(
                "expert_ids: " + std::to_string(static_cast<const int64_t *>(args->expert_ids.data)[bad]) +
                " lies outside 0 .. " + std::to_string(args->num_routes - 1));
        mw::experts_forward(*args, threads);
    });
}

int mw_experts_backward(const mw_experts *args, const mw_experts_grad *grad, int32_t threads) {
    return guarded([&] {
        require(args != nullptr && grad != nullptr, "args, grad: are missing");
        check_grad(*args, *grad, check_experts(*args, threads));
        mw::experts_backward(*args, *grad, threads);
    });
}

}  // extern "C"
