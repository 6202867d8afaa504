// Rows added to a matrix by many threads, in one fixed order, so that sums repeat bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace mw {

// Contributions are numbered. Threads finish them in any order and hand them in; whoever finds the next number
// there adds it, and those after it that are there too. Nobody waits for a number to come: a thread only needs
// a free buffer for the next contribution, which it must have before it takes that number.
//
// All functions are called with the caller's mutex held; add_ready releases it while it adds.
class OrderedSum {
  public:
    // One contribution: `rows` rows, row i to be added to row target(i) of the sum.
    struct Part {
        int rows = 0;
        const int32_t *targets = nullptr;  // null: first + i
        int64_t first = 0;
        const uint8_t *fresh = nullptr;  // fresh[i]: nothing was added to that row before; null: never
    };

    // `sum` is [*, width]; rows without any part are not written.
    OrderedSum(const Kernels &kernels, float *sum, int width, std::vector<Part> parts,
               std::vector<float *> buffers)
        : kernels_(kernels), sum_(sum), width_(width), parts_(std::move(parts)), free_(std::move(buffers)),
          ready_(parts_.size(), nullptr) {}

    bool has_buffer() const { return !free_.empty(); }

    float *take_buffer() {
        float *buffer = free_.back();
        free_.pop_back();
        return buffer;
    }

    // Hands in number `part`; calls freed() after each buffer that became free.
    template <typename Lock, typename Freed>
    void add_ready(size_t part, float *buffer, Lock &lock, Freed freed) {
        ready_[part] = buffer;
        if (adding_) return;
        adding_ = true;
        for (; next_ < parts_.size() && ready_[next_] != nullptr; ++next_) {
            float *now = ready_[next_];
            const Part &rows = parts_[next_];
            lock.unlock();
            add(rows, now);
            lock.lock();
            free_.push_back(now);
            freed();
        }
        adding_ = false;
    }

  private:
    void add(const Part &part, const float *from) const {
        for (int i = 0; i < part.rows; ++i, from += width_) {
            float *to = sum_ + (part.targets ? part.targets[i] : part.first + i) * width_;
            if (part.fresh && part.fresh[i])
                kernels_.widen(to, from, kFloat32, width_);
            else
                kernels_.add(to, from, width_, 1.0f);
        }
    }

    const Kernels &kernels_;
    float *sum_;
    int64_t width_;
    std::vector<Part> parts_;
    std::vector<float *> free_;
    std::vector<float *> ready_;
    size_t next_ = 0;
    bool adding_ = false;
};

}  // namespace mw
