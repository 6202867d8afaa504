#include "layer.hpp"

#include <algorithm>

namespace mw {
namespace {

void *offset(const mw_tensor &t, int64_t elements) {
    if (t.data == nullptr) return nullptr;
    return static_cast<char *>(t.data) + elements * element_size(t.dtype);
}

void find_rows(Layer &layer, const mw_experts &a) {
    const int64_t experts = a.up.shape[0], top_k = a.expert_ids.shape[1];
    const int32_t *order = static_cast<const int32_t *>(a.order.data);
    const int64_t *offsets = static_cast<const int64_t *>(a.offsets.data);
    const float *weights = static_cast<const float *>(a.weights.data);
    const int64_t rows = offsets[experts];
    layer.token_of_row = Buffer<int32_t>(rows);
    layer.weight_of_row = Buffer<float>(rows);
    layer.fresh = Buffer<uint8_t>(rows);
    std::vector<bool> seen(layer.tokens, false);
    for (int64_t row = 0; row < rows; ++row) {
        const int32_t token = order[row] / static_cast<int32_t>(top_k);
        layer.token_of_row[row] = token;
        layer.weight_of_row[row] = weights[order[row]];
        layer.fresh[row] = !seen[token];
        seen[token] = true;
    }
    if (a.shared_up.data != nullptr) {
        layer.fresh_shared = Buffer<uint8_t>(layer.tokens);
        for (int64_t token = 0; token < layer.tokens; ++token) layer.fresh_shared[token] = !seen[token];
        return;
    }
    for (int64_t token = 0; token < layer.tokens; ++token)
        if (!seen[token]) layer.untouched.push_back(token);
}

void add_experts(Layer &layer, const mw_experts &a, const mw_experts_grad *grad) {
    const int64_t experts = a.up.shape[0], U = a.up.shape[1], D = a.up.shape[2], F = a.down.shape[2];
    const int64_t *offsets = static_cast<const int64_t *>(a.offsets.data);
    for (int64_t i = 0; i < experts; ++i) {
        Expert e;
        e.first = offsets[i];
        e.rows = offsets[i + 1] - offsets[i];
        e.tokens = layer.token_of_row.get() + e.first;
        e.weights = layer.weight_of_row.get() + e.first;
        e.fresh = layer.fresh.get() + e.first;
        e.hidden_width = static_cast<int>(U);
        e.width = static_cast<int>(F);
        e.weigh_input = a.weigh_input != 0;
        e.up = offset(a.up, i * U * D);
        e.down = offset(a.down, i * D * F);
        e.up_bias = offset(a.up_bias, i * U);
        e.down_bias = offset(a.down_bias, i * D);
        e.hidden = offset(a.hidden, e.first * U);
        if (grad != nullptr) {
            e.grad_up = offset(grad->up, i * U * D);
            e.grad_down = offset(grad->down, i * D * F);
            e.grad_up_bias = offset(grad->up_bias, i * U);
            e.grad_down_bias = offset(grad->down_bias, i * D);
            e.wants_grad_weights = grad->weights.data != nullptr;
        }
        layer.experts.push_back(e);
    }
    if (a.shared_up.data == nullptr) return;
    Expert e;
    e.rows = layer.tokens;
    e.weights = static_cast<const float *>(a.shared_weights.data);
    e.fresh = layer.fresh_shared.get();
    e.hidden_width = static_cast<int>(a.shared_up.shape[0]);
    e.width = static_cast<int>(a.shared_down.shape[1]);
    e.up = a.shared_up.data;
    e.down = a.shared_down.data;
    e.hidden = a.shared_hidden.data;
    if (grad != nullptr) {
        e.grad_up = grad->shared_up.data;
        e.grad_down = grad->shared_down.data;
        e.wants_grad_weights = grad->shared_weights.data != nullptr;
    }
    layer.experts.push_back(e);
}

int64_t parts_of(int64_t rows, int64_t limit) { return (rows + limit - 1) / limit; }

int64_t span_rows(const Expert &e) {
    const int64_t row_bytes = int64_t{4} * (e.hidden_width + e.width);
    return std::clamp<int64_t>(kSpanBytes / row_bytes, kDepth, kSpanRows);
}

// Fewer, larger blocks pack each weight less often; more, smaller ones share the work among the threads. What a
// row computes does not depend on its block, and spans do not depend on the number of threads.
void cut_rows(Layer &layer, int threads) {
    int64_t whole = 0;
    for (const Expert &e : layer.experts) whole += parts_of(e.rows, kBlockRows);
    const int64_t limit = whole >= int64_t{threads} * kBlocksPerThread ? kBlockRows : kBlockRows / 2;
    for (size_t i = 0; i < layer.experts.size(); ++i) {
        const int64_t rows = layer.experts[i].rows;
        const int64_t spans = std::max<int64_t>(parts_of(rows, span_rows(layer.experts[i])), 1);
        for (int64_t s = 0; s < spans; ++s) {
            const int64_t first = rows * s / spans, size = rows * (s + 1) / spans - first;
            const int64_t blocks = parts_of(size, limit);
            for (int64_t b = 0; b < blocks; ++b) {
                const int64_t start = size * b / blocks, stop = size * (b + 1) / blocks;
                layer.blocks.push_back({static_cast<int>(i), first + start, static_cast<int>(stop - start),
                                        static_cast<int>(layer.spans.size())});
            }
            layer.spans.push_back({static_cast<int>(i), first, static_cast<int>(size), static_cast<int>(blocks),
                                   s == 0, s == spans - 1});
        }
    }
}

int widest(const Layer &layer, bool hidden) {
    int width = layer.model_width;
    for (const Expert &e : layer.experts) width = std::max(width, hidden ? e.hidden_width : e.width);
    return width;
}

std::vector<OrderedSum::Part> parts(const Layer &layer) {
    std::vector<OrderedSum::Part> all;
    for (const Block &b : layer.blocks) {
        const Expert &e = layer.experts[b.expert];
        all.push_back({b.rows, e.tokens ? e.tokens + b.row : nullptr, b.row, e.fresh + b.row});
    }
    return all;
}

constexpr int kBuffersPerThread = 3;

int64_t buffer_count(const Layer &layer, int threads) {
    return std::min<int64_t>(int64_t{threads} * kBuffersPerThread, layer.blocks.size() + 1);
}

int64_t buffer_size(const Layer &layer) {
    int rows = 1;
    for (const Block &b : layer.blocks) rows = std::max(rows, b.rows);
    return int64_t{rows} * layer.model_width;
}

std::vector<float *> split(float *memory, int64_t size, int64_t count) {
    std::vector<float *> each;
    for (int64_t i = 0; i < count; ++i) each.push_back(memory + i * size);
    return each;
}

}  // namespace

Layer describe(const mw_experts &a, const mw_experts_grad *grad, int threads) {
    Layer layer;
    layer.type = a.x.dtype;
    layer.weight_type = a.up.dtype;
    layer.activation = a.activation;
    layer.tokens = a.x.shape[0];
    layer.model_width = static_cast<int>(a.x.shape[1]);
    layer.gated = a.activation == MW_SWIGLU || a.activation == MW_GEGLU;
    layer.x = a.x.data;
    find_rows(layer, a);
    add_experts(layer, a, grad);
    cut_rows(layer, threads);
    return layer;
}

Scratch::Scratch(const Layer &layer, bool backward)
    : left(std::max(left_size(layer.k, kBlockRows, widest(layer, backward)),
                    backward ? left_size(layer.k, kGradRows + layer.k.mr, kSpanRows) : 0)),
      inputs(backward ? left_size(layer.k, kBlockRows, layer.model_width) : 0), right(right_size(layer.k)),
      act(backward ? 0 : static_cast<size_t>(kBlockRows) * widest(layer, false)),
      tile(static_cast<size_t>(std::max(kBlockRows, kGradRows + layer.k.mr)) * 2 * chunk_columns(layer.k)),
      row(std::max(widest(layer, true), widest(layer, false))) {}

void hidden_chunk(const Layer &layer, const Expert &e, const float *inputs, int rows, int j, int n, float *out,
                  int64_t ld, int64_t up_at, Scratch &s, const Ahead &next) {
    const Right up = layer.up_t(e);
    for (int half = 0; half <= layer.gated; ++half) {
        const int column = half * e.width + j;
        float *part = out + half * up_at;
        multiply_chunk(layer.k, inputs, rows, layer.model_width, up, column, n, part, ld, false, s.right.get(),
                       half < layer.gated ? up.ahead(e.width + j, n, 0, layer.model_width) : next);
        if (e.up_bias == nullptr) continue;
        layer.k.widen(s.row.get(), static_cast<char *>(e.up_bias) + column * element_size(layer.weight_type),
                      layer.weight_type, n);
        for (int i = 0; i < rows; ++i) layer.k.add(part + i * ld, s.row.get(), n, 1.0f);
    }
}

Output::Output(const Layer &layer, const mw_tensor &target)
    : layer_(layer), target_(target),
      sums_(target.dtype == kFloat32 ? 0 : static_cast<size_t>(layer.tokens) * layer.model_width) {
    for (int64_t token : layer.untouched)
        std::fill_n(rows() + token * layer.model_width, layer.model_width, 0.0f);
}

void Output::finish() const {
    if (sums_.get()) layer_.k.narrow(target_.data, target_.dtype, rows(), layer_.tokens * layer_.model_width);
}

BlockSum::BlockSum(const Layer &layer, float *sum, int threads)
    : memory_(sum ? buffer_size(layer) * buffer_count(layer, threads) : 0),
      sum_(layer.k, sum, layer.model_width, parts(layer),
           split(memory_.get(), buffer_size(layer), sum ? buffer_count(layer, threads) : 0)) {}

}  // namespace mw
