// Products of matrices of any size from the tiles of a kernel set, with operands packed as they are needed.
#pragma once

#include <algorithm>

#include "kernels.hpp"

namespace mw {

// Rows of the inner dimension that are multiplied at a time: a panel of the left operand stays in the first
// cache. It also bounds how long one chain of float32 additions grows.
constexpr int kDepth = 256;
// Columns that are packed at a time: with kDepth rows they stay in the second cache.
constexpr int kColumns = 128;

inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Columns of a chunk of the right operand: about kColumns, in whole panels.
inline int chunk_columns(const Kernels &k) { return std::max(kColumns / k.nr, 1) * k.nr; }

inline int64_t left_size(const Kernels &k, int m, int depth) {
    return static_cast<int64_t>(up_to(m, k.mr)) * depth + kSlack;
}
inline int64_t right_size(const Kernels &k) {
    return static_cast<int64_t>(up_to(chunk_columns(k), k.nr)) * kDepth + kSlack;
}

// Packs the whole left operand: source is [m, depth], or [depth, m] with `transposed`.
inline void pack_left(const Kernels &k, float *to, const Matrix &source, int m, int depth, bool transposed) {
    for (int p = 0; p < depth; p += kDepth) {
        const int length = std::min(kDepth, depth - p);
        float *block = to + static_cast<int64_t>(up_to(m, k.mr)) * p;
        if (transposed)
            k.pack_left_t(block, source.from(p, 0), m, length);
        else
            k.pack_left(block, source.from(0, p), m, length);
    }
}

// The right operand of a product: its source is [depth, columns], or [columns, depth] with `transposed`.
struct Right {
    Matrix source;
    bool transposed;

    // What a product of a chunk of n columns from j packs first.
    Ahead ahead(int64_t j, int n, int64_t p, int depth) const {
        const int length = static_cast<int>(std::min<int64_t>(kDepth, depth - p));
        return transposed ? source.ahead(j, n, p, length) : source.ahead(p, length, j, n);
    }
};

// c [m, n] = (accumulate ? c : 0) + left * right, for n of at most one chunk: columns j .. j + n of the right
// operand. `scratch` holds right_size; `next` is what the caller reads after it.
inline void multiply_chunk(const Kernels &k, const float *left, int m, int depth, const Right &right, int64_t j,
                           int n, float *c, int64_t ldc, bool accumulate, float *scratch, const Ahead &next) {
    for (int p = 0; p < depth; p += kDepth) {
        const int length = std::min(kDepth, depth - p);
        if (right.transposed)
            k.pack_right_t(scratch, right.source.from(j, p), length, n);
        else
            k.pack_right(scratch, right.source.from(p, j), length, n);
        k.multiply(m, n, length, left + static_cast<int64_t>(up_to(m, k.mr)) * p, scratch, c, ldc,
                   accumulate || p > 0, p + kDepth < depth ? right.ahead(j, n, p + kDepth, depth) : next);
    }
}

// c [m, n] = (accumulate ? c : 0) + left * right, for any n.
inline void multiply(const Kernels &k, const float *left, int m, int depth, const Right &right, int n, float *c,
                     int64_t ldc, bool accumulate, float *scratch, const Ahead &next = {}) {
    const int chunk = chunk_columns(k);
    for (int j = 0; j < n; j += chunk) {
        const int after = std::min(chunk, n - j - chunk);
        multiply_chunk(k, left, m, depth, right, j, std::min(chunk, n - j), c + j, ldc, accumulate, scratch,
                       after > 0 ? right.ahead(j + chunk, after, 0, depth) : next);
    }
}

}  // namespace mw
