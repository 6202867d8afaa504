// The backward pass. Blocks go through it as in the forward pass; when the last block of a span is done, the span's
// part of its expert's weight gradients becomes tasks. They go before further blocks, so that few spans hold
// buffers at a time; the spans of an expert follow each other, so that each gradient has one order of additions.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>

#include "experts.hpp"
#include "layer.hpp"
#include "parallel.hpp"

namespace mw {
namespace {

// A weight gradient while it is summed: in float32, the result itself or a buffer that is narrowed at the end.
struct GradSum {
    void *result = nullptr;  // null: not wanted
    Buffer<float> buffer;
    float *sum = nullptr;

    void open(void *target, int type, int64_t size) {
        result = target;
        if (target == nullptr) return;
        if (type != kFloat32) buffer = Buffer<float>(size);
        sum = buffer.get() ? buffer.get() : static_cast<float *>(target);
    }
    // Rounds elements first .. first + count, whose sums are complete.
    void finish(const Kernels &k, int type, int64_t first, int64_t count) const {
        if (buffer.get())
            k.narrow(static_cast<char *>(result) + first * element_size(type), type, sum + first, count);
    }
};

struct ExpertGrads {
    GradSum up, down, up_bias, down_bias;
    int open_spans = 0;
};

// Intermediates of a span's blocks, from which the weight gradients are computed.
struct Pending {
    Buffer<float> grad_hidden, act;  // [rows, U]; [rows, F], weighted
    int blocks = 0, tasks = 0;
    bool previous_done = false;  // the tasks of the expert's span before
};

// Some rows of one weight gradient of one span.
struct GradTask {
    int span;
    bool up;  // else down
    int row, rows;
};

class Backward {
  public:
    Backward(const Layer &layer, const void *grad_y) : layer_(layer), grad_y_(grad_y) {}

