// The C interface: checks every argument, then calls the library and turns exceptions into messages.
#include "api.hpp"
#include "experts.hpp"
#include "memory.hpp"
#include "parallel.hpp"

using namespace mw;

namespace {

struct Sizes {
    int64_t T, D, K, N, E, U, F, shared_U = 0, shared_F = 0;
    int32_t dtype, weight_dtype;
    bool shared = false;
};

Sizes check_experts(const mw_experts &a, int32_t threads) {
    check_threads(threads);
    require(a.activation >= MW_SWIGLU && a.activation <= MW_RELU2, "activation: unknown");
    Sizes s;
    s.dtype = a.x.dtype;
    require(s.dtype == MW_FLOAT32 || s.dtype == MW_BFLOAT16, std::string("x: is ") + name_of(s.dtype) +
                                                                 ", needs float32 or bfloat16");
    s.weight_dtype = a.up.dtype;
    require(s.weight_dtype == s.dtype || s.weight_dtype == MW_FLOAT32,
            std::string("up: is ") + name_of(s.weight_dtype) + ", needs float32 or the dtype of x");
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
    check("up", a.up, s.weight_dtype, {s.E, s.U, s.D});
    check("down", a.down, s.weight_dtype, {s.E, s.D, s.F});
    check("up_bias", a.up_bias, s.weight_dtype, {s.E, s.U}, true);
    check("down_bias", a.down_bias, s.weight_dtype, {s.E, s.D}, true);
    check("order", a.order, MW_INT32, {s.N});
    check("offsets", a.offsets, MW_INT64, {s.E + 1});
    check("hidden", a.hidden, s.dtype, {s.N, s.U}, true);
    s.shared = a.shared_up.data != nullptr;
    if (!s.shared) return s;
    s.shared_U = sized("shared_up", a.shared_up, 2, 0);
    s.shared_F = sized("shared_down", a.shared_down, 2, 1);
    require(s.shared_F > 0 && s.shared_U == (gated ? 2 : 1) * s.shared_F, "shared_up: wrong number of rows");
    check("shared_up", a.shared_up, s.weight_dtype, {s.shared_U, s.D});
    check("shared_down", a.shared_down, s.weight_dtype, {s.D, s.shared_F});
    check("shared_weights", a.shared_weights, MW_FLOAT32, {s.T}, true);
    check("shared_hidden", a.shared_hidden, s.dtype, {s.T, s.shared_U}, true);
    return s;
}

void check_grad(const mw_experts &a, const mw_experts_grad &g, const Sizes &s) {
    check("grad.y", g.y, s.dtype, {s.T, s.D});
    check("grad.x", g.x, s.dtype, {s.T, s.D}, true);
    check("grad.weights", g.weights, MW_FLOAT32, {s.T, s.K}, true);
    check("grad.up", g.up, s.weight_dtype, {s.E, s.U, s.D}, true);
    check("grad.down", g.down, s.weight_dtype, {s.E, s.D, s.F}, true);
    check("grad.up_bias", g.up_bias, s.weight_dtype, {s.E, s.U}, true);
    check("grad.down_bias", g.down_bias, s.weight_dtype, {s.E, s.D}, true);
    if (s.shared) {
        check("grad.shared_up", g.shared_up, s.weight_dtype, {s.shared_U, s.D}, true);
        check("grad.shared_down", g.shared_down, s.weight_dtype, {s.D, s.shared_F}, true);
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

const char *mw_interface(void) { return MW_INTERFACE; }

int64_t mw_size_of(const char *name) {
    const std::string wanted = name ? name : "";
    if (wanted == "mw_tensor") return sizeof(mw_tensor);
    if (wanted == "mw_experts") return sizeof(mw_experts);
    if (wanted == "mw_experts_grad") return sizeof(mw_experts_grad);
    if (wanted == "mw_adamw_item") return sizeof(mw_adamw_item);
    return 0;
}

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
