// The leaf loops, written once on vectors of VECTOR floats. The including file defines KERNELS (the name of its
// function), NAME, VECTOR, TILE_ROWS and TILE_VECTORS.
//
// Everything here is in an unnamed namespace and uses no standard templates: a function shared with other files
// could be linked in the version of an instruction set that the processor lacks.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.hpp"
#include "moeworks.h"
#include "step_kernels.hpp"

namespace mw {
namespace {

constexpr int V = VECTOR, MR = TILE_ROWS, NV = TILE_VECTORS, NR = NV * V;
static_assert(MR % V == 0 || MR < V, "a panel is part of a vector or whole vectors");
static_assert(V <= kSlack, "packing writes up to a vector beyond its last panel");

typedef float vf __attribute__((vector_size(VECTOR * 4)));
typedef int32_t vi __attribute__((vector_size(VECTOR * 4)));
typedef uint16_t vh __attribute__((vector_size(VECTOR * 2)));

inline vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
inline vf all(float x) { return x - vf{}; }

inline float widened(uint16_t h) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float read(const float *p) { return *p; }
inline float read(const uint16_t *p) { return widened(*p); }
inline vf read_vector(const float *p) { return load(p); }
inline vf read_vector(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    const vi bits = __builtin_convertvector(h, vi) << 16;
    vf v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <typename T> struct Rows {
    const T *data;
    int64_t ld;
    const int32_t *index;
    const float *scales;
    explicit Rows(const Matrix &m)
        : data(static_cast<const T *>(m.data)), ld(m.ld), index(m.rows), scales(m.scale) {}
    const T *row(int i) const { return data + (index ? index[i] : static_cast<int64_t>(i)) * ld; }
    float scale(int i) const { return scales ? scales[i] : 1.0f; }
};

// One step of the perfect shuffle: its log2(V)-fold repetition transposes V x V.
#if VECTOR == 16
#define INTERLEAVE_LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VECTOR == 8
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

inline __attribute__((always_inline)) void transpose(vf (&t)[V]) {
#pragma GCC unroll 4
    for (int step = 1; step < V; step *= 2) {
        vf next[V];
#pragma GCC unroll 8
        for (int i = 0; i < V / 2; ++i) {
            next[2 * i] = INTERLEAVE_LOW(t[i], t[i + V / 2]);
            next[2 * i + 1] = INTERLEAVE_HIGH(t[i], t[i + V / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < V; ++i) t[i] = next[i];
    }
}

// to[k * width + i] = scale(i) * source[i][k] for i < count <= width, k < length; 0 for i >= count.
template <typename T, int WIDTH>
void pack_transposed(float *to, const Rows<T> &source, int count, int length) {
    for (int i0 = 0; i0 < WIDTH; i0 += V) {
        const int lanes = count - i0 < V ? count - i0 : V;
        const int wanted = WIDTH < V ? WIDTH : V;
        const T *rows[V];
        float scale[V];
        for (int i = 0; i < V; ++i) {
            const bool real = i < lanes;
            rows[i] = source.row(real ? i0 + i : 0);
            scale[i] = real ? source.scale(i0 + i) : 0.0f;
        }
        int k = 0;
        for (; k + V <= length; k += V) {
            vf t[V];
#pragma GCC unroll 16
            for (int i = 0; i < V; ++i) t[i] = i < lanes ? read_vector(rows[i] + k) * scale[i] : vf{};
            transpose(t);
            float *out = to + static_cast<int64_t>(k) * WIDTH + i0;
            // A panel narrower than a vector: the surplus lanes fall where the next ones are written, and
            // after the last panel into kSlack.
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) store(out + j * WIDTH, t[j]);
        }
        for (; k < length; ++k)
            for (int i = 0; i < wanted; ++i)
                to[static_cast<int64_t>(k) * WIDTH + i0 + i] = i < lanes ? read(rows[i] + k) * scale[i] : 0.0f;
    }
}

// to[k * width + i] = scale(k) * source[k][i] for i < count <= width; 0 for i >= count. `readable` >= count are
// the elements of a row that exist: a panel narrower than a vector reads and writes a whole one where it can.
template <typename T, int WIDTH>
void pack_straight(float *to, const Rows<T> &source, int count, int readable, int length) {
    constexpr int WHOLE = WIDTH < V ? V : WIDTH;
    for (int k = 0; k < length; ++k, to += WIDTH) {
        const T *row = source.row(k);
        const float scale = source.scale(k);
        if (count == WIDTH && readable >= WHOLE) {
#pragma GCC unroll 4
            for (int i = 0; i < WIDTH; i += V) store(to + i, read_vector(row + i) * scale);
        } else {
            for (int i = 0; i < count; ++i) to[i] = read(row + i) * scale;
            for (int i = count; i < WIDTH; ++i) to[i] = 0.0f;
        }
    }
}

template <typename T, int WIDTH, bool TRANSPOSED>
void pack_panels(float *to, const Matrix &source, int count, int length) {
    for (int i = 0; i < count; i += WIDTH, to += static_cast<int64_t>(length) * WIDTH) {
        const int width = count - i < WIDTH ? count - i : WIDTH;
        if (TRANSPOSED)
            pack_transposed<T, WIDTH>(to, Rows<T>(source.from(i, 0)), width, length);
        else
            pack_straight<T, WIDTH>(to, Rows<T>(source.from(0, i)), width, count - i, length);
    }
}

template <int WIDTH, bool TRANSPOSED>
void pack(float *to, const Matrix &source, int count, int length) {
    if (source.type == kFloat32)
        pack_panels<float, WIDTH, TRANSPOSED>(to, source, count, length);
    else
        pack_panels<uint16_t, WIDTH, TRANSPOSED>(to, source, count, length);
}

void pack_left(float *to, Matrix source, int m, int k) { pack<MR, true>(to, source, m, k); }
void pack_left_t(float *to, Matrix source, int m, int k) { pack<MR, false>(to, source, m, k); }
void pack_right(float *to, Matrix source, int k, int n) { pack<NR, false>(to, source, n, k); }
void pack_right_t(float *to, Matrix source, int k, int n) { pack<NR, true>(to, source, n, k); }

// ROWS x (VECTORS * V) of c, all of it in registers.
template <int ROWS, int VECTORS>
void tile(int k, const float *left, const float *right, float *c, int64_t ldc, bool accumulate, int columns) {
    vf sum[ROWS][VECTORS] = {};
    for (int p = 0; p < k; ++p, left += MR, right += NR) {
        vf b[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) b[j] = load(right + j * V);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) sum[i][j] += left[i] * b[j];
        }
    }
    if (columns == VECTORS * V) {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) {
                float *to = c + i * ldc + j * V;
                store(to, accumulate ? load(to) + sum[i][j] : sum[i][j]);
            }
        }
        return;
    }
    for (int i = 0; i < ROWS; ++i) {
        float row[VECTORS * V];
        for (int j = 0; j < VECTORS; ++j) store(row + j * V, sum[i][j]);
        for (int j = 0; j < columns; ++j) c[i * ldc + j] = accumulate ? c[i * ldc + j] + row[j] : row[j];
    }
}

