// The leaf loops of what surrounds the experts in a training step, once per instruction set as in kernels.hpp.
#pragma once

#include <cstdint>

namespace mw {

// One AdamW step (Loshchilov and Hutter 2019), with the factors that do not depend on the element.
struct AdamWFactors {
    float decay;           // 1 - lr * weight_decay
    float beta1, beta2;
    float step_size;       // lr / (1 - beta1^t)
    float root;            // 1 / sqrt(1 - beta2^t)
    float eps;
    float gradient_scale;
};

struct StepKernels {
    // ids [k]: where the k <= n largest of row [n] are, largest first, ties to the lower index, -inf as the lowest
    // finite value. False, and nothing done, if there is a NaN. `scratch` holds n + kSlack floats.
    bool (*top_k)(int n, const float *row, int k, float *scratch, int64_t *ids);

    // row [n] of logits: returns scale * (logsumexp(row) - row[target]); with `gradient` the row becomes the
    // gradient of that.
    float (*cross_entropy)(float *row, int64_t n, int64_t target, float scale, bool gradient);

    // y = x * r * weight (1 if null) with r = 1 / sqrt(mean(x^2) + eps), which is returned.
    float (*rms_norm)(int n, const float *x, const float *weight, float eps, float *y);
    // grad_x from grad_y, x and r; adds to grad_weight (if not null).
    void (*rms_norm_backward)(int n, const float *grad_y, const float *x, const float *weight, float r,
                              float *grad_x, float *grad_weight);

    // Turns the pairs (x[i], x[i + half]) by angles of the given cosines and sines, backwards for sign = -1.
    void (*rope)(int half, const float *x, const float *cosines, const float *sines, float sign, float *y);

    void (*adamw)(int64_t n, float *param, const float *grad, float *exp_avg, float *exp_avg_sq,
                  const AdamWFactors &f);
    double (*sum_of_squares)(int64_t n, const float *x);
};

}  // namespace mw
