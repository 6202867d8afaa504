// The C interface of the step around the experts.
#include "api.hpp"
#include "step.hpp"

using namespace mw;

namespace {

void check_present(std::initializer_list<const void *> arguments) {
    for (const void *argument : arguments) require(argument != nullptr, "an argument is missing");
}

const mw_tensor kAbsent = {};

struct Rows {
    int64_t rows, width;
};

Rows check_rows(const char *name, const mw_tensor &t) {
    const Rows r{sized(name, t, 2, 0), sized(name, t, 2, 1)};
    require(r.width > 0, std::string(name) + ": rows must not be empty");
    check(name, t, MW_FLOAT32, {r.rows, r.width});
    return r;
}

int64_t check_flat(const std::string &name, const mw_tensor &t, int64_t count = -1) {
    require(t.ndim == 1 && t.shape[0] >= 0, name + ": needs 1 dimension");
    check(name, t, MW_FLOAT32, {count < 0 ? t.shape[0] : count});
    return t.shape[0];
}

void check_item(const mw_adamw_item &o) {
    const int64_t count = check_flat("param", o.param);
    check_flat("grad", o.grad, count);
    check_flat("exp_avg", o.exp_avg, count);
    check_flat("exp_avg_sq", o.exp_avg_sq, count);
    require(o.step >= 1, "step: counts from 1");
    require(o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1, "beta1, beta2: must lie in [0, 1)");
}

}  // namespace

extern "C" {

int mw_top_k(const mw_tensor *values, const mw_tensor *ids, int32_t threads) {
    return guarded([&] {
        check_present({values, ids});
        check_threads(threads);
        require(values->dtype == MW_FLOAT32 || values->dtype == MW_FLOAT64,
                std::string("values: is ") + name_of(values->dtype) + ", needs float32 or float64");
        const int64_t T = sized("values", *values, 2, 0), E = sized("values", *values, 2, 1);
        const int64_t K = sized("ids", *ids, 2, 1);
        require(K <= E, "ids: K must not exceed E");
        check("values", *values, values->dtype, {T, E});
        check("ids", *ids, MW_INT64, {T, K});
        if (K > 0) top_k(*values, *ids, threads);
    });
}

int mw_cross_entropy(const mw_tensor *logits, const mw_tensor *targets, const mw_tensor *scale,
                     const mw_tensor *losses, int32_t gradient, int32_t threads) {
    return guarded([&] {
        check_present({logits, targets, scale, losses});
        check_threads(threads);
        const Rows r = check_rows("logits", *logits);
        check("targets", *targets, MW_INT64, {r.rows});
        check("scale", *scale, MW_FLOAT32, {r.rows});
        check("losses", *losses, MW_FLOAT32, {r.rows});
        const int64_t *ids = static_cast<const int64_t *>(targets->data);
        for (int64_t row = 0; row < r.rows; ++row)
            require(ids[row] >= 0 && ids[row] < r.width, "targets: " + std::to_string(ids[row]) +
                                                             " lies outside 0 .. " + std::to_string(r.width - 1));
        cross_entropy(*logits, *targets, *scale, *losses, gradient != 0, threads);
    });
}

int mw_rms_norm(const mw_tensor *x, const mw_tensor *weight, double eps, const mw_tensor *y, const mw_tensor *r,
                int32_t threads) {
    return guarded([&] {
        check_present({x, y, r});
        check_threads(threads);
        const Rows size = check_rows("x", *x);
        const mw_tensor &w = weight ? *weight : kAbsent;
        check("weight", w, MW_FLOAT32, {size.width}, true);
        check("y", *y, MW_FLOAT32, {size.rows, size.width});
        check("r", *r, MW_FLOAT32, {size.rows});
        rms_norm(*x, w, static_cast<float>(eps), *y, *r, threads);
    });
}

int mw_rms_norm_backward(const mw_tensor *grad_y, const mw_tensor *x, const mw_tensor *weight,
                         const mw_tensor *r, const mw_tensor *grad_x, const mw_tensor *grad_weight,
                         int32_t threads) {
    return guarded([&] {
        check_present({grad_y, x, r, grad_x});
        check_threads(threads);
        const Rows size = check_rows("x", *x);
        const mw_tensor &w = weight ? *weight : kAbsent, &grad_w = grad_weight ? *grad_weight : kAbsent;
        check("grad_y", *grad_y, MW_FLOAT32, {size.rows, size.width});
        check("weight", w, MW_FLOAT32, {size.width}, true);
        check("r", *r, MW_FLOAT32, {size.rows});
        check("grad_x", *grad_x, MW_FLOAT32, {size.rows, size.width});
        check("grad_weight", grad_w, MW_FLOAT32, {size.width}, true);
        rms_norm_backward(*grad_y, *x, w, *r, *grad_x, grad_w, threads);
    });
}

int mw_rope(const mw_tensor *x, const mw_tensor *table, int64_t repeats, int32_t inverse, const mw_tensor *y,
            int32_t threads) {
    return guarded([&] {
        check_present({x, table, y});
        check_threads(threads);
        const Rows size = check_rows("x", *x);
        require(size.width % 2 == 0, "x: rows must have an even width");
        const int64_t positions = sized("table", *table, 3, 1);
        check("table", *table, MW_FLOAT32, {2, positions, size.width / 2});
        require(positions > 0 || size.rows == 0, "table: has no positions");
        require(repeats > 0, "repeats: must be positive");
        check("y", *y, MW_FLOAT32, {size.rows, size.width});
        rope(*x, *table, repeats, inverse != 0, *y, threads);
    });
}

int mw_adamw(const mw_adamw_item *items, int64_t count, double gradient_scale, int32_t threads) {
    return guarded([&] {
        check_threads(threads);
        require(count >= 0, "count: must not be negative");
        require(items != nullptr || count == 0, "items: are missing");
        for (int64_t i = 0; i < count; ++i) check_item(items[i]);
        adamw(items, count, gradient_scale, threads);
    });
}

int mw_sum_of_squares(const mw_tensor *tensors, int64_t count, double *sum, int32_t threads) {
    return guarded([&] {
        check_threads(threads);
        require(count >= 0, "count: must not be negative");
        require((tensors != nullptr || count == 0) && sum != nullptr, "tensors, sum: are missing");
        for (int64_t i = 0; i < count; ++i) check_flat("tensors", tensors[i]);
        *sum = sum_of_squares(tensors, count, threads);
    });
}

}  // extern "C"
