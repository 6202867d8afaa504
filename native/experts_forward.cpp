// The forward pass. Threads take blocks from a queue; each gathers its tokens while it packs them, keeps what lies
// between the products in buffers of its thread, and adds its rows to the result through OrderedSum. Nothing
// waits at the end of a product.
#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <new>

#include "experts.hpp"
#include "layer.hpp"
#include "parallel.hpp"

namespace mw {
namespace {

void add_down_bias(const Layer &layer, const Expert &e, const Block &b, float *out, Scratch &s) {
    if (e.down_bias == nullptr) return;
    layer.k.widen(s.row.get(), e.down_bias, layer.weight_type, layer.model_width);
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
        const Ahead next = j + chunk < F ? layer.up_t(e).ahead(j + chunk, std::min(chunk, F - j - chunk), 0, D)
                                         : layer.down_t(e).ahead(0, std::min(chunk, D), 0, F);
        hidden_chunk(layer, e, s.left.get(), b.rows, j, n, hidden, ld, up_at, s, next);
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
    multiply(k, s.left.get(), b.rows, F, layer.down_t(e), D, out, D, false, s.right.get());
    add_down_bias(layer, e, b, out, s);
}

class ForwardQueue {
  public:
    ForwardQueue(const Layer &layer, float *sum, int threads) : layer_(layer), sum_(layer, sum, threads) {}

    void run() {
        try {
            Scratch scratch(layer_, false);
            std::unique_lock<std::mutex> lock(mutex_);
            // A buffer first, then the number of a block: see OrderedSum.
            for (;;) {
                changed_.wait(lock, [this] { return failed_ || !left() || sum_->has_buffer(); });
                if (failed_ || !left()) return;
                float *out = sum_->take_buffer();
                const size_t number = next_++;
                lock.unlock();
                forward_block(layer_, layer_.blocks[number], out, scratch);
                lock.lock();
                sum_->add_ready(number, out, lock, [this] { changed_.notify_all(); });
            }
        } catch (const std::bad_alloc &) {
            std::lock_guard<std::mutex> lock(mutex_);
            failed_ = true;
            changed_.notify_all();
        }
    }

    bool failed() const { return failed_; }

  private:
    bool left() const { return next_ < layer_.blocks.size(); }

    const Layer &layer_;
    BlockSum sum_;
    std::mutex mutex_;
    std::condition_variable changed_;
    size_t next_ = 0;
    bool failed_ = false;
};

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
    ForwardQueue queue(layer, output.rows(), threads);
    run_parallel(threads, [&](int) { queue.run(); });
    if (queue.failed()) throw std::bad_alloc();
    output.finish();
}

}  // namespace mw
