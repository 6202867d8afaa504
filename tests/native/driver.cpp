// Runs the library for the sanitizers: forward and backward over odd shapes and every option, on several of its
// own threads and from several at once, on every instruction set; compares with a plain loop in double; hands in
// broken arguments. Prints "ok", or what went wrong, and then ends with 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "moeworks.h"

namespace {

struct Case {
    int64_t T, D, F, E, K, routes, shared_F;
    int activation;
    bool biases, weigh_input, drops, keep, bfloat16;
};

bool gated(int activation) { return activation == MW_SWIGLU || activation == MW_GEGLU; }

void fail(const std::string &what) {
    std::printf("%s\n", what.c_str());
    std::exit(1);
}

float rounded(float x, bool bfloat16) {
    if (!bfloat16) return x;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    std::memcpy(&x, &bits, 4);
    return x;
}

// A tensor whose memory ends where its elements do, so that the address sanitizer sees each step beyond.
class Array {
  public:
    Array() { std::memset(&t_, 0, sizeof t_); }
    Array(int32_t dtype, std::vector<int64_t> shape) : Array() {
        t_.ndim = static_cast<int32_t>(shape.size());
        t_.dtype = dtype;
        count_ = 1;
        for (int i = t_.ndim - 1; i >= 0; --i) {
            t_.shape[i] = shape[i];
            t_.stride[i] = count_;
            count_ *= shape[i];
        }
        const int sizes[] = {4, 2, 8, 1, 4};
        bytes_.resize(count_ * sizes[dtype]);
        t_.data = bytes_.data();
    }
    mw_tensor tensor() {
        t_.data = bytes_.empty() ? nullptr : bytes_.data();
        return t_;
    }
    template <typename T> T *as() { return reinterpret_cast<T *>(bytes_.data()); }
    int64_t size() const { return count_; }
    const std::vector<char> &bytes() const { return bytes_; }

    float get(int64_t i) const {
        if (t_.dtype == MW_FLOAT32) return reinterpret_cast<const float *>(bytes_.data())[i];
        const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t *>(bytes_.data())[i]) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
    void set(int64_t i, float x) {
        if (t_.dtype == MW_FLOAT32) {
            as<float>()[i] = x;
            return;
        }
        x = rounded(x, true);
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        as<uint16_t>()[i] = static_cast<uint16_t>(bits >> 16);
    }
    void randomise(std::mt19937 &random, double std) {
        std::normal_distribution<float> normal(0.0f, static_cast<float>(std));
        for (int64_t i = 0; i < count_; ++i) set(i, normal(random));
    }

  private:
    mw_tensor t_;
    int64_t count_ = 0;
    std::vector<char> bytes_;
};

struct Layer {
    Case c;
    int64_t U, shared_U;
    Array x, weights, ids, kept, up, down, up_bias, down_bias, shared_up, shared_down, shared_weights;
    Array y, order, offsets, hidden, shared_hidden;
    Array g_y, g_x, g_weights, g_up, g_down, g_up_bias, g_down_bias, g_shared_up, g_shared_down, g_shared_weights;

    Layer(const Case &shape, unsigned seed) : c(shape) {
        std::mt19937 random(seed);
        const int type = c.bfloat16 ? MW_BFLOAT16 : MW_FLOAT32;
        U = (gated(c.activation) ? 2 : 1) * c.F;
        shared_U = (gated(c.activation) ? 2 : 1) * c.shared_F;
        auto made = [&](int dtype, std::vector<int64_t> sizes, double std) {
            Array a(dtype, std::move(sizes));
            a.randomise(random, std);
            return a;
        };
        x = made(type, {c.T, c.D}, 1);
        weights = made(MW_FLOAT32, {c.T, c.K}, 1);
        ids = Array(MW_INT64, {c.T, c.K});
        for (int64_t i = 0; i < ids.size(); ++i) ids.as<int64_t>()[i] = static_cast<int64_t>(random() % c.routes);
        if (c.drops) {
            kept = Array(MW_BOOL, {c.T, c.K});
            for (int64_t i = 0; i < kept.size(); ++i) kept.as<uint8_t>()[i] = random() % 3 != 0;
        }
        up = made(type, {c.E, U, c.D}, 1 / std::sqrt(c.D));
        down = made(type, {c.E, c.D, c.F}, 1 / std::sqrt(c.F));
        y = Array(type, {c.T, c.D});
        order = Array(MW_INT32, {c.T * c.K});
        offsets = Array(MW_INT64, {c.E + 1});
        g_y = made(type, {c.T, c.D}, 1);
        g_x = Array(type, {c.T, c.D});
        g_weights = Array(MW_FLOAT32, {c.T, c.K});
        g_up = Array(type, {c.E, U, c.D});
        g_down = Array(type, {c.E, c.D, c.F});
        if (c.biases) {
            up_bias = made(type, {c.E, U}, 0.3);
            down_bias = made(type, {c.E, c.D}, 0.3);
            g_up_bias = Array(type, {c.E, U});
            g_down_bias = Array(type, {c.E, c.D});
        }
        if (c.keep) hidden = Array(type, {c.T * c.K, U});
        if (c.shared_F == 0) return;
        shared_up = made(type, {shared_U, c.D}, 1 / std::sqrt(c.D));
        shared_down = made(type, {c.D, c.shared_F}, 1 / std::sqrt(c.shared_F));
        shared_weights = made(MW_FLOAT32, {c.T}, 1);
        g_shared_up = Array(type, {shared_U, c.D});
        g_shared_down = Array(type, {c.D, c.shared_F});
        g_shared_weights = Array(MW_FLOAT32, {c.T});
        if (c.keep) shared_hidden = Array(type, {c.T, shared_U});
    }

