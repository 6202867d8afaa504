// Rows in blocks that threads take one after another.
#pragma once

#include <algorithm>
#include <atomic>

#include "parallel.hpp"

namespace mw {

constexpr int64_t kBlockElements = 1 << 14;

// Rows of a block: about kBlockElements elements.
inline int64_t rows_of_block(int64_t width) { return std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, width)); }

inline int64_t count_blocks(int64_t rows, int64_t rows_each) { return (rows + rows_each - 1) / rows_each; }

// work(block, thread) for every block; which thread does it is left open. Work must not throw.
template <typename Work> void for_blocks(int64_t count, int threads, Work work) {
    std::atomic<int64_t> next{0};
    run_parallel(static_cast<int>(std::min<int64_t>(threads, count)), [&](int thread) {
        for (int64_t block; (block = next.fetch_add(1)) < count;) work(block, thread);
    });
}

// work(row) for every row, by blocks of rows that have `width` elements each.
template <typename Work> void for_rows(int64_t rows, int64_t width, int threads, Work work) {
    const int64_t each = rows_of_block(width);
    for_blocks(count_blocks(rows, each), threads, [&](int64_t block, int) {
        for (int64_t row = block * each, stop = std::min(rows, row + each); row < stop; ++row) work(row);
    });
}

}  // namespace mw