    void block(const Block &b, const Pending &pending, float *out, Scratch &s) const {
        const Kernels &k = layer_.k;
        const Expert &e = layer_.experts[b.expert];
        const int D = layer_.model_width, F = e.width, U = e.hidden_width, chunk = chunk_columns(k);
        const int64_t row = b.row - layer_.spans[b.span].row;
        float *grad_hidden = pending.grad_hidden.get() + row * U, *act = pending.act.get() + row * F;
        pack_left(k, s.left.get(), layer_.rows_of(grad_y_, e, b.row), b.rows, D, false);
        if (e.hidden == nullptr) pack_left(k, s.inputs.get(), layer_.inputs(e, b.row), b.rows, D, false);
        float *grad_weights = e.grad_weights + b.row;
        std::fill(grad_weights, grad_weights + b.rows, 0.0f);
        const Right down = layer_.down(e), up = layer_.up(e), up_t = layer_.up_t(e);
        for (int j = 0; j < F; j += chunk) {
            const int n = std::min(chunk, F - j);
            const Ahead next = j + chunk < F ? down.ahead(j + chunk, std::min(chunk, F - j - chunk), 0, D)
                                             : up.ahead(0, std::min(chunk, D), 0, U);
            multiply_chunk(k, s.left.get(), b.rows, D, down, j, n, act + j, F, false, s.right.get(),
                           e.hidden == nullptr ? up_t.ahead(j, n, 0, D) : next);
            const float *hidden = nullptr;
            int64_t ld = 2 * chunk, up_at = chunk;
            if (e.hidden != nullptr && layer_.type == kFloat32) {
                hidden = static_cast<float *>(e.hidden) + b.row * U + j;
                ld = U, up_at = F;
            } else if (e.hidden != nullptr) {
                hidden = widened(e, b, j, n, ld, up_at, s);
            } else {
                hidden_chunk(layer_, e, s.inputs.get(), b.rows, j, n, s.tile.get(), ld, up_at, s, next);
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
        multiply(k, s.left.get(), b.rows, U, up, D, out, D, false, s.right.get());
        if (e.weigh_input) weigh_rows(e, b, out, grad_weights, s);
    }

    void gradient(const GradTask &t, const ExpertGrads &grads, const Pending &pending, Scratch &s) const {
        const Span &span = layer_.spans[t.span];
        const Expert &e = layer_.experts[span.expert];
        const int columns = t.up ? layer_.model_width : e.width;
        // up: grad_hidden^T x; down: grad_y^T act.
        const Matrix left = t.up ? Matrix{pending.grad_hidden.get(), e.hidden_width}
                                 : layer_.rows_of(grad_y_, e, span.row);
        const Matrix right = t.up ? layer_.inputs(e, span.row) : Matrix{pending.act.get(), e.width};
        const GradSum &matrix = t.up ? grads.up : grads.down, &bias = t.up ? grads.up_bias : grads.down_bias;
        // A bias may need a gradient while its matrix is frozen.
        if (matrix.result != nullptr) {
            product(left.from(0, t.row), right, t.rows, columns, span, matrix.sum + int64_t{t.row} * columns, s);
            if (span.last)
                matrix.finish(layer_.k, layer_.weight_type, int64_t{t.row} * columns, int64_t{t.rows} * columns);
        }
        if (bias.result != nullptr) {
            const bool weighted = !t.up && !e.weigh_input && e.weights != nullptr;
            column_sums(left.from(0, t.row), weighted ? e.weights + span.row : nullptr, span, t.rows,
                        bias.sum + t.row, s);
            if (span.last) bias.finish(layer_.k, layer_.weight_type, t.row, t.rows);
        }
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
        layer_.k.widen(bias, e.down_bias, layer_.weight_type, D);
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

    // c [m, n] (+)= left^T right over the rows of a span.
    void product(const Matrix &left, const Matrix &right, int m, int n, const Span &span, float *c,
                 Scratch &s) const {
        if (span.rows == 0) {  // an expert without tokens
            std::fill_n(c, int64_t{m} * n, 0.0f);
            return;
        }
        pack_left(layer_.k, s.left.get(), left, m, span.rows, true);
        multiply(layer_.k, s.left.get(), m, span.rows, Right{right, false}, n, c, n, !span.first, s.right.get());
    }

    // sum [columns] (+)= the sum over a span's rows. In parts, like the products: a chain of additions as long as
    // the rows would lose digits.
    void column_sums(const Matrix &rows, const float *weights, const Span &span, int columns, float *sum,
                     Scratch &s) const {
        float *row = s.tile.get(), *part = row + columns;
        if (span.first) std::fill_n(sum, columns, 0.0f);
        for (int start = 0; start < span.rows; start += kDepth) {
            std::fill_n(part, columns, 0.0f);
            for (int i = start; i < std::min(span.rows, start + kDepth); ++i) {
                const Matrix at = rows.from(i, 0);
                const char *data = static_cast<const char *>(at.data) +
                                   (at.rows ? at.rows[0] * at.ld : 0) * element_size(at.type);
                layer_.k.widen(row, data, at.type, columns);
                layer_.k.add(part, row, columns, weights ? weights[i] : 1.0f);
            }
            layer_.k.add(sum, part, columns, 1.0f);
        }
    }

    const Layer &layer_;
    const void *grad_y_;
};

// The queue: gradient tasks first, then blocks in order.
class BackwardQueue {
  public:
    // `sum` is null when nobody wants the gradient of the input.
    BackwardQueue(const Layer &layer, const void *grad_y, float *sum, int threads)
        : layer_(layer), backward_(layer, grad_y), sum_(layer, sum, threads), adds_(sum != nullptr),
          pending_(layer.spans.size()), grads_(layer.experts.size()), max_open_(threads + 1) {
        for (size_t i = 0; i < layer.spans.size(); ++i) {
            const Span &span = layer.spans[i];
            pending_[i].blocks = span.blocks;
            pending_[i].previous_done = span.first;
            ++grads_[span.expert].open_spans;
            if (span.blocks == 0) add_tasks(static_cast<int>(i));
        }
    }

    void run() {
        std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
        try {
            Scratch scratch(layer_, true);
            lock.lock();
            while (wait_for_work(lock)) {
                if (!tasks_.empty())
                    run_task(scratch, lock);
                else
                    run_block(scratch, lock);
            }
        } catch (const std::bad_alloc &) {
            if (!lock.owns_lock()) lock.lock();
            failed_ = true;
            changed_.notify_all();
        }
    }

    bool failed() const { return failed_; }

  private:
    bool blocks_left() const { return next_ < layer_.blocks.size(); }

    // Whether the next block can be taken now. A span that is not begun waits when enough others hold buffers:
    // threads that have nothing else are few, and memory is bounded.
    bool may_take_block() const {
        if (adds_ && !sum_->has_buffer()) return false;
        return pending_[layer_.blocks[next_].span].grad_hidden.get() != nullptr || open_ < max_open_;
    }

    // False when no work is left and none can follow.
    bool wait_for_work(std::unique_lock<std::mutex> &lock) {
        changed_.wait(lock, [this] {
            return failed_ || !tasks_.empty() || (blocks_left() ? may_take_block() : running_ == 0);
        });
        return !failed_ && (!tasks_.empty() || blocks_left());
    }

    void run_block(Scratch &scratch, std::unique_lock<std::mutex> &lock) {
        float *out = adds_ ? sum_->take_buffer() : nullptr;
        const size_t number = next_++;
        const Block &block = layer_.blocks[number];
        Pending &pending = pending_[block.span];
        ++running_;
        if (pending.grad_hidden.get() == nullptr) {
            const Expert &e = layer_.experts[block.expert];
            const int64_t rows = layer_.spans[block.span].rows;
            pending.grad_hidden = Buffer<float>(rows * e.hidden_width);
            pending.act = Buffer<float>(rows * e.width);
            ++open_;
        }
        lock.unlock();
        backward_.block(block, pending, out, scratch);
        lock.lock();
        if (--pending.blocks == 0 && pending.previous_done) add_tasks(block.span);
        finished();
        if (adds_) sum_->add_ready(number, out, lock, [this] { changed_.notify_all(); });
    }

    void run_task(Scratch &scratch, std::unique_lock<std::mutex> &lock) {
        const GradTask task = tasks_.front();
        tasks_.pop_front();
        ++running_;
        lock.unlock();
        backward_.gradient(task, grads_[layer_.spans[task.span].expert], pending_[task.span], scratch);
        lock.lock();
        if (--pending_[task.span].tasks == 0) close(task.span);
        finished();
    }

    void finished() {
        --running_;
        if (running_ == 0 || !tasks_.empty()) changed_.notify_all();
    }

    void add_tasks(int number) {
        const Span &span = layer_.spans[number];
        const Expert &e = layer_.experts[span.expert];
        ExpertGrads &grads = grads_[span.expert];
        const int D = layer_.model_width, U = e.hidden_width;
        if (span.first) {
            grads.up.open(e.grad_up, layer_.weight_type, int64_t{U} * D);
            grads.down.open(e.grad_down, layer_.weight_type, int64_t{D} * e.width);
            grads.up_bias.open(e.grad_up_bias, layer_.weight_type, U);
            grads.down_bias.open(e.grad_down_bias, layer_.weight_type, D);
        }
        if (grads.up.result || grads.up_bias.result) add_tasks(number, true, U);
        if (grads.down.result || grads.down_bias.result) add_tasks(number, false, D);
        if (pending_[number].tasks == 0) close(number);
    }

    void add_tasks(int span, bool up, int rows) {
        const int count = (rows + kGradRows - 1) / kGradRows;
        const int step = up_to((rows + count - 1) / count, layer_.k.mr);
        for (int row = 0; row < rows; row += step, ++pending_[span].tasks)
            tasks_.push_back({span, up, row, std::min(step, rows - row)});
    }

    // The span's gradients are complete: its buffers become free, and the expert's next span may begin.
    void close(int number) {
        if (pending_[number].grad_hidden.get() != nullptr) {
            --open_;
            changed_.notify_all();
        }
        pending_[number] = Pending();
        ExpertGrads &grads = grads_[layer_.spans[number].expert];
        if (--grads.open_spans == 0) {
            grads = ExpertGrads();
            return;
        }
        Pending &next = pending_[number + 1];
        next.previous_done = true;
        if (next.blocks == 0) add_tasks(number + 1);
    }

    const Layer &layer_;
    const Backward backward_;
    BlockSum sum_;
    const bool adds_;
    std::mutex mutex_;
    std::condition_variable changed_;
    size_t next_ = 0;
    int running_ = 0, open_ = 0;
    bool failed_ = false;
    std::vector<Pending> pending_;
    std::vector<ExpertGrads> grads_;
    std::deque<GradTask> tasks_;
    const int max_open_;  // spans that hold buffers
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

void run_backward(const Layer &layer, const void *grad_y, float *sum, int threads) {
    BackwardQueue queue(layer, grad_y, sum, threads);
    run_parallel(threads, [&](int) { queue.run(); });
    if (queue.failed()) throw std::bad_alloc();
}

}  // namespace

void experts_backward(const mw_experts &a, const mw_experts_grad &grad, int threads) {
    Layer layer = describe(a, &grad, threads);
    int64_t rows = 0;
    for (const Expert &e : layer.experts) rows += e.rows;
    Buffer<float> grad_weights(rows + 1);
    for (Expert &e : layer.experts)
        e.grad_weights = e.tokens == nullptr && e.wants_grad_weights
                             ? static_cast<float *>(grad.shared_weights.data)
                             : grad_weights.get() + (e.tokens ? e.first : rows - e.rows);
    if (grad.x.data != nullptr) {
        const Output output(layer, grad.x);
        run_backward(layer, grad.y.data, output.rows(), threads);
        output.finish();
    } else if (a.weigh_input && grad.weights.data != nullptr) {
        // The gradients of the weights are computed from those of the input.
        Buffer<float> unread(layer.tokens * layer.model_width);
        run_backward(layer, grad.y.data, unread.get(), threads);
    } else {
        run_backward(layer, grad.y.data, nullptr, threads);
    }
    scatter_weight_gradients(layer, a, grad, grad_weights.get());
}

}  // namespace mw
