// Forward and backward of the routed experts and the shared one.
//
// Work is cut into (expert, block of rows) items that threads take from a queue; nothing waits at the end of a
// product. An item gathers its tokens while it packs them, keeps its intermediates in buffers of its thread, and
// adds its rows to the result through OrderedSum. In the backward pass an expert's weight gradients become tasks
// when the last of its blocks is done; they go before further blocks, so that few experts hold buffers at a time.
#include "experts.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>

#include "gemm.hpp"
#include "memory.hpp"
#include "ordered_sum.hpp"
#include "parallel.hpp"

namespace mw {
namespace {

constexpr int kBlockRows = 378;     // rows of an item, a multiple of the tiles' rows
constexpr int kItemsPerThread = 16; // enough to share the work evenly; fewer: items of half the rows
constexpr int kBuffersPerThread = 4;
constexpr int kGradRows = 378;      // rows of a weight gradient that one task computes
constexpr int kGradDepth = 1024;    // tokens whose contribution to it is packed at a time

int64_t element_size(int type) { return type == kFloat32 ? 4 : 2; }

void *offset(const mw_tensor &t, int64_t elements) {
    if (t.data == nullptr) return nullptr;
    return static_cast<char *>(t.data) + elements * element_size(t.dtype);
}

// One expert's matrices and the rows that it computes.
struct Expert {
    int64_t first = 0, rows = 0;       // in the sorted order; of the shared expert, the tokens
    const int32_t *tokens = nullptr;   // null: row i is token i
    const float *weights = nullptr;    // null: 1
    const uint8_t *fresh = nullptr;    // see OrderedSum
    int hidden_width = 0, width = 0;   // U, F
    bool weigh_input = false;
    void *up = nullptr, *down = nullptr, *up_bias = nullptr, *down_bias = nullptr;
    void *hidden = nullptr;            // [rows, U], or null
    void *grad_up = nullptr, *grad_down = nullptr, *grad_up_bias = nullptr, *grad_down_bias = nullptr;
    bool wants_grad_weights = false;
    float *grad_weights = nullptr;     // by row

    float weight(int64_t row) const { return weights ? weights[row] : 1.0f; }
};

struct Block {
    int expert;
    int64_t row;  // of the expert
    int rows;
};

// All that a pass needs beside its arguments.
struct Layer {
    const Kernels &k = kernels();
    int type, activation;
    int64_t tokens;
    int model_width, gated;
    const void *x;
    std::vector<Expert> experts;
    std::vector<Block> blocks;
    Buffer<int32_t> token_of_row;
    Buffer<float> weight_of_row;
    Buffer<uint8_t> fresh, fresh_shared;
    std::vector<int64_t> untouched;  // tokens that no row belongs to

    Matrix rows_of(const void *data, const Expert &e, int64_t row) const {
        Matrix m{data, model_width, type, e.tokens, nullptr};
        return m.from(row, 0);
    }
    Matrix inputs(const Expert &e, int64_t row) const {
        Matrix m{x, model_width, type, e.tokens, e.weigh_input ? e.weights : nullptr};
        return m.from(row, 0);
    }
};

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

// Fewer, larger blocks pack each weight less often; more, smaller ones share the work among the threads. What a
// row computes does not depend on its block.
void cut_blocks(Layer &layer, int threads) {
    int64_t whole = 0;
    for (const Expert &e : layer.experts) whole += (e.rows + kBlockRows - 1) / kBlockRows;
    const int64_t limit = whole >= int64_t{threads} * kItemsPerThread ? kBlockRows : kBlockRows / 2;
    for (size_t i = 0; i < layer.experts.size(); ++i) {
        const int64_t rows = layer.experts[i].rows, count = (rows + limit - 1) / limit;
        for (int64_t b = 0; b < count; ++b) {
            const int64_t start = rows * b / count, stop = rows * (b + 1) / count;
            layer.blocks.push_back({static_cast<int>(i), start, static_cast<int>(stop - start)});
        }
    }
}

Layer describe(const mw_experts &a, const mw_experts_grad *grad, int threads) {
    Layer layer;
    layer.type = a.x.dtype;
    layer.activation = a.activation;
    layer.tokens = a.x.shape[0];
    layer.model_width = static_cast<int>(a.x.shape[1]);
    layer.gated = a.activation == MW_SWIGLU || a.activation == MW_GEGLU;
    layer.x = a.x.data;
    find_rows(layer, a);
    add_experts(layer, a, grad);
    cut_blocks(layer, threads);
    return layer;
}

int widest(const Layer &layer, bool hidden) {
    int width = layer.model_width;
    for (const Expert &e : layer.experts) width = std::max(width, hidden ? e.hidden_width : e.width);
    return width;
}

// A thread's buffers.
struct Scratch {
    Buffer<float> left, inputs, right, act, tile, row;