    mw_experts arguments() {
        mw_experts a{};
        a.x = x.tensor(), a.weights = weights.tensor(), a.expert_ids = ids.tensor(), a.kept = kept.tensor();
        a.up = up.tensor(), a.down = down.tensor(), a.up_bias = up_bias.tensor();
        a.down_bias = down_bias.tensor(), a.shared_up = shared_up.tensor();
        a.shared_down = shared_down.tensor(), a.shared_weights = shared_weights.tensor();
        a.num_routes = c.routes, a.activation = c.activation, a.weigh_input = c.weigh_input;
        a.y = y.tensor(), a.order = order.tensor(), a.offsets = offsets.tensor();
        a.hidden = hidden.tensor(), a.shared_hidden = shared_hidden.tensor();
        return a;
    }

    mw_experts_grad gradients() {
        mw_experts_grad g{};
        g.y = g_y.tensor(), g.x = g_x.tensor(), g.weights = g_weights.tensor(), g.up = g_up.tensor();
        g.down = g_down.tensor(), g.up_bias = g_up_bias.tensor(), g.down_bias = g_down_bias.tensor();
        g.shared_up = g_shared_up.tensor(), g.shared_down = g_shared_down.tensor();
        g.shared_weights = g_shared_weights.tensor();
        return g;
    }

    void run(int threads) {
        const mw_experts a = arguments();
        if (mw_experts_forward(&a, threads) != 0) fail(mw_last_error());
        const mw_experts_grad g = gradients();
        if (mw_experts_backward(&a, &g, threads) != 0) fail(mw_last_error());
        mw_release_cache();  // so that the next call cannot live on what this one left
    }

    std::vector<const Array *> results() const {
        return {&y,    &g_x,         &g_weights,   &g_up,          &g_down,
                &g_up_bias, &g_down_bias, &g_shared_up, &g_shared_down, &g_shared_weights};
    }
};

struct Sums {
    std::vector<double> y, x, weights, up, down, up_bias, down_bias, shared_up, shared_down, shared_weights;
};

void function(int activation, double h, double &value, double &slope) {
    const double cdf = 0.5 * std::erfc(-h * std::sqrt(0.5)), s = 1 / (1 + std::exp(-h)), p = h > 0 ? h : 0;
    switch (activation) {
        case MW_SWIGLU: value = h * s, slope = s + h * s * (1 - s); break;
        case MW_RELU: value = p, slope = h > 0; break;
        case MW_RELU2: value = p * p, slope = 2 * p; break;
        default: value = h * cdf, slope = cdf + h * std::exp(-h * h / 2) * 0.3989422804014327;
    }
}

// One token through one expert, forward and backward.
struct Block {
    const Layer &l;
    int64_t F, U, up_at, down_at;
    const Array &up, &down;
    const Array *up_bias, *down_bias;
    int64_t expert;
    std::vector<double> &g_up, &g_down;
    std::vector<double> *g_up_bias, *g_down_bias;

