// The experts' arithmetic on checked arguments. Shapes and meanings are those of moeworks.h.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "moeworks.h"

namespace mw {

// Sorts the computed assignments by expert into order and offsets. Returns the first id out of range, or -1.
int64_t sort_assignments(const mw_experts &args);

void experts_forward(const mw_experts &args, int threads);
void experts_backward(const mw_experts &args, const mw_experts_grad &grad, int threads);

}  // namespace mw