    Scratch(const Layer &layer, bool backward)
        : left(std::max(left_size(layer.k, kBlockRows, widest(layer, backward)),
                        backward ? left_size(layer.k, kGradRows + layer.k.mr, kGradDepth) : 0)),
          inputs(backward ? left_size(layer.k, kBlockRows, layer.model_width) : 0),
          right(right_size(layer.k)),
          act(backward ? 0 : static_cast<size_t>(kBlockRows) * widest(layer, false)),
          tile(static_cast<size_t>(std::max(kBlockRows, kGradRows + layer.k.mr)) * 2 * chunk_columns(layer.k)),
          row(std::max(widest(layer, true), widest(layer, false))) {}
};

// Hidden columns j .. j + n of a block before the activation: gate at out, up at out + up_at (if gated).
void hidden_chunk(const Layer &layer, const Expert &e, const float *inputs, int rows, int j, int n, float *out,
                  int64_t ld, int64_t up_at, Scratch &s) {
    const Matrix up{e.up, layer.model_width, layer.type};
    for (int half = 0; half <= layer.gated; ++half) {
        const int column = half * e.width + j;
        float *part = out + half * up_at;
        multiply_chunk(layer.k, inputs, rows, layer.model_width, up, true, column, n, part, ld, false,
                       s.right.get());
        if (e.up_bias == nullptr) continue;
        layer.k.widen(s.row.get(), static_cast<char *>(e.up_bias) + column * element_size(layer.type),
                      layer.type, n);
        for (int i = 0; i < rows; ++i) layer.k.add(part + i * ld, s.row.get(), n, 1.0f);
    }
}

void add_down_bias(const Layer &layer, const Expert &e, const Block &b, float *out, Scratch &s) {
    if (e.down_bias == nullptr) return;
    layer.k.widen(s.row.get(), e.down_bias, layer.type, layer.model_width);
    for (int i = 0; i < b.rows; ++i)
        layer.k.add(out + int64_t{i} * layer.model_width, s.row.get(), layer.model_width,
                    e.weigh_input ? 1.0f : e.weight(b.row + i));
}

void forward_block(const Layer &layer, const Block &b, float *out, Scratch &s) {
    const Kernels &k = layer.k;
    const Expert &e = layer.experts[b.expert];
    const int D = layer.model_width, F = e.width, U = e.hidden_width, chunk = chunk_columns(k);
    const bool keep = e.hidden != nullptr, in_place = keep && layer.type == kFloat32;
    pack_left(k, s.left.get(), layer.inputs(e, b.row), b.rows, D, false);
    for (int j = 0; j < F; j += chunk) {
        const int n = std::min(chunk, F - j);
        float *hidden = in_place ? static_cast<float *>(e.hidden) + b.row * U + j : s.tile.get();
        const int64_t ld = in_place ? U : 2 * chunk, up_at = in_place ? F : chunk;
        hidden_chunk(layer, e, s.left.get(), b.rows, j, n, hidden, ld, up_at, s);
        for (int i = 0; i < b.rows; ++i)
            k.activate(layer.activation, n, hidden + i * ld, up_at, e.weigh_input ? 1.0f : e.weight(b.row + i),
                       s.act.get() + int64_t{i} * F + j);
        if (!keep || in_place) continue;
        for (int i = 0; i < b.rows; ++i)
            for (int half = 0; half <= layer.gated; ++half)
                k.narrow(static_cast<uint16_t *>(e.hidden) + (b.row + i) * U + half * F + j, layer.type,
                         hidden + i * ld + half * up_at, n);
    }
    pack_left(k, s.left.get(), Matrix{s.act.get(), F}, b.rows, F, false);
    multiply(k, s.left.get(), b.rows, F, Matrix{e.down, F, layer.type}, true, D, out, D, false, s.right.get());
    add_down_bias(layer, e, b, out, s);
}

// What the blocks of an expert leave for its weight gradients.
struct Pending {
    Buffer<float> grad_hidden, act;  // [rows, U]; [rows, F], weighted
    int blocks = 0, tasks = 0;
};

struct GradTask {
    int expert;
    bool up;  // else down
    int row, rows;
};

class Backward {
  public:
    Backward(const Layer &layer, const void *grad_y) : layer_(layer), grad_y_(grad_y) {}

