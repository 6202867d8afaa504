// The definitions of step_kernels.hpp, on the vectors of kernels.inl, which includes this file.

inline float sum_of(vf v) {
    float total = 0.0f;
    for (int i = 0; i < V; ++i) total += v[i];
    return total;
}

inline vf square_root(vf v) {
    float lanes[V];
    store(lanes, v);
#pragma GCC unroll 1
    for (int i = 0; i < V; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
    return load(lanes);
}

bool top_k(int n, const float *row, int k, float *scratch, int64_t *ids) {
    const float lowest = -3.402823466e+38f, nothing = -__builtin_inff();
    vi nan = {};
    int padded = 0;
    for (; padded + V <= n; padded += V) {
        const vf x = load(row + padded);
        nan |= x != x;
        store(scratch + padded, x < all(lowest) ? all(lowest) : x);
    }
    bool any = false;
    if (padded < n) {
        store(scratch + padded, all(nothing));
        for (int i = padded; i < n; ++i) {
            any |= row[i] != row[i];
            scratch[i] = row[i] < lowest ? lowest : row[i];
        }
        padded += V;
    }
    for (int i = 0; i < V; ++i) any |= nan[i] != 0;
    if (any) return false;
    vi lanes;
    for (int i = 0; i < V; ++i) lanes[i] = i;
    // A pass for each: the best of every lane, its first one, then the best of the lanes.
    for (int slot = 0; slot < k; ++slot) {
        vf best = load(scratch);
        vi at = {};
        for (int i = V; i < padded; i += V) {
            const vf x = load(scratch + i);
            const vi more = x > best;
            best = more ? x : best;
            at = more ? vi{} + i : at;
        }
        at += lanes;
        float values[V];
        int32_t places[V];
        store(values, best);
        memcpy(places, &at, sizeof at);
#pragma GCC unroll 4
        for (int half = V / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int i = 0; i < half; ++i) {
                const bool other = (values[i + half] > values[i]) |
                                   ((values[i + half] == values[i]) & (places[i + half] < places[i]));
                values[i] = other ? values[i + half] : values[i];
                places[i] = other ? places[i + half] : places[i];
            }
        ids[slot] = places[0];
        scratch[places[0]] = nothing;
    }
    return true;
}

// Elements whose sum is kept in float32; sums of longer runs are added in double.
constexpr int64_t kRun = 4096;

float cross_entropy(float *row, int64_t n, int64_t target, float scale, bool gradient) {
    vf largest = all(row[0]);
    int64_t i = 0;
    for (; i + V <= n; i += V) {
        const vf x = load(row + i);
        largest = x > largest ? x : largest;
    }
    float max = largest[0];
    for (int lane = 1; lane < V; ++lane) max = largest[lane] > max ? largest[lane] : max;
    for (; i < n; ++i) max = row[i] > max ? row[i] : max;
    const float at_target = row[target] - max;
    double total = 0.0;
    for (int64_t start = 0; start < n; start += kRun) {
        const int length = static_cast<int>(n - start < kRun ? n - start : kRun);
        vf sum = {};
        by_vectors(length, [&](int j, int lanes) {
            float *at = row + start + j;
            const vf e = exponential(load_part(at, lanes) - max);
            if (gradient) store_part(at, e, lanes);
            if (lanes == V)
                sum += e;
            else
                for (int lane = 0; lane < lanes; ++lane) sum[lane] += e[lane];
        });
        total += sum_of(sum);
    }
    if (gradient) {
        const float factor = static_cast<float>(scale / total);
        for (i = 0; i + V <= n; i += V) store(row + i, load(row + i) * factor);
        for (; i < n; ++i) row[i] *= factor;
        row[target] -= scale;
    }
    return scale * static_cast<float>(log(total) - at_target);
}

float rms_norm(int n, const float *x, const float *weight, float eps, float *y) {
    const float r = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + eps);
    by_vectors(n, [&](int i, int lanes) {
        vf scaled = load_part(x + i, lanes) * r;
        if (weight) scaled *= load_part(weight + i, lanes);
        store_part(y + i, scaled, lanes);
    });
    return r;
}

void rms_norm_backward(int n, const float *grad_y, const float *x, const float *weight, float r, float *grad_x,
                       float *grad_weight) {
    vf sum = {};
    by_vectors(n, [&](int i, int lanes) {
        const vf g = load_part(grad_y + i, lanes), v = load_part(x + i, lanes);
        sum += weight ? g * v * load_part(weight + i, lanes) : g * v;
        if (grad_weight) store_part(grad_weight + i, load_part(grad_weight + i, lanes) + g * v * r, lanes);
    });
    const float shared = sum_of(sum) / static_cast<float>(n) * r * r;
    by_vectors(n, [&](int i, int lanes) {
        vf g = load_part(grad_y + i, lanes);
        if (weight) g *= load_part(weight + i, lanes);
        store_part(grad_x + i, (g - load_part(x + i, lanes) * shared) * r, lanes);
    });
}

void rope(int half, const float *x, const float *cosines, const float *sines, float sign, float *y) {
    by_vectors(half, [&](int i, int lanes) {
        const vf first = load_part(x + i, lanes), second = load_part(x + half + i, lanes);
        const vf c = load_part(cosines + i, lanes), s = load_part(sines + i, lanes) * sign;
        store_part(y + i, first * c - second * s, lanes);
        store_part(y + half + i, second * c + first * s, lanes);
    });
}

void adamw(int64_t n, float *param, const float *grad, float *exp_avg, float *exp_avg_sq,
           const AdamWFactors &f) {
    for (int64_t start = 0; start < n; start += kRun) {
        const int length = static_cast<int>(n - start < kRun ? n - start : kRun);
        by_vectors(length, [&](int j, int lanes) {
            const int64_t i = start + j;
            const vf g = load_part(grad + i, lanes) * f.gradient_scale;
            vf m = load_part(exp_avg + i, lanes), v = load_part(exp_avg_sq + i, lanes);
            m += (g - m) * (1.0f - f.beta1);
            v = v * f.beta2 + g * g * (1.0f - f.beta2);
            const vf update = m * f.step_size / (square_root(v) * f.root + f.eps);
            store_part(param + i, load_part(param + i, lanes) * f.decay - update, lanes);
            store_part(exp_avg + i, m, lanes);
            store_part(exp_avg_sq + i, v, lanes);
        });
    }
}

double sum_of_squares(int64_t n, const float *x) {
    double total = 0.0;
    for (int64_t start = 0; start < n; start += kRun) {
        const int64_t length = n - start < kRun ? n - start : kRun;
        total += dot(x + start, x + start, length);
    }
    return total;
}

constexpr StepKernels step_table = {top_k, cross_entropy, rms_norm, rms_norm_backward, rope, adamw, sum_of_squares};
