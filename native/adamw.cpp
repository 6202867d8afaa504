// The optimizer's pass over all tensors.
#include <cmath>
#include <vector>

#include "blocks.hpp"
#include "kernels.hpp"
#include "step.hpp"
#include "step_kernels.hpp"

namespace mw {
namespace {

constexpr int64_t kPiece = 1 << 16;

struct Piece {
    int64_t tensor, start, count;
};

template <typename Count> std::vector<Piece> cut(int64_t tensors, Count count) {
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < tensors; ++i)
        for (int64_t start = 0; start < count(i); start += kPiece)
            pieces.push_back({i, start, std::min(kPiece, count(i) - start)});
    return pieces;
}

float *floats(const mw_tensor &t, int64_t start) { return static_cast<float *>(t.data) + start; }

}  // namespace

void adamw(const mw_adamw_item *items, int64_t count, double gradient_scale, int threads) {
    const StepKernels &k = *kernels().step;
    std::vector<AdamWFactors> factors;
    for (int64_t i = 0; i < count; ++i) {
        const mw_adamw_item &o = items[i];
        const double correction1 = 1.0 - std::pow(o.beta1, o.step), correction2 = 1.0 - std::pow(o.beta2, o.step);
        factors.push_back({static_cast<float>(1.0 - o.lr * o.weight_decay), static_cast<float>(o.beta1),
                           static_cast<float>(o.beta2), static_cast<float>(o.lr / correction1),
                           static_cast<float>(1.0 / std::sqrt(correction2)), static_cast<float>(o.eps),
                           static_cast<float>(gradient_scale)});
    }
    const std::vector<Piece> pieces = cut(count, [&](int64_t i) { return items[i].param.shape[0]; });
    for_blocks(static_cast<int64_t>(pieces.size()), threads, [&](int64_t block, int) {
        const Piece &p = pieces[block];
        const mw_adamw_item &o = items[p.tensor];
        k.adamw(p.count, floats(o.param, p.start), floats(o.grad, p.start), floats(o.exp_avg, p.start),
                floats(o.exp_avg_sq, p.start), factors[p.tensor]);
    });
}

double sum_of_squares(const mw_tensor *tensors, int64_t count, int threads) {
    const StepKernels &k = *kernels().step;
    const std::vector<Piece> pieces = cut(count, [&](int64_t i) { return tensors[i].shape[0]; });
    std::vector<double> sums(pieces.size());
    for_blocks(static_cast<int64_t>(pieces.size()), threads, [&](int64_t block, int) {
        const Piece &p = pieces[block];
        sums[block] = k.sum_of_squares(p.count, floats(tensors[p.tensor], p.start));
    });
    double total = 0.0;
    for (double sum : sums) total += sum;
    return total;
}

}  // namespace mw