    void block(const Block &b, Pending &pending, float *out, Scratch &s) const {
        const Kernels &k = layer_.k;
        const Expert &e = layer_.experts[b.expert];
        const int D = layer_.model_width, F = e.width, U = e.hidden_width, chunk = chunk_columns(k);
        float *grad_hidden = pending.grad_hidden.get() + b.row * U, *act = pending.act.get() + b.row * F;
        pack_left(k, s.left.get(), layer_.rows_of(grad_y_, e, b.row), b.rows, D, false);
        if (e.hidden == nullptr) pack_left(k, s.inputs.get(), layer_.inputs(e, b.row), b.rows, D, false);
        float *grad_weights = e.grad_weights + b.row;
        std::fill(grad_weights, grad_weights + b.rows, 0.0f);
        const Matrix down{e.down, F, layer_.type};
        for (int j = 0; j < F; j += chunk) {
            const int n = std::min(chunk, F - j);
            multiply_chunk(k, s.left.get(), b.rows, D, down, false, j, n, act + j, F, false, s.right.get());
            const float *hidden = nullptr;
            int64_t ld = 2 * chunk, up_at = chunk;
            if (e.hidden != nullptr && layer_.type == kFloat32) {
                hidden = static_cast<float *>(e.hidden) + b.row * U + j;
                ld = U, up_at = F;
            } else if (e.hidden != nullptr) {
                hidden = widened(e, b, j, n, ld, up_at, s);
            } else {
                hidden_chunk(layer_, e, s.inputs.get(), b.rows, j, n, s.tile.get(), ld, up_at, s);
                hidden = s.tile.get();
            }
            for (int i = 0; i < b.rows; ++i)
                grad_weights[i] += k.activate_backward(layer_.activation, n, act + int64_t{i} * F + j,
                                                       hidden + i * ld, up_at, weight(e, b, i),
                                                       grad_hidden + int64_t{i} * U + j, F);
        }
        if (e.down_bias != nullptr && !e.weigh_input) add_bias_to_weights(e, b, grad_weights, s);
        if (out == nullptr) return;
        pack_left(k, s.left.get(), Matrix{grad_hidden, U}, b.rows, U, false);
        multiply(k, s.left.get(), b.rows, U, Matrix{e.up, D, layer_.type}, false, D, out, D, false, s.right.get());
        if (e.weigh_input) weigh_rows(e, b, out, grad_weights, s);
    }

