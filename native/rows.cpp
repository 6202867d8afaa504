// Functions of single rows: normalisation, rotary positions, cross-entropy.
#include <cstring>
#include <vector>

#include "blocks.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "step.hpp"
#include "step_kernels.hpp"

namespace mw {
namespace {

float *floats(const mw_tensor &t) { return static_cast<float *>(t.data); }

}  // namespace

void cross_entropy(const mw_tensor &logits, const mw_tensor &targets, const mw_tensor &scale,
                   const mw_tensor &losses, bool gradient, int threads) {
    const StepKernels &k = *kernels().step;
    const int64_t *ids = static_cast<const int64_t *>(targets.data);
    const int64_t width = logits.shape[1];
    for_rows(logits.shape[0], width, threads, [&](int64_t row) {
        floats(losses)[row] =
            k.cross_entropy(floats(logits) + row * width, width, ids[row], floats(scale)[row], gradient);
    });
}

void rms_norm(const mw_tensor &x, const mw_tensor &weight, float eps, const mw_tensor &y, const mw_tensor &r,
              int threads) {
    const StepKernels &k = *kernels().step;
    const int64_t width = x.shape[1];
    for_rows(x.shape[0], width, threads, [&](int64_t row) {
        floats(r)[row] = k.rms_norm(static_cast<int>(width), floats(x) + row * width, floats(weight), eps,
                                    floats(y) + row * width);
    });
}

void rms_norm_backward(const mw_tensor &grad_y, const mw_tensor &x, const mw_tensor &weight, const mw_tensor &r,
                       const mw_tensor &grad_x, const mw_tensor &grad_weight, int threads) {
    const Kernels &k = kernels();
    const int64_t rows = x.shape[0], width = x.shape[1], each = rows_of_block(width);
    const int64_t blocks = count_blocks(rows, each);
    const bool sums = grad_weight.data != nullptr;
    // A sum per block, added in order.
    Buffer<float> partial(sums ? blocks * width : 0);
    for_blocks(blocks, threads, [&](int64_t block, int) {
        float *sum = sums ? partial.get() + block * width : nullptr;
        if (sums) std::memset(sum, 0, sizeof(float) * width);
        for (int64_t row = block * each, stop = std::min(rows, row + each); row < stop; ++row)
            k.step->rms_norm_backward(static_cast<int>(width), floats(grad_y) + row * width,
                                      floats(x) + row * width, floats(weight), floats(r)[row],
                                      floats(grad_x) + row * width, sum);
    });
    if (!sums) return;
    std::memset(grad_weight.data, 0, sizeof(float) * width);
    for (int64_t block = 0; block < blocks; ++block)
        k.add(floats(grad_weight), partial.get() + block * width, width, 1.0f);
}

void rope(const mw_tensor &x, const mw_tensor &table, int64_t repeats, bool inverse, const mw_tensor &y,
          int threads) {
    const StepKernels &k = *kernels().step;
    const int64_t width = x.shape[1], positions = table.shape[1], half = table.shape[2];
    const float *cosines = floats(table), *sines = cosines + positions * half;
    for_rows(x.shape[0], width, threads, [&](int64_t row) {
        const int64_t at = row / repeats % positions * half;
        k.rope(static_cast<int>(half), floats(x) + row * width, cosines + at, sines + at, inverse ? -1.0f : 1.0f,
               floats(y) + row * width);
    });
}

}  // namespace mw
