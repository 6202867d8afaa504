// The k largest of each row, in order.
#include <cmath>
#include <limits>

#include "blocks.hpp"
#include "step.hpp"

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

template <typename T> void best_of_rows(const mw_tensor &values, const mw_tensor &ids, int threads) {
    const int64_t rows = values.shape[0], n = values.shape[1], k = ids.shape[1];
    for_rows(rows, n, threads, [&](int64_t row) {
        T best[MW_MAX_TOP_K];
        best_of_row(static_cast<const T *>(values.data) + row * n, n, k, best,
                    static_cast<int64_t *>(ids.data) + row * k);
    });
}

}  // namespace

void top_k(const mw_tensor &values, const mw_tensor &ids, int threads) {
    if (values.dtype == MW_FLOAT64)
        best_of_rows<double>(values, ids, threads);
    else
        best_of_rows<float>(values, ids, threads);
}

}  // namespace mw
