// The leaf loops that exist once per instruction set. kernels.inl defines them, a small file per set compiles
// them with its flags, and `kernels()` says which set is in use.
#pragma once

#include <cstdint>

namespace mw {

enum Type { kFloat32 = 0, kBFloat16 = 1 };
constexpr int kTypes = 2;

// Memory that is read next: a product fetches it into the cache between its tiles.
struct Ahead {
    const char *data = nullptr;
    int64_t ld = 0;  // bytes from row to row
    int rows = 0, bytes = 0;
};

// A matrix whose elements are float32 or bfloat16; row i lies at data + index(i) * ld.
struct Matrix {
    const void *data = nullptr;
    int64_t ld = 0;
    int type = kFloat32;
    const int32_t *rows = nullptr;  // gathers: index(i) = rows[i]; else i
    const float *scale = nullptr;   // multiplies row i by scale[i]; else by 1

    Matrix from(int64_t row, int64_t column) const {
        const int64_t size = type == kFloat32 ? 4 : 2;
        Matrix part = *this;
        part.data = static_cast<const char *>(data) + size * ((rows ? 0 : row * ld) + column);
        part.rows = rows ? rows + row : nullptr;
        part.scale = scale ? scale + row : nullptr;
        return part;
    }

    // Of rows [row, row + count) the columns [column, column + width); nothing for gathered rows.
    Ahead ahead(int64_t row, int count, int64_t column, int width) const {
        if (rows != nullptr || data == nullptr) return {};
        const int size = type == kFloat32 ? 4 : 2;
        return {static_cast<const char *>(from(row, column).data), ld * size, count, width * size};
    }
};

// Floats that a packed operand may be overwritten by behind its end.
constexpr int kSlack = 16;

struct StepKernels;  // step_kernels.hpp

struct Kernels {
    const char *name;
    int mr, nr;  // the tile that stays in registers

    // The left operand of a product in panels of mr rows, each [k][mr]; the right one in panels of nr columns,
    // each [k][nr], zero beyond its last column. "t": the source holds the transposed matrix.
    void (*pack_left)(float *to, Matrix source, int m, int k);     // source [m, k]
    void (*pack_left_t)(float *to, Matrix source, int m, int k);   // source [k, m]
    void (*pack_right)(float *to, Matrix source, int k, int n);    // source [k, n]
    void (*pack_right_t)(float *to, Matrix source, int k, int n);  // source [n, k]

    // c [m, n] = (accumulate ? c : 0) + left * right.
    void (*multiply)(int m, int n, int k, const float *left, const float *right, float *c, int64_t ldc,
                     bool accumulate, const Ahead &ahead);

    // hidden [2n] (gate at 0, up at `up`) or [n] -> act [n], times weight. `activation` is mw_activation.
    void (*activate)(int activation, int n, const float *hidden, int64_t up, float weight, float *act);
    // Backward of the activation: from grad [n] of the unweighted act, writes grad_hidden (that of gate at 0, of up
    // at grad_up), and act times weight over grad. Returns sum(grad * act), the gradient of the weight.
    float (*activate_backward)(int activation, int n, float *grad, const float *hidden, int64_t up,
                               float weight, float *grad_hidden, int64_t grad_up);

    void (*add)(float *to, const float *from, int64_t n, float scale);       // to += scale * from
    float (*dot)(const float *a, const float *b, int64_t n);
    void (*widen)(float *to, const void *from, int type, int64_t n);         // to float32
    void (*narrow)(void *to, int type, const float *from, int64_t n);        // from float32, to nearest even

    const StepKernels *step;
};

const Kernels &kernels();
bool use_kernels(const char *name);

// The sets of this build; a null pointer where the processor lacks it.
const Kernels *kernels_avx512();
const Kernels *kernels_avx2();
const Kernels *kernels_neon();
const Kernels *kernels_portable();

}  // namespace mw
