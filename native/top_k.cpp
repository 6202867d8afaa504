// The k largest of each row, in order.
#include <cmath>
#include <limits>

#include "blocks.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "step.hpp"
#include "step_kernels.hpp"

namespace mw {
namespace {

// NaN counts as the largest value, as in argmax.
template <typename T> bool better(T a, T b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// Insertion into the k best so far: few of a row's values get beyond the comparison with the last of them.
template <typename T> void best_of_row(const T *row, int64_t n, int64_t k, T *best, int64_t *ids) {
    int64_t filled = 0;
    for (int64_t i = 0; i < n; ++i) {
        // -inf counts as the lowest finite value: the reference marks what it has chosen with -inf.
        const T value = row[i] < std::numeric_limits<T>::lowest() ? std::numeric_limits<T>::lowest() : row[i];
        if (filled == k && !better(value, best[k - 1])) continue;
        int64_t at = filled < k ? filled++ : k - 1;
        for (; at > 0 && better(value, best[at - 1]); --at) {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
        }
        best[at] = value;
        ids[at] = i;
    }
}

template <typename T, typename Row> void for_each_row(const mw_tensor &values, const mw_tensor &ids, int threads, Row of) {
    const int64_t n = values.shape[1], k = ids.shape[1], each = rows_of_block(n);
    const int64_t rows = values.shape[0], blocks = count_blocks(rows, each);
    Buffer<T> scratch(std::min<int64_t>(threads, blocks) * (n + kSlack));
    for_blocks(blocks, threads, [&](int64_t block, int thread) {
        for (int64_t row = block * each, stop = std::min(rows, row + each); row < stop; ++row)
            of(static_cast<const T *>(values.data) + row * n, static_cast<int64_t *>(ids.data) + row * k,
               scratch.get() + thread * (n + kSlack));
    });
}

}  // namespace

void top_k(const mw_tensor &values, const mw_tensor &ids, int threads) {
    const int64_t n = values.shape[1], k = ids.shape[1];
    if (values.dtype == MW_FLOAT64)
        return for_each_row<double>(values, ids, threads, [&](const double *row, int64_t *to, double *scratch) {
            best_of_row(row, n, k, scratch, to);
        });
    const StepKernels &kernel = *kernels().step;
    for_each_row<float>(values, ids, threads, [&](const float *row, int64_t *to, float *scratch) {
        if (!kernel.top_k(static_cast<int>(n), row, static_cast<int>(k), scratch, to))
            best_of_row(row, n, k, scratch, to);
    });
}

}  // namespace mw
