// What every entry point of the C interface does: checks its arguments, and turns exceptions into messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "moeworks.h"

namespace mw {

inline thread_local std::string last_error;

inline constexpr int64_t kMaxThreads = 4096;
// Widths and rows are int in the kernels; numbers of elements are int64 and may exceed it.
inline constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() / 8;

template <typename Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        last_error = "out of memory";
    } catch (const std::exception &error) {
        last_error = error.what();
    }
    return -1;
}

inline void require(bool condition, const std::string &message) {
    if (!condition) throw std::invalid_argument(message);
}

inline const char *name_of(int32_t dtype) {
    switch (dtype) {
        case MW_FLOAT32: return "float32";
        case MW_BFLOAT16: return "bfloat16";
        case MW_INT64: return "int64";
        case MW_BOOL: return "bool";
        case MW_INT32: return "int32";
        case MW_FLOAT64: return "float64";
        default: return "an unknown dtype";
    }
}

inline uintptr_t size_of(int32_t dtype) {
    switch (dtype) {
        case MW_FLOAT32:
        case MW_INT32: return 4;
        case MW_BFLOAT16: return 2;
        case MW_BOOL: return 1;
        default: return 8;
    }
}

inline std::string text(const int64_t *sizes, int count) {
    std::string out = "[";
    for (int i = 0; i < count; ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
    return out + "]";
}

// Shape, dtype, contiguity and alignment of one tensor; false when it is absent and may be.
inline bool check(const std::string &name, const mw_tensor &t, int32_t dtype, std::initializer_list<int64_t> shape,
           bool optional = false) {
    const int ndim = static_cast<int>(shape.size());
    int64_t count = 1;
    for (int64_t size : shape) {
        require(size >= 0 && (size == 0 || count <= std::numeric_limits<int64_t>::max() / 16 / size),
                name + ": too many elements");
        count *= size;
    }
    if (t.data == nullptr && optional) return false;
    require(t.data != nullptr || count == 0, name + ": is missing");
    require(t.ndim == ndim && std::equal(shape.begin(), shape.end(), t.shape),
            name + ": has shape " + text(t.shape, std::clamp(t.ndim, 0, 4)) + ", needs " +
                text(shape.begin(), ndim));
    require(t.dtype == dtype, name + ": is " + name_of(t.dtype) + ", needs " + name_of(dtype));
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; --i) {
        require(t.shape[i] == 1 || count == 0 || t.stride[i] == stride, name + ": is not contiguous");
        stride *= std::max<int64_t>(t.shape[i], 1);
    }
    require(reinterpret_cast<uintptr_t>(t.data) % size_of(dtype) == 0, name + ": is not aligned to its elements");
    return true;
}

inline int64_t sized(const std::string &name, const mw_tensor &t, int ndim, int dimension) {
    require(t.ndim == ndim, name + ": needs " + std::to_string(ndim) + " dimensions");
    require(t.shape[dimension] >= 0 && t.shape[dimension] <= kMaxSize,
            name + ": dimension " + std::to_string(dimension) + " is out of range");
    return t.shape[dimension];
}

inline void check_threads(int32_t threads) {
    require(threads >= 1 && threads <= kMaxThreads, "threads: must lie between 1 and 4096");
}

}  // namespace mw