    void add(int64_t token, double weight, bool weigh_input, Sums &sums, double &g_weight) const {
        const int64_t D = l.c.D;
        const double in = weigh_input ? weight : 1, out = weigh_input ? 1 : weight;
        std::vector<double> h(U), act(F), slope(F), value(F), g_act(F), g_h(U), g_in(D);
        for (int64_t u = 0; u < U; ++u) {
            for (int64_t d = 0; d < D; ++d) h[u] += in * l.x.get(token * D + d) * up.get(up_at + u * D + d);
            if (up_bias) h[u] += up_bias->get(expert * U + u);
        }
        for (int64_t f = 0; f < F; ++f) {
            function(l.c.activation, h[f], value[f], slope[f]);
            act[f] = value[f] * (U > F ? h[F + f] : 1);
        }
        for (int64_t d = 0; d < D; ++d) {
            const double g = l.g_y.get(token * D + d);
            double sum = down_bias ? down_bias->get(expert * D + d) : 0;
            for (int64_t f = 0; f < F; ++f) {
                sum += act[f] * down.get(down_at + d * F + f);
                g_act[f] += out * g * down.get(down_at + d * F + f);
                g_down[down_at + d * F + f] += out * g * act[f];
            }
            sums.y[token * D + d] += out * sum;
            if (!weigh_input) g_weight += g * sum;
            if (g_down_bias) (*g_down_bias)[expert * D + d] += out * g;
        }
        for (int64_t f = 0; f < F; ++f) {
            g_h[f] = g_act[f] * slope[f] * (U > F ? h[F + f] : 1);
            if (U > F) g_h[F + f] = g_act[f] * value[f];
        }
        for (int64_t u = 0; u < U; ++u) {
            if (g_up_bias) (*g_up_bias)[expert * U + u] += g_h[u];
            for (int64_t d = 0; d < D; ++d) {
                g_up[up_at + u * D + d] += g_h[u] * in * l.x.get(token * D + d);
                g_in[d] += g_h[u] * up.get(up_at + u * D + d);
            }
        }
        for (int64_t d = 0; d < D; ++d) {
            sums.x[token * D + d] += in * g_in[d];
            if (weigh_input) g_weight += g_in[d] * l.x.get(token * D + d);
        }
    }
};

Sums plain_loop(Layer &l) {
    const Case &c = l.c;
    Sums s;
    s.y.resize(c.T * c.D), s.x.resize(c.T * c.D), s.weights.resize(c.T * c.K);
    s.up.resize(l.up.size()), s.down.resize(l.down.size()), s.up_bias.resize(l.up_bias.size());
    s.down_bias.resize(l.down_bias.size()), s.shared_up.resize(l.shared_up.size());
    s.shared_down.resize(l.shared_down.size()), s.shared_weights.resize(l.shared_weights.size());
    for (int64_t i = 0; i < c.T * c.K; ++i) {
        const int64_t e = l.ids.as<int64_t>()[i];
        if (e >= c.E || (c.drops && !l.kept.as<uint8_t>()[i])) continue;
        const Block block{l,      c.F,    l.U,    e * l.U * c.D,
                          e * c.D * c.F, l.up, l.down, c.biases ? &l.up_bias : nullptr,
                          c.biases ? &l.down_bias : nullptr, e, s.up, s.down,
                          c.biases ? &s.up_bias : nullptr, c.biases ? &s.down_bias : nullptr};
        block.add(i / c.K, l.weights.get(i), c.weigh_input, s, s.weights[i]);
    }
    for (int64_t t = 0; t < c.T && c.shared_F > 0; ++t) {
        const Block block{l,           c.shared_F,    l.shared_U, 0,       0,       l.shared_up,
                          l.shared_down, nullptr, nullptr,  0, s.shared_up, s.shared_down, nullptr, nullptr};
        block.add(t, l.shared_weights.get(t), false, s, s.shared_weights[t]);
    }
    return s;
}

void compare(const char *name, const Array &got, const std::vector<double> &want, double bar) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        error += (got.get(i) - want[i]) * (got.get(i) - want[i]);
        norm += want[i] * want[i];
    }
    if (!(std::sqrt(error) <= bar * std::sqrt(norm)))
        fail(std::string(name) + ": error " + std::to_string(std::sqrt(error)) + " of " +
             std::to_string(std::sqrt(norm)) + " with " + mw_isa());
}

void compare_all(Layer &l, const Sums &want) {
    // bfloat16: the results are rounded once (2^-9), and so are the hidden rows that are kept (3 times that at most).
    const double bar = l.c.bfloat16 ? 4.0 / 512 : 3e-6;
    compare("y", l.y, want.y, bar);
    compare("grad x", l.g_x, want.x, bar);
    compare("grad weights", l.g_weights, want.weights, bar);
    compare("grad up", l.g_up, want.up, bar);
    compare("grad down", l.g_down, want.down, bar);
    compare("grad up_bias", l.g_up_bias, want.up_bias, bar);
    compare("grad down_bias", l.g_down_bias, want.down_bias, bar);
    compare("grad shared_up", l.g_shared_up, want.shared_up, bar);
    compare("grad shared_down", l.g_shared_down, want.shared_down, bar);
    compare("grad shared_weights", l.g_shared_weights, want.shared_weights, bar);
}