using Tile = void (*)(int, const float *, const float *, float *, int64_t, bool, int);

template <int ROWS, int VECTORS> constexpr Tile tile_for(int rows, int vectors) {
    if (rows == ROWS && vectors == VECTORS) return tile<ROWS, VECTORS>;
    if constexpr (VECTORS > 1) {
        if (rows == ROWS) return tile_for<ROWS, VECTORS - 1>(rows, vectors);
    }
    if constexpr (ROWS > 1) return tile_for<ROWS - 1, NV>(rows, vectors);
    return nullptr;
}

struct TileTable {
    Tile at[MR + 1][NV + 1];
    constexpr TileTable() : at() {
        for (int rows = 1; rows <= MR; ++rows)
            for (int vectors = 1; vectors <= NV; ++vectors) at[rows][vectors] = tile_for<MR, NV>(rows, vectors);
    }
};

constexpr TileTable tiles;

// Walks over the lines of an Ahead, some at a time.
class Fetcher {
  public:
    Fetcher(const Ahead &ahead, int steps)
        : ahead_(ahead), each_((ahead.rows * ((ahead.bytes + 63) / 64) + steps - 1) / steps) {}

    void step() {
        for (int i = 0; i < each_ && row_ < ahead_.rows; ++i) {
            __builtin_prefetch(ahead_.data + row_ * ahead_.ld + offset_, 0, 2);
            offset_ += 64;
            if (offset_ >= ahead_.bytes) {
                offset_ = 0;
                ++row_;
            }
        }
    }

  private:
    const Ahead ahead_;
    const int each_;
    int64_t row_ = 0;
    int offset_ = 0;
};