    void gradient(const GradTask &t, const Pending &pending, Scratch &s) const {
        const Expert &e = layer_.experts[t.expert];
        const int D = layer_.model_width, F = e.width, U = e.hidden_width;
        const int columns = t.up ? D : F;
        // up: grad_hidden^T x; down: grad_y^T act.
        const Matrix left = t.up ? Matrix{pending.grad_hidden.get(), U} : layer_.rows_of(grad_y_, e, 0);
        const Matrix right = t.up ? layer_.inputs(e, 0) : Matrix{pending.act.get(), F};
        // A bias may want its gradient where the matrix is frozen.
        if (void *target = t.up ? e.grad_up : e.grad_down)
            product(left.from(0, t.row), right, t.rows, columns, e.rows, target, t.row, s);
        if (t.up && e.grad_up_bias != nullptr)
            column_sums(left.from(0, t.row), nullptr, e.rows, t.rows, e.grad_up_bias, t.row, s);
        if (!t.up && e.grad_down_bias != nullptr)
            column_sums(left.from(0, t.row), e.weigh_input ? nullptr : e.weights, e.rows, t.rows, e.grad_down_bias,
                        t.row, s);
    }

  private:
    float weight(const Expert &e, const Block &b, int i) const {
        return e.weigh_input ? 1.0f : e.weight(b.row + i);
    }

    const float *widened(const Expert &e, const Block &b, int j, int n, int64_t ld, int64_t up_at,
                         Scratch &s) const {
        const uint16_t *hidden = static_cast<const uint16_t *>(e.hidden) + b.row * e.hidden_width + j;
        for (int i = 0; i < b.rows; ++i)
            for (int half = 0; half <= layer_.gated; ++half)
                layer_.k.widen(s.tile.get() + i * ld + half * up_at,
                               hidden + int64_t{i} * e.hidden_width + half * e.width, layer_.type, n);
        return s.tile.get();
    }

    void add_bias_to_weights(const Expert &e, const Block &b, float *grad_weights, Scratch &s) const {
        const int D = layer_.model_width;
        float *bias = s.row.get(), *grad = s.tile.get();
        layer_.k.widen(bias, e.down_bias, layer_.type, D);
        for (int i = 0; i < b.rows; ++i)
            for (int j = 0; j < D; j += chunk_columns(layer_.k)) {
                const int n = std::min(chunk_columns(layer_.k), D - j);
                layer_.k.widen(grad, row_of(grad_y_, e, b.row + i, j), layer_.type, n);
                grad_weights[i] += layer_.k.dot(grad, bias + j, n);
            }
    }

    // The weight multiplied the input: so it does the input's gradient, and the weight's gradient is the product
    // of input and gradient.
    void weigh_rows(const Expert &e, const Block &b, float *out, float *grad_weights, Scratch &s) const {
        const int D = layer_.model_width;
        for (int i = 0; i < b.rows; ++i, out += D) {
            layer_.k.widen(s.row.get(), row_of(layer_.x, e, b.row + i, 0), layer_.type, D);
            grad_weights[i] = layer_.k.dot(s.row.get(), out, D);
            const float weight = e.weight(b.row + i);
            for (int j = 0; j < D; ++j) out[j] *= weight;
        }
    }

    const void *row_of(const void *data, const Expert &e, int64_t row, int column) const {
        const int64_t token = e.tokens ? e.tokens[row] : row;
        return static_cast<const char *>(data) +
               (token * layer_.model_width + column) * element_size(layer_.type);
    }

    // rows [first, first + m) of target [*, n] = left^T right over `depth` tokens.
    void product(const Matrix &left, const Matrix &right, int m, int n, int64_t depth, void *target,
                 int64_t first, Scratch &s) const {
        const Kernels &k = layer_.k;
        const int chunk = chunk_columns(k);
        const bool direct = layer_.type == kFloat32;
        void *at = static_cast<char *>(target) + first * n * element_size(layer_.type);
        if (depth == 0) {
            std::memset(at, 0, static_cast<size_t>(m) * n * element_size(layer_.type));
            return;
        }
        Buffer<float> sums(direct ? 0 : static_cast<size_t>(m) * n);
        float *c = direct ? static_cast<float *>(at) : sums.get();
        for (int64_t p = 0; p < depth; p += kGradDepth) {
            const int length = static_cast<int>(std::min<int64_t>(kGradDepth, depth - p));
            pack_left(k, s.left.get(), left.from(p, 0), m, length, true);
            for (int j = 0; j < n; j += chunk)
                multiply_chunk(k, s.left.get(), m, length, right.from(p, 0), false, j, std::min(chunk, n - j),
                               c + j, n, p > 0, s.right.get());
        }
        if (!direct) k.narrow(at, layer_.type, c, int64_t{m} * n);
    }

