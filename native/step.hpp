// What surrounds the experts in a training step, on checked arguments. Shapes and meanings are those of
// moeworks.h. Work is cut by shapes alone, so no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "moeworks.h"

namespace mw {

void top_k(const mw_tensor &values, const mw_tensor &ids, int threads);

void cross_entropy(const mw_tensor &logits, const mw_tensor &targets, const mw_tensor &scale,
                   const mw_tensor &losses, bool gradient, int threads);

void rms_norm(const mw_tensor &x, const mw_tensor &weight, float eps, const mw_tensor &y, const mw_tensor &r,
              int threads);
void rms_norm_backward(const mw_tensor &grad_y, const mw_tensor &x, const mw_tensor &weight, const mw_tensor &r,
                       const mw_tensor &grad_x, const mw_tensor &grad_weight, int threads);

void rope(const mw_tensor &x, const mw_tensor &table, int64_t repeats, bool inverse, const mw_tensor &y,
          int threads);

void adamw(const mw_adamw_item *items, int64_t count, double gradient_scale, int threads);
double sum_of_squares(const mw_tensor *tensors, int64_t count, int threads);

}  // namespace mw