void multiply(int m, int n, int k, const float *left, const float *right, float *c, int64_t ldc,
              bool accumulate, const Ahead &ahead) {
    Fetcher fetcher(ahead, ((m + MR - 1) / MR) * ((n + NR - 1) / NR));
    for (int i = 0; i < m; i += MR) {
        const int rows = m - i < MR ? m - i : MR;
        for (int j = 0; j < n; j += NR) {
            const int columns = n - j < NR ? n - j : NR;
            fetcher.step();
            tiles.at[rows][(columns + V - 1) / V](k, left + static_cast<int64_t>(i) * k,
                                                  right + static_cast<int64_t>(j) * k, c + i * ldc + j, ldc,
                                                  accumulate, columns);
        }
    }
}

// exp(x) to about 1 ulp: 2^n * exp(r), |r| <= log(2) / 2, with the Taylor polynomial of degree 7 for exp(r).
inline vf exponential(vf x) {
    x = x < all(-87.0f) ? all(-87.0f) : x;
    x = x > all(88.0f) ? all(88.0f) : x;
    const vf shifted = x * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
    const vf n = shifted - 12582912.0f;
    const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vf p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vi bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000 + 127) << 23;
    vf power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

inline vf exact_erf(vf x);

// value(h) and slope(h) of the function inside an activation.
struct Silu {
    static void at(vf x, vf &value, vf &slope) {
        const vf s = sigmoid(x);
        value = x * s;
        slope = s + value * (1.0f - s);
    }
};
struct Gelu {
    static void at(vf x, vf &value, vf &slope) {
        const vf cdf = 0.5f + 0.5f * exact_erf(x * 0.707106781f);
        value = x * cdf;
        slope = cdf + x * exponential(-0.5f * x * x) * 0.398942280f;
    }
};
struct Relu {
    static void at(vf x, vf &value, vf &slope) {
        // A NaN stays one, as in torch.
        value = x < all(0.0f) ? all(0.0f) : x;
        slope = x > all(0.0f) ? all(1.0f) : all(0.0f);
    }
};
struct Relu2 {
    static void at(vf x, vf &value, vf &slope) {
        const vf positive = x < all(0.0f) ? all(0.0f) : x;
        value = positive * positive;
        slope = 2.0f * positive;
    }
};

// erf: an odd polynomial for |x| < 1; beyond it 1 - exp(-t (a0 + a1 t + ...)). Both were fitted for this file
// (relative error below 1.2e-7); beyond 4 the result rounds to 1.
inline vf exact_erf(vf x) {
    const vf t = x < all(0.0f) ? -x : x;
    const vf s = x * x;
    vf small = all(-9.641518773e-06f);
    small = small * s + 1.125694907e-04f;
    small = small * s + -8.482828853e-04f;
    small = small * s + 5.220945459e-03f;
    small = small * s + -2.686540037e-02f;
    small = small * s + 1.128378212e-01f;
    small = small * s + -3.761263788e-01f;
    small = small * s + 1.128379226e+00f;
    const vf c = t > all(4.0f) ? all(4.0f) : t;
    vf large = all(-1.945694748e-05f);
    large = large * c + 4.139939556e-04f;
    large = large * c + -4.064816050e-03f;
    large = large * c + 2.482175641e-02f;
    large = large * c + -1.077929661e-01f;
    large = large * c + -6.338133812e-01f;
    large = large * c + -1.129272580e+00f;
    large = large * c + 1.218726247e-04f;
    const vf tail = 1.0f - exponential(large);
    const vf signed_tail = x < all(0.0f) ? -tail : tail;
    const vf result = t < all(1.0f) ? small * x : signed_tail;
    return x == x ? result : x;
}

// Calls f on vectors; the last one is padded with zeros in a copy.
template <typename F> inline __attribute__((always_inline)) void by_vectors(int n, F f) {
    int i = 0;
    for (; i + V <= n; i += V) f(i, V);
    if (i < n) f(i, n - i);
}
inline vf load_part(const float *p, int lanes) {
    if (lanes == V) return load(p);
    vf v = {};
    memcpy(&v, p, sizeof(float) * lanes);
    return v;
}
inline void store_part(float *p, vf v, int lanes) {
    if (lanes == V)
        store(p, v);
    else
        memcpy(p, &v, sizeof(float) * lanes);
}