    void column_sums(const Matrix &rows, const float *weights, int64_t count, int columns, void *target,
                     int64_t first, Scratch &s) const {
        float *sum = s.row.get(), *row = s.tile.get(), *part = row + columns;
        std::fill(sum, sum + columns, 0.0f);
        // In parts, like the products: a chain of additions as long as the rows would lose digits.
        for (int64_t start = 0; start < count; start += kDepth) {
            std::fill(part, part + columns, 0.0f);
            for (int64_t i = start; i < std::min<int64_t>(count, start + kDepth); ++i) {
                const Matrix at = rows.from(i, 0);
                const char *data = static_cast<const char *>(at.data) +
                                   (at.rows ? at.rows[0] * at.ld : 0) * element_size(at.type);
                layer_.k.widen(row, data, at.type, columns);
                layer_.k.add(part, row, columns, weights ? weights[i] : 1.0f);
            }
            layer_.k.add(sum, part, columns, 1.0f);
        }
        layer_.k.narrow(static_cast<char *>(target) + first * element_size(layer_.type), layer_.type, sum,
                        columns);
    }

    const Layer &layer_;
    const void *grad_y_;
};

// The result in float32: the output itself, or a buffer that is narrowed at the end.
class Output {
  public:
    Output(const Layer &layer, const mw_tensor &target)
        : layer_(layer), target_(target),
          sums_(target.dtype == kFloat32 ? 0 : static_cast<size_t>(layer.tokens) * layer.model_width) {
        for (int64_t token : layer.untouched)
            std::fill_n(rows() + token * layer.model_width, layer.model_width, 0.0f);
    }
    float *rows() const { return sums_.get() ? sums_.get() : static_cast<float *>(target_.data); }
    void finish() const {
        if (sums_.get()) layer_.k.narrow(target_.data, target_.dtype, rows(), layer_.tokens * layer_.model_width);
    }

  private:
    const Layer &layer_;
    const mw_tensor &target_;
    Buffer<float> sums_;
};

std::vector<OrderedSum::Part> parts(const Layer &layer) {
    std::vector<OrderedSum::Part> all;
    for (const Block &b : layer.blocks) {
        const Expert &e = layer.experts[b.expert];
        all.push_back({b.rows, e.tokens ? e.tokens + b.row : nullptr, b.row, e.fresh + b.row});
    }
    return all;
}

// Buffers for rows on their way into the result.
struct OutBuffers {
    Buffer<float> memory;
    std::vector<float *> each;
    OutBuffers(const Layer &layer, int threads) {
        int rows = 1;
        for (const Block &b : layer.blocks) rows = std::max(rows, b.rows);
        const int64_t size = int64_t{rows} * layer.model_width;
        const int count = std::min<int64_t>(int64_t{threads} * kBuffersPerThread, layer.blocks.size() + 1);
        memory = Buffer<float>(size * count);
        for (int i = 0; i < count; ++i) each.push_back(memory.get() + i * size);
    }
};

// The queue: gradient tasks first, then blocks in order.
class Queue {
  public:
    Queue(const Layer &layer, float *sum, int threads)
        : layer_(layer), buffers_(layer, threads),
          sum_(layer.k, sum, layer.model_width, parts(layer), buffers_.each), adds_(sum != nullptr) {}

    void run_forward(int) {
        guarded([this](std::unique_lock<std::mutex> &lock) {
            lock.unlock();
            Scratch scratch(layer_, false);
            lock.lock();
            while (wait_for_block(lock)) {
                float *out = sum_.take_buffer();
                const size_t number = next_++;
                lock.unlock();
                forward_block(layer_, layer_.blocks[number], out, scratch);
                lock.lock();
                sum_.add_ready(number, out, lock, [this] { changed_.notify_all(); });
            }
        });
    }

