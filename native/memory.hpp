// Large buffers that are reused from step to step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mw {

void *allocate(size_t bytes);  // aligned to 64 bytes, not cleared; throws std::bad_alloc
void release(void *buffer);    // back to the cache
int64_t cached_bytes();
void release_cache();

// A buffer for the time of a scope.
template <typename T> class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count) : data_(count ? static_cast<T *>(allocate(count * sizeof(T))) : nullptr) {}
    Buffer(const Buffer &) = delete;
    Buffer(Buffer &&other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer &operator=(Buffer &&other) noexcept {
        if (this != &other) {
            release(data_);
            data_ = other.data_;
            other.data_ = nullptr;
        }
        return *this;
    }
    ~Buffer() { release(data_); }
    T *get() const { return data_; }
    T &operator[](size_t i) const { return data_[i]; }

  private:
    T *data_ = nullptr;
};

}  // namespace mw