template <typename Function, bool GATED>
void activate_with(int n, const float *hidden, int64_t up, float weight, float *act) {
    by_vectors(n, [&](int i, int lanes) {
        vf value, slope;
        Function::at(load_part(hidden + i, lanes), value, slope);
        if (GATED) value *= load_part(hidden + up + i, lanes);
        store_part(act + i, value * weight, lanes);
    });
}

template <typename Function, bool GATED>
float activate_backward_with(int n, float *grad, const float *hidden, int64_t up, float weight,
                             float *grad_hidden, int64_t grad_up) {
    vf sum = {};
    by_vectors(n, [&](int i, int lanes) {
        vf value, slope;
        Function::at(load_part(hidden + i, lanes), value, slope);
        const vf g = load_part(grad + i, lanes);
        const vf weighted = g * weight;
        vf act = value;
        if (GATED) {
            const vf u = load_part(hidden + up + i, lanes);
            act = value * u;
            store_part(grad_hidden + i, weighted * u * slope, lanes);
            store_part(grad_hidden + grad_up + i, weighted * value, lanes);
        } else {
            store_part(grad_hidden + i, weighted * slope, lanes);
        }
        sum += g * act;
        store_part(grad + i, act * weight, lanes);
    });
    float total = 0.0f;
    for (int i = 0; i < V; ++i) total += sum[i];
    return total;
}

void activate(int activation, int n, const float *hidden, int64_t up, float weight, float *act) {
    switch (activation) {
        case MW_SWIGLU: return activate_with<Silu, true>(n, hidden, up, weight, act);
        case MW_GEGLU: return activate_with<Gelu, true>(n, hidden, up, weight, act);
        case MW_RELU: return activate_with<Relu, false>(n, hidden, up, weight, act);
        case MW_GELU: return activate_with<Gelu, false>(n, hidden, up, weight, act);
        default: return activate_with<Relu2, false>(n, hidden, up, weight, act);
    }
}

float activate_backward(int activation, int n, float *grad, const float *hidden, int64_t up, float weight,
                        float *grad_hidden, int64_t grad_up) {
    switch (activation) {
        case MW_SWIGLU: return activate_backward_with<Silu, true>(n, grad, hidden, up, weight, grad_hidden, grad_up);
        case MW_GEGLU: return activate_backward_with<Gelu, true>(n, grad, hidden, up, weight, grad_hidden, grad_up);
        case MW_RELU: return activate_backward_with<Relu, false>(n, grad, hidden, up, weight, grad_hidden, grad_up);
        case MW_GELU: return activate_backward_with<Gelu, false>(n, grad, hidden, up, weight, grad_hidden, grad_up);
        default: return activate_backward_with<Relu2, false>(n, grad, hidden, up, weight, grad_hidden, grad_up);
    }
}

void add(float *to, const float *from, int64_t n, float scale) {
    int64_t i = 0;
    for (; i + V <= n; i += V) store(to + i, load(to + i) + scale * load(from + i));
    for (; i < n; ++i) to[i] += scale * from[i];
}

float dot(const float *a, const float *b, int64_t n) {
    vf sum = {};
    int64_t i = 0;
    for (; i + V <= n; i += V) sum += load(a + i) * load(b + i);
    float total = 0.0f;
    for (; i < n; ++i) total += a[i] * b[i];
    for (int lane = 0; lane < V; ++lane) total += sum[lane];
    return total;
}

void widen(float *to, const void *from, int type, int64_t n) {
    if (type == kFloat32) {
        memcpy(to, from, sizeof(float) * n);
        return;
    }
    const uint16_t *half = static_cast<const uint16_t *>(from);
    int64_t i = 0;
    for (; i + V <= n; i += V) store(to + i, read_vector(half + i));
    for (; i < n; ++i) to[i] = widened(half[i]);
}

void narrow(void *to, int type, const float *from, int64_t n) {
    if (type == kFloat32) {
        memcpy(to, from, sizeof(float) * n);
        return;
    }
    uint16_t *half = static_cast<uint16_t *>(to);
    for (int64_t i = 0; i < n; ++i) half[i] = narrowed(from[i]);
}

#include "step_kernels.inl"

constexpr Kernels table = {NAME,     MR,       NR,  pack_left, pack_left_t, pack_right, pack_right_t,
                           multiply, activate, activate_backward, add, dot, widen, narrow, &step_table};

}  // namespace

const Kernels *KERNELS() { return &table; }

}  // namespace mw