    void prepare_backward() {
        pending_.resize(layer_.experts.size());
        for (const Block &b : layer_.blocks) ++pending_[b.expert].blocks;
        for (size_t i = 0; i < layer_.experts.size(); ++i)
            if (pending_[i].blocks == 0) add_tasks(static_cast<int>(i));
    }

    void run_backward(const Backward &backward) {
        guarded([&](std::unique_lock<std::mutex> &lock) {
            lock.unlock();
            Scratch scratch(layer_, true);
            lock.lock();
            while (wait_for_work(lock)) {
                if (!tasks_.empty())
                    run_task(backward, scratch, lock);
                else
                    run_block(backward, scratch, lock);
            }
        });
    }

    bool failed() const { return failed_; }

  private:
    template <typename Work> void guarded(Work work) {
        std::unique_lock<std::mutex> lock(mutex_);
        try {
            work(lock);
        } catch (const std::bad_alloc &) {
            if (!lock.owns_lock()) lock.lock();
            failed_ = true;
            changed_.notify_all();
        }
    }

    bool blocks_left() const { return next_ < layer_.blocks.size(); }

    // False when no block is left to take.
    bool wait_for_block(std::unique_lock<std::mutex> &lock) {
        changed_.wait(lock, [this] { return failed_ || !blocks_left() || sum_.has_buffer(); });
        return !failed_ && blocks_left();
    }

    // False when there is nothing left and nothing to come.
    bool wait_for_work(std::unique_lock<std::mutex> &lock) {
        changed_.wait(lock, [this] {
            return failed_ || !tasks_.empty() || (blocks_left() ? !adds_ || sum_.has_buffer() : running_ == 0);
        });
        return !failed_ && (!tasks_.empty() || blocks_left());
    }

    void run_block(const Backward &backward, Scratch &scratch, std::unique_lock<std::mutex> &lock) {
        float *out = adds_ ? sum_.take_buffer() : nullptr;
        const size_t number = next_++;
        const Block &block = layer_.blocks[number];
        const Expert &e = layer_.experts[block.expert];
        Pending &pending = pending_[block.expert];
        ++running_;
        if (pending.grad_hidden.get() == nullptr) {
            pending.grad_hidden = Buffer<float>(e.rows * e.hidden_width);
            pending.act = Buffer<float>(e.rows * e.width);
        }
        lock.unlock();
        backward.block(block, pending, out, scratch);
        lock.lock();
        if (--pending.blocks == 0) {
            add_tasks(block.expert);
            changed_.notify_all();
        }
        if (--running_ == 0) changed_.notify_all();
        if (adds_) sum_.add_ready(number, out, lock, [this] { changed_.notify_all(); });
    }

    void run_task(const Backward &backward, Scratch &scratch, std::unique_lock<std::mutex> &lock) {
        const GradTask task = tasks_.front();
        tasks_.pop_front();
        Pending &pending = pending_[task.expert];
        lock.unlock();
        backward.gradient(task, pending, scratch);
        lock.lock();
        if (--pending.tasks == 0) free_buffers(pending);
    }

    void add_tasks(int expert) {
        const Expert &e = layer_.experts[expert];
        Pending &pending = pending_[expert];
        const struct {
            bool wanted, up;
            int rows;
        } kinds[] = {{e.grad_up || e.grad_up_bias, true, e.hidden_width},
                     {e.grad_down || e.grad_down_bias, false, layer_.model_width}};
        for (const auto &kind : kinds) {
            if (!kind.wanted) continue;
            const int count = (kind.rows + kGradRows - 1) / kGradRows;
            const int step = up_to((kind.rows + count - 1) / count, layer_.k.mr);
            for (int row = 0; row < kind.rows; row += step, ++pending.tasks)
                tasks_.push_back({expert, kind.up, row, std::min(step, kind.rows - row)});
        }
        if (pending.tasks == 0) free_buffers(pending);
    }

    static void free_buffers(Pending &pending) {
        pending.grad_hidden = Buffer<float>();
        pending.act = Buffer<float>();
    }