void broken_arguments() {
    const Case c{7, 5, 3, 2, 2, 3, 4, MW_SWIGLU, true, false, true, true, false};
    auto refused = [&](auto spoil, bool forward) {
        Layer l(c, 1);
        mw_experts a = l.arguments();
        mw_experts_grad g = l.gradients();
        if (!forward && mw_experts_forward(&a, 2) != 0) fail(mw_last_error());
        spoil(l, a, g);
        if ((forward ? mw_experts_forward(&a, 2) : mw_experts_backward(&a, &g, 2)) == 0) fail("not refused");
    };
    using A = mw_experts;
    using G = mw_experts_grad;
    for (int64_t id : {int64_t{-1}, c.routes, int64_t{1} << 40})
        refused([&](Layer &l, A &, G &) { l.ids.as<int64_t>()[3] = id; }, true);
    refused([](Layer &, A &a, G &) { a.x.shape[0] = int64_t{1} << 33; }, true);
    refused([](Layer &, A &a, G &) { a.up.shape[2] = -1; }, true);
    refused([](Layer &, A &a, G &) { a.down.stride[0] = 1; }, true);
    refused([](Layer &, A &a, G &) { a.weights.data = nullptr; }, true);
    refused([](Layer &, A &a, G &) { a.up_bias.dtype = 77; }, true);
    refused([](Layer &, A &a, G &) { a.y.ndim = 1 << 30; }, true);
    refused([](Layer &, A &a, G &) { a.x.data = static_cast<char *>(a.x.data) + 1; }, true);
    refused([](Layer &l, A &, G &) { l.offsets.as<int64_t>()[1] = 1000; }, false);
    refused([](Layer &l, A &, G &) { l.offsets.as<int64_t>()[0] = -1; }, false);
    refused([](Layer &l, A &, G &) { l.order.as<int32_t>()[0] = 14; }, false);
    refused([](Layer &, A &, G &g) { g.shared_up.shape[0] += 1; }, false);
    refused([](Layer &, A &, G &g) { g.y.data = nullptr; }, false);
    if (mw_experts_forward(nullptr, 1) == 0 || mw_experts_backward(nullptr, nullptr, 1) == 0) fail("NULL");
    // Bytes of a mask that are neither 0 nor 1, and gradients that nobody wants.
    Layer l(c, 1);
    for (int64_t i = 0; i < l.kept.size(); ++i) l.kept.as<uint8_t>()[i] = static_cast<uint8_t>(37 * i);
    const mw_experts a = l.arguments();
    mw_experts_grad g = l.gradients();
    if (mw_experts_forward(&a, 2) != 0) fail(mw_last_error());
    for (unsigned wanted = 0; wanted < 512; ++wanted) {
        mw_tensor *all[] = {&g.x, &g.weights, &g.up, &g.down, &g.up_bias, &g.down_bias, &g.shared_up,
                            &g.shared_down, &g.shared_weights};
        g = l.gradients();
        for (int i = 0; i < 9; ++i)
            if (!(wanted >> i & 1)) all[i]->data = nullptr;
        if (mw_experts_backward(&a, &g, 2) != 0) fail(mw_last_error());
    }
}

}  // namespace

int main() {
    const Case cases[] = {
        // T, D, F, E, K, routes, shared_F, activation, biases, weigh_input, drops, keep, bfloat16
        {0, 5, 3, 2, 1, 2, 2, MW_SWIGLU, true, false, false, true, false},
        {1, 1, 1, 1, 1, 1, 0, MW_RELU, false, false, false, true, false},
        {3, 17, 5, 4, 2, 6, 7, MW_GEGLU, true, false, true, false, false},
        {70, 33, 19, 5, 3, 5, 0, MW_SWIGLU, true, true, true, true, false},
        {301, 29, 41, 2, 1, 3, 37, MW_GELU, true, false, false, false, false},
        {301, 40, 130, 1, 1, 1, 0, MW_RELU2, false, true, false, true, false},
        {50, 13, 270, 3, 2, 3, 5, MW_SWIGLU, false, false, true, true, true},
        {61, 31, 7, 9, 4, 10, 3, MW_SWIGLU, true, false, true, false, true},
        {45, 300, 6, 2, 2, 2, 0, MW_GEGLU, true, true, false, true, true},
    };
    unsigned seed = 0;
    for (const Case &c : cases) {
        Layer want(c, ++seed);
        const Sums sums = plain_loop(want);
        for (const char *isa : {"avx512", "avx2", "neon", "portable"}) {
            if (mw_set_isa(isa) != 0) continue;
            want.run(1);
            compare_all(want, sums);
            for (int threads : {2, 3, 8}) {
                Layer got(c, seed);
                got.run(threads);
                for (size_t i = 0; i < want.results().size(); ++i)
                    if (got.results()[i]->bytes() != want.results()[i]->bytes()) fail("threads change bits");
            }
        }
    }
    // Several callers at once: one has the pool, the others compute alone.
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i)
        callers.emplace_back([&] {
            for (const Case &c : cases) Layer(c, 5).run(3);
        });
    for (std::thread &caller : callers) caller.join();
    broken_arguments();
    std::printf("ok\n");
    return 0;
}