    const Layer &layer_;
    OutBuffers buffers_;
    OrderedSum sum_;
    const bool adds_;
    std::mutex mutex_;
    std::condition_variable changed_;
    size_t next_ = 0;
    int running_ = 0;
    bool failed_ = false;
    std::vector<Pending> pending_;
    std::deque<GradTask> tasks_;
};

void scatter_weight_gradients(const Layer &layer, const mw_experts &a, const mw_experts_grad &grad,
                              const float *by_row) {
    if (grad.weights.data == nullptr) return;
    const int64_t rows = static_cast<const int64_t *>(a.offsets.data)[a.up.shape[0]];
    const int32_t *order = static_cast<const int32_t *>(a.order.data);
    float *weights = static_cast<float *>(grad.weights.data);
    std::fill_n(weights, layer.tokens * a.expert_ids.shape[1], 0.0f);
    for (int64_t row = 0; row < rows; ++row) weights[order[row]] = by_row[row];
}

}  // namespace

int64_t sort_assignments(const mw_experts &a) {
    const int64_t experts = a.up.shape[0], N = a.expert_ids.shape[0] * a.expert_ids.shape[1];
    const int64_t *ids = static_cast<const int64_t *>(a.expert_ids.data);
    const uint8_t *kept = static_cast<const uint8_t *>(a.kept.data);  // a bool of 2 would be undefined
    int64_t *offsets = static_cast<int64_t *>(a.offsets.data);
    int32_t *order = static_cast<int32_t *>(a.order.data);
    for (int64_t n = 0; n < N; ++n)
        if (ids[n] < 0 || ids[n] >= a.num_routes) return n;
    std::fill_n(offsets, experts + 1, int64_t{0});
    auto computed = [&](int64_t n) { return ids[n] < experts && (kept == nullptr || kept[n]); };
    for (int64_t n = 0; n < N; ++n)
        if (computed(n)) ++offsets[ids[n] + 1];
    for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
    std::vector<int64_t> next(offsets, offsets + experts);
    for (int64_t n = 0; n < N; ++n)
        if (computed(n)) order[next[ids[n]]++] = static_cast<int32_t>(n);
    std::fill(order + offsets[experts], order + N, 0);
    return -1;
}

void experts_forward(const mw_experts &a, int threads) {
    const Layer layer = describe(a, nullptr, threads);
    const Output output(layer, a.y);
    Queue queue(layer, output.rows(), threads);
    run_parallel(threads, [&](int index) { queue.run_forward(index); });
    if (queue.failed()) throw std::bad_alloc();
    output.finish();
}

void experts_backward(const mw_experts &a, const mw_experts_grad &grad, int threads) {
    Layer layer = describe(a, &grad, threads);
    int64_t rows = 0;
    for (const Expert &e : layer.experts) rows += e.rows;
    Buffer<float> grad_weights(rows + 1);
    for (Expert &e : layer.experts)
        e.grad_weights = e.tokens == nullptr && e.wants_grad_weights
                             ? static_cast<float *>(grad.shared_weights.data)
                             : grad_weights.get() + (e.tokens ? e.first : rows - e.rows);
    const bool wants_x = grad.x.data != nullptr || (a.weigh_input && grad.weights.data != nullptr);
    Buffer<float> unwanted(wants_x && grad.x.data == nullptr ? layer.tokens * layer.model_width : 0);
    mw_tensor grad_x = grad.x;
    if (unwanted.get()) {
        grad_x = a.x;
        grad_x.data = unwanted.get();
        grad_x.dtype = MW_FLOAT32;
    }
    Backward backward(layer, grad.y.data);
    auto run = [&](float *sum) {
        Queue queue(layer, sum, threads);
        queue.prepare_backward();
        run_parallel(threads, [&](int) { queue.run_backward(backward); });
        if (queue.failed()) throw std::bad_alloc();
    };
    if (wants_x) {
        const Output output(layer, grad_x);
        run(output.rows());
        output.finish();
    } else {
        run(nullptr);
    }
    scatter_weight_gradients(layer, a, grad, grad_weights.get());
}

}  // namespace mw
